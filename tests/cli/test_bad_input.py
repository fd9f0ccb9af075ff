"""Bad input: one line on stderr, exit code 1, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.networks import FROZEN, SHAPE, TINY, TORCH
from tests.cli.running import Run
from tests.cli.tiny import make_network


def write_files(folder: Path) -> None:
    """Files that are wrong in one way each."""
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("not a pickle")
    torch.save(make_network(), folder / "foreign.pt")
    torch.save(make_network().state_dict(), folder / "state.pt")
    whole = (folder / "state.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "bad.json").write_text("{}")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("empty.pt",), "empty.pt is empty"),
        (("text.pt",), "text.pt"),
        (("cut.pt",), "cut.pt is truncated or damaged"),
        (("foreign.pt",), "tests.cli.tiny.Tiny"),
        (("foreign.pt",), "--trust-pickle"),
        (("state.pt", "--arch", "torchvision:resnet18"), "missing: conv1.weight"),
        (("torchvison:resnet18",), "did you mean torchvision:resnet18?"),
        (("resnet18",), "did you mean torchvision:resnet18?"),
        ((TINY, "--latency", "0%"), "is not between 0 and 100 %"),
        ((TINY, "--params", "12ms"), "cannot read the params budget '12ms': write it as 60% or 4M"),
        ((TINY, *TORCH, *SHAPE, "--data", "nothing"), "write package.module:make_loader, imagefolder:PATH or voc:PATH"),
        ((TINY, *TORCH, *SHAPE, "--data", "imagefoldr:x"), "did you mean imagefolder:x?"),
        ((TINY, *TORCH, *SHAPE, "--data", "tests.cli.networks:make_failing"), "OSError: no such disk"),
        ((TINY, *TORCH, *SHAPE, "--loss", "tests.cli.networks:smoth_loss"), "did you mean smooth_loss"),
    ],
)
def test_prune(run: Run, folder: Path, args: tuple[str, ...], says: str) -> None:
    write_files(folder)
    before = {path.name for path in folder.iterdir()} | {".cache"}
    done = run("prune", *args)
    assert done.code == 1, done.err
    assert done.out == ""
    assert done.err.startswith("mdp-fx: error: ")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
    assert {path.name for path in folder.iterdir()} <= before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("inspect", TINY, "--input", "1x8x8"), "rejects an input of shape 1x1x8x8"),
        (("profile", TINY, "--input", "1x8x8", *TORCH), "rejects an input of shape 1x1x8x8"),
        (("bench", TINY, "--input", "1x8x8", *TORCH), "make_network rejects an input of shape 1x1x8x8"),
        (("export", TINY, "--input", "1x8x8", "-o", "x.onnx"), "make_network rejects an input of shape 1x1x8x8"),
        (("diff", TINY, TINY, "--input", "1x8x8"), "rejects an input of shape 1x1x8x8"),
        (("diff", TINY, FROZEN, *SHAPE), "share no module name"),
        (("apply", TINY, "--recipe", "bad.json", "-o", "x.pt"), "bad.json is not an mdp-fx recipe"),
        (("apply", TINY, "--recipe", "none.json", "-o", "x.pt"), "cannot read recipe none.json"),
        (("export", "missing.pt", "-o", "x.onnx"), "cannot read missing.pt"),
        (("bench", TINY, "missing.pt", *SHAPE), "cannot read missing.pt"),
    ],
)
def test_other_commands(run: Run, folder: Path, args: tuple[str, ...], says: str) -> None:
    write_files(folder)
    done = run(*args)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
    assert not (folder / "x.onnx").exists()
    assert not (folder / "x.pt").exists()


def test_trusted_pickle_is_read(run: Run, folder: Path) -> None:
    write_files(folder)
    assert run("inspect", "foreign.pt", "--trust-pickle", *SHAPE).code == 0
