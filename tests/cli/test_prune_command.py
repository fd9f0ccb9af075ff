"""`mdp-fx prune`: what reaches the pipeline, what is written, what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mdp_fx
from mdp_fx.errors import MdpFxError, OutputError
from mdp_fx.recipe import Recipe
from tests.cli.networks import SHAPE, TINY, TORCH
from tests.cli.running import Run
from tests.cli.tiny import make_network

# No latency budget: nothing but the two networks is timed.
QUICK = (*SHAPE, *TORCH, "--params", "60%")


class ReachedError(MdpFxError):
    """Raised in place of the work, with what it was asked to do."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pipeline is asked; it does nothing."""
    seen: dict[str, Any] = {}

    def prune(model: torch.nn.Module, inputs: Any, **options: Any) -> None:
        seen.update(options, model=model, inputs=inputs)
        raise ReachedError("reached")

    monkeypatch.setattr("mdp_fx.api.prune", prune)
    return seen


def test_defaults(run: Run, asked: dict[str, Any]) -> None:
    assert run("prune", "torchvision:resnet18").err == "mdp-fx: error: reached\n"
    (image,) = asked["inputs"]
    assert image.shape == (1, 3, 224, 224)
    assert "latency" not in asked  # the pipeline's own default: 50 %
    assert asked["target"] == "onnxruntime:cpu"
    assert (asked["method"], asked["step"], asked["seed"]) == ("mdp", 8, 0)
    assert asked["importance"] is asked["data"] is asked["loss"] is asked["threads"] is None
    assert asked["gap"] == pytest.approx(1e-3)
    assert asked["pretrained"] is False
    assert asked["min_keep"] is asked["max_removed"] is None
    assert (asked["fixed"], asked["keep_blocks"]) == ({}, ())


def test_every_option_reaches_the_pipeline(run: Run, asked: dict[str, Any]) -> None:
    run(
        *("prune", TINY, "--latency", "12.5ms", "--params", "60%", "--macs", "30M", "--target", "torch:cpu"),
        *("--threads", "2", "--input", "3x16x16", "--input", "5", "--batch", "4", "--importance", "taylor"),
        *("--data", "tests.cli.tiny:make_loader", "--loss", "tests.cli.networks:smooth_loss", "--method", "halp"),
        *("--step", "16", "--keep", "stem", "--keep", "head", "--only", "block.*", "--gap", "1%"),
        *("--time-limit", "3", "--seed", "7", "--min-keep", "0.25", "--fix", "stem.0=16", "--keep-block", "add"),
        *("--max-removed", "2"),
    )
    assert [tuple(value.shape) for value in asked["inputs"]] == [(4, 3, 16, 16), (4, 5)]
    assert asked["latency"].amount == pytest.approx(0.0125)
    assert asked["params"].share == pytest.approx(0.6)
    assert asked["macs"].amount == pytest.approx(30e6)
    assert (asked["target"], asked["threads"], asked["importance"]) == ("torch:cpu", 2, "taylor")
    assert (asked["method"], asked["step"], asked["seed"]) == ("halp", 16, 7)
    assert (asked["keep"], asked["only"]) == (("stem", "head"), ("block.*",))
    assert (asked["gap"], asked["time_limit"]) == (pytest.approx(0.01), 3.0)
    assert (asked["min_keep"], asked["fixed"]) == (0.25, {"stem.0": 16})
    assert (asked["keep_blocks"], asked["max_removed"]) == (("add",), 2)
    assert asked["loss"].__name__ == "smooth_loss"
    assert len(list(asked["data"])) == 2


def test_example_inputs_are_the_same_in_every_run(run: Run, asked: dict[str, Any]) -> None:
    run("prune", TINY, *SHAPE)
    first = asked["inputs"][0]
    run("prune", TINY, *SHAPE)
    assert torch.equal(first, asked["inputs"][0])


def test_cross_entropy_is_the_default_loss_by_name(run: Run, asked: dict[str, Any]) -> None:
    run("prune", TINY, *SHAPE, "--loss", "cross-entropy")
    assert asked["loss"] is None


def test_prune_writes_what_it_says(run: Run, folder: Path) -> None:
    done = run("prune", TINY, *QUICK, "--onnx", "slim.onnx", "--recipe", "recipe.json")
    assert done.code == 0, done.err
    assert sorted(path.name for path in folder.iterdir()) == [
        ".cache",
        "make_network-slim.pt",
        "recipe.json",
        "slim.onnx",
    ]
    for line in (
        "wrote    make_network-slim.pt",
        "wrote    slim.onnx (dynamic batch, max abs error",
        "wrote    recipe.json",
    ):
        assert line in done.out
    assert "\x1b" not in done.out
    assert done.err == ""
    slim = mdp_fx.load("make_network-slim.pt")
    dense = sum(parameter.numel() for parameter in make_network().parameters())
    assert sum(parameter.numel() for parameter in slim.parameters()) <= 0.6 * dense
    assert slim(torch.randn(5, 3, 16, 16)).shape == (5, 4)
    assert Recipe.load("recipe.json").method == "mdp"


def test_json_is_one_document_with_the_same_facts(run: Run) -> None:
    done = run("prune", TINY, *QUICK, "--json", "-o", "out.pt", "--onnx", "out.onnx")
    assert done.code == 0, done.err
    facts = done.json
    assert facts["written"] == {"slim": "out.pt", "onnx": "out.onnx"}
    assert facts["onnx_parity"]["dynamic_batch"] is True
    assert facts["params"]["slim"] <= 0.6 * facts["params"]["dense"]
    assert facts["latency"]["measured_ms"] > 0
    assert facts["latency"]["asked_ms"] is None
    assert {group["name"] for group in facts["groups"]} == {"stem.0", "block.0"}
    assert any("accuracy is unknown" in text for text in facts["warnings"])
    stored = mdp_fx.load_slim("out.pt").report
    assert stored == {key: value for key, value in facts.items() if key not in ("written", "onnx_parity")}


def test_restrictions_hold_in_the_slim_network(run: Run) -> None:
    found = run("prune", TINY, *QUICK, "--json").json
    assert {group["name"]: group["after"] for group in found["groups"]}["stem.0"] != 24
    found = run("prune", TINY, *QUICK, "--json", "-o", "held.pt", "--fix", "stem.0=24", "--min-keep", "25%").json
    sizes = {group["name"]: group["after"] for group in found["groups"]}
    assert sizes["stem.0"] == 24
    assert sizes["block.0"] >= 8


def test_restrictions_on_what_is_not_there_are_refused_before_the_work(run: Run, folder: Path) -> None:
    for args, says in (
        (("--fix", "stem=24"), "unknown dimension 'stem' is to be held at 24; did you mean 'stem.0'?"),
        (("--fix", "stem.0=25"), "dimension 'stem.0' cannot be held at 25; its sizes are 8, 16, 24, 32"),
        (("--keep-block", "blok"), "unknown block 'blok' is to stay"),
    ):
        done = run("prune", TINY, *SHAPE, *TORCH, *args)
        assert (done.code, done.out) == (1, "")
        assert says in done.err
        assert done.err.count("\n") == 1
    assert not list(folder.glob("*.pt"))


def test_slim_network_can_be_pruned_again(run: Run) -> None:
    assert run("prune", TINY, *QUICK, "-o", "once.pt").code == 0
    # Its own input shape is known.
    done = run("prune", "once.pt", "--params", "80%", "--target", "torch:cpu", "--threads", "1", "--json")
    assert done.code == 0, done.err
    assert done.json["written"] == {"slim": "once-slim.pt"}
    assert "once.pt is a slim network already" in done.err


def test_verbose_shows_passes_with_times(run: Run) -> None:
    done = run("prune", TINY, *QUICK, "-v")
    assert done.code == 0, done.err
    assert " s  trace model" in done.err
    assert " s  solve" in done.err
    assert "pass " in done.out


def test_foreign_prints_keep_json_clean(run: Run) -> None:
    done = run("prune", "tests.cli.networks:talkative", *QUICK, "--json")
    assert done.code == 0, done.err
    assert done.json["model"] == "talkative"
    assert "hello from foreign code" in done.err


def test_outputs_must_differ(run: Run) -> None:
    done = run("prune", TINY, *QUICK, "-o", "x.pt", "--onnx", "./x.pt")
    assert done.code == 1
    assert "--output and --onnx both name x.pt" in done.err


def test_outputs_are_checked_before_the_work(run: Run, asked: dict[str, Any]) -> None:
    for option in ("-o", "--onnx", "--recipe", "--save-space"):
        done = run("prune", TINY, *QUICK, option, "missing/file")
        assert done.code == 1
        assert "the folder missing does not exist" in done.err
    assert asked == {}


def test_full_disk_leaves_nothing(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OutputError(
            "cannot write make_network-slim.pt: disk full; free some space or name a file on another disk"
        )

    monkeypatch.setattr("mdp_fx.checkpoint.atomic_write", full)
    done = run("prune", TINY, *QUICK)
    assert (done.code, done.out) == (1, "")
    assert "disk full" in done.err
    assert [path.name for path in folder.iterdir()] == [".cache"]


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        ("torchvision:resnet18", "resnet18-slim.pt"),
        ("timm:hf_hub/tiny", "hf_hub_tiny-slim.pt"),
        ("nets/model.v2.pt", "model.v2-slim.pt"),
        ("weights.safetensors", "weights-slim.pt"),
        ("package.module:factory", "factory-slim.pt"),
    ],
)
def test_default_output_is_named_after_the_model(run: Run, folder: Path, spec: str, file: str) -> None:
    (folder / file).touch()
    assert f"{file} exists" in run("prune", spec).err


TABLE = """in_channels,out_channels,input_size,kernel,stride,groups,batch,latency_us
3,16,16,3,1,1,64,100
3,32,16,3,1,1,64,150
16,16,16,3,1,1,64,300
16,32,16,3,1,1,64,500
32,16,16,3,1,1,64,500
32,32,16,3,1,1,64,900
"""
ON_TABLE = (*SHAPE, "--target", "table:t.csv", "--batch", "64", "--threads", "1")


def test_prune_on_a_table_predicts(run: Run, folder: Path) -> None:
    (folder / "t.csv").write_text(TABLE)
    done = run("prune", TINY, *ON_TABLE, "--latency", "60%", "--onnx", "a.onnx", "-o", "a.pt", "--json")
    assert done.code == 0, done.err
    facts = done.json
    assert facts["latency"]["measured_ms"] is None
    assert facts["latency"]["dense_ms"] == pytest.approx(1.95)
    assert facts["latency"]["predicted_ms"] <= 0.6 * 1.95
    assert facts["prediction"]["dense_per_s"] == pytest.approx(64 / 1.95e-3)
    assert facts["prediction"]["slim_per_s"] == pytest.approx(64e3 / facts["latency"]["predicted_ms"])
    assert facts["batch"] == 64
    assert mdp_fx.load("a.pt")(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    shown = run("prune", TINY, *ON_TABLE, "--latency", "60%", "-o", "b.pt").out
    assert "predicted to be" in shown
    assert "images/s" in shown
    assert "measured" not in shown
    profiled = run("profile", TINY, *ON_TABLE).out
    assert profiled.startswith("make_network: 1.95 ms predicted, 32821 images/s\n")
    curve = run("frontier", TINY, *ON_TABLE)
    assert curve.code == 0, curve.err
    assert "predicted: by table:t.csv table of 6 convolutions, batch 64" in curve.out
    assert "not counted: mean, head" in curve.out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--target", "titan-v"), "the table of titan-v has batch 256, not 1: pass --batch 256"),
        (("--target", "table:none.csv"), "cannot read none.csv: no such file"),
        (("--target", "table:text.csv"), "text.csv is no table of convolutions"),
        (("--target", "titan-v", "--batch", "256"), "stem.0: 3 -> 32 channels, input 16x16, kernel 3x3, stride 1x1"),
        (("--target", "torch:cpu", "--fill", "analytic"), "--fill is for targets that are tables"),
    ],
)
def test_tables_that_do_not_fit_are_one_line(run: Run, folder: Path, args: tuple[str, ...], says: str) -> None:
    (folder / "text.csv").write_text("a,b\n")
    done = run("prune", TINY, *SHAPE, *args)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("mdp-fx: error: ")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
