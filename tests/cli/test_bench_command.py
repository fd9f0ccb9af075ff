"""bench of networks, ONNX files, engines and layer masks; apply of layer masks."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx.latency.ratio import FEWEST_ROUNDS
from tests.cli.networks import BRIEF, SHAPE, TINY, TORCH
from tests.cli.running import Run
from tests.cli.tiny import make_network
from tests.onnx_files import FLOAT, write_onnx


def mask(*units: int) -> Tensor:
    entries = torch.zeros(32)
    entries[list(units)] = 1
    return entries


STREAM = mask(*range(0, 32, 2))
MASKS = {"module.stem.0": STREAM, "module.block.0": mask(1, 5, 9), "module.block.3": STREAM}


def write(name: str, content: object) -> str:
    with Path(name).open("wb") as file:
        pickle.dump(content, file)
    return name


def test_masks_are_timed_beside_the_network_before_them(run: Run, folder: Path) -> None:
    write("m.pkl", MASKS)
    done = run("bench", TINY, "m.pkl", *SHAPE, *TORCH, "--plot", "c.html", "--json", *BRIEF)
    assert done.code == 0, done.err
    dense, masked = done.json["networks"]
    assert (dense["name"], masked["name"]) == (TINY, "m.pkl")
    assert dense["interval"] is None
    assert masked["interval"][0] <= masked["ratio"] <= masked["interval"][1]
    assert masked["proven"] is not (masked["interval"][0] <= 1.02 and masked["interval"][1] >= 0.98)
    assert masked["inputs"] == [[1, 3, 16, 16]]
    assert done.json["written"] == {"plot": "c.html"}
    assert "threads 1" in done.json["device"]
    assert (folder / "c.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "c.html exists; pass --force" in run("bench", TINY, "m.pkl", *SHAPE, *TORCH, "--plot", "c.html").err


def test_a_network_beside_itself_says_what_is_not_proven(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdp_fx import comparison
    from mdp_fx.latency.ratio import Ratio

    monkeypatch.setattr(comparison, "ratio_of", lambda *_: Ratio(1.01, 0.99, 1.03, 20))
    done = run("bench", TINY, TINY, *SHAPE, *TORCH, *BRIEF)
    assert done.code == 0, done.err
    assert "99.0 to 103.0 %" in done.out
    assert f"not proven  that {TINY} (2) and {TINY} differ: two loadings may, by 2 %" in done.out


def test_timing_ends_at_its_limit(run: Run) -> None:
    done = run("bench", TINY, *SHAPE, *TORCH, "--time-limit", "0.001", "--json")
    assert done.code == 0
    assert done.json["networks"][0]["runs"] <= FEWEST_ROUNDS


def test_an_onnx_file_keeps_its_inputs_and_says_so(run: Run) -> None:
    write_onnx(Path("m.onnx"), {"x": (FLOAT, ("N", 3, 4))})
    done = run("bench", TINY, "m.onnx", *SHAPE, "--batch", "2", "--threads", "1", *BRIEF)
    assert done.code == 0, done.err
    assert "onnxruntime:cpu, batch 2, timed in turn" in done.out
    said = " ".join(done.out.split())  # how wide the names of notes are depends on which there are
    assert f"input 2x3x16x16 for {TINY}" in said
    assert "input 2x3x4 for m.onnx" in said
    alone = run("bench", "m.onnx", "--threads", "1", "--json", *BRIEF)
    assert alone.json["networks"][0]["inputs"] == [[1, 3, 4]]


def test_memory_is_that_of_another_process(run: Run) -> None:
    done = run("bench", TINY, *SHAPE, "--threads", "1", "--memory", *BRIEF)
    assert done.code == 0, done.err
    assert "peak memory  resident peak of a process" in done.out
    assert done.out.count(" MiB") == 1


def test_masks_may_get_their_network_from_arch(run: Run) -> None:
    torch.save(make_network().state_dict(), "state.pt")
    write("m.pkl", MASKS)
    done = run("bench", "m.pkl", "state.pt", *SHAPE, *TORCH, "--arch", TINY, "--json", *BRIEF)
    assert [row["name"] for row in done.json["networks"]] == ["m.pkl", "state.pt"]


def test_slim_networks_for_different_inputs_need_to_be_told(run: Run) -> None:
    for side in ("16", "32"):
        done = run("prune", TINY, "--input", f"3x{side}x{side}", *TORCH, "--params", "50%", "-o", f"{side}.pt")
        assert done.code == 0, done.err
    done = run("bench", "16.pt", "32.pt", *TORCH)
    assert (done.code, done.out) == (1, "")
    says = "the slim networks were made for inputs that differ (16 3x16x16, 32 3x32x32): say which with --input"
    assert done.err == f"mdp-fx: error: {says}\n"
    assert run("bench", "16.pt", "32.pt", *SHAPE, *TORCH, *BRIEF).code == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("m.pkl",), "m.pkl holds layer masks: name their network before it, or with --arch"),
        (("ok.onnx", "m.pkl"), "m.pkl holds layer masks: name their network before it, or with --arch"),
        ((TINY, "other.pkl"), "the network has no layer 'module.conv9': the masks belong to another network"),
        ((TINY, "hostile.pkl"), "hostile.pkl needs builtins.print: mask files hold dictionaries, strings and tensors"),
        ((TINY, "none.pkl"), "cannot read none.pkl: no such file or directory"),
        ((TINY, "folder.pkl"), "folder.pkl is a folder"),
        ((TINY, "none.onnx"), "there is no file none.onnx"),
        ((TINY, "folder.onnx"), "folder.onnx is a folder; name a file in it"),
        ((TINY, "text.onnx"), "text.onnx is not an ONNX model, or is damaged"),
        ((TINY, "bad.onnx"), "onnxruntime does not take bad.onnx"),
        (
            (TINY, "ok.onnx", *TORCH),
            "ok.onnx is an ONNX file, which torch:cpu does not run: use --target onnx",
        ),
        (
            (TINY, "x.engine"),
            "x.engine is a TensorRT engine, which onnxruntime:cpu does not run: use ",
        ),
        ((TINY, "x.plan", *TORCH), "x.plan is a TensorRT engine, which torch:cpu does not run: use --target tensorrt"),
        ((TINY, "--plot", "c.svg"), "cannot plot to c.svg: name a file that ends in .html, or in .png"),
        ((TINY, "--plot", "none/c.html"), "the folder none does not exist"),
    ],
)
def test_bad_input(run: Run, folder: Path, args: tuple[str, ...], says: str) -> None:
    write("m.pkl", MASKS)
    write("other.pkl", {"module.conv9": STREAM})
    write("hostile.pkl", {"stem.0": print})
    for name in ("x.engine", "x.plan"):
        Path(name).touch()
    for name in ("folder.pkl", "folder.onnx"):
        Path(name).mkdir()
    Path("text.onnx").write_text("no model")
    bad = write_onnx(Path("bad.onnx"), {"x": (FLOAT, (1, 2))})
    bad.write_bytes(bad.read_bytes().replace(b"Identity", b"Identify"))
    write_onnx(Path("ok.onnx"), {"x": (FLOAT, (1, 2))})
    before = {path.name for path in folder.iterdir()} | {".cache"}
    done = run("bench", *args, *SHAPE)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("mdp-fx: error: ")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
    assert {path.name for path in folder.iterdir()} <= before


def test_apply_makes_a_slim_network_of_masks(run: Run) -> None:
    write("m.pkl", MASKS)
    done = run("apply", TINY, "--masks", "m.pkl", "-o", "slim.pt", *SHAPE)
    assert done.code == 0, done.err
    assert "m.pkl: 3 layers with masks" in done.out
    assert "2 of 2 channel groups cut" in done.out
    assert "removed     no block" in done.out
    assert "wrote       slim.pt" in done.out
    slim = mdp_fx.load("slim.pt")
    assert [slim.get_submodule(name).out_channels for name in ("stem.0", "block.0", "block.3")] == [16, 3, 16]
    again = mdp_fx.apply(make_network(), mdp_fx.load_slim("slim.pt").recipe)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), slim(x))
    facts = run("diff", TINY, "slim.pt", "--json").json
    assert facts["params"][1] == sum(parameter.numel() for parameter in slim.parameters())


def test_apply_removes_a_block_without_channels(run: Run) -> None:
    write("m.pkl", MASKS | {"module.block.0": mask(), "module.block.3": mask()})
    done = run("apply", TINY, "--masks", "m.pkl", "-o", "slim.pt", *SHAPE, "--json")
    assert done.json["removed_blocks"] == ["block"]
    assert done.json["written"] == {"slim": "slim.pt"}
    assert done.json["params"]["slim"] < done.json["params"]["dense"]
    assert isinstance(mdp_fx.load("slim.pt").get_submodule("head"), nn.Linear)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "Give one of --recipe and --masks."),
        (("--masks", "m.pkl", "--recipe", "r.json"), 2, "Give one of --recipe and --masks."),
        (("--recipe", "r.json", *SHAPE), 2, "--input is for --masks"),
        (("--masks", "none.pkl"), 1, "cannot read none.pkl: no such file or directory"),
        (("--masks", "."), 1, ". is a folder; name a mask file in it"),
        (
            ("--masks", "wrong.pkl", *SHAPE),
            1,
            "the mask of layer 'block.0' has 3 entries and the layer 32 output",
        ),
        (("--masks", "m.pkl", "--input", "1x8x8"), 1, "rejects an input of shape 1x1x8x8"),
    ],
)
def test_apply_refuses(run: Run, folder: Path, args: tuple[str, ...], code: int, says: str) -> None:
    write("m.pkl", MASKS)
    write("wrong.pkl", {"block.0": torch.ones(3)})
    done = run("apply", TINY, *args, "-o", "slim.pt")
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert not (folder / "slim.pt").exists()
