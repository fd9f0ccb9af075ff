"""`mdp-fx targets`, and targets in other number formats."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

import mdp_fx
from mdp_fx.cli import options
from mdp_fx.graph.casting import DTYPES
from mdp_fx.latency import get_target, target_names
from tests.cli.networks import BRIEF, SHAPE, TINY, TORCH
from tests.cli.running import Run

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_every_target_is_listed_with_what_is_here(run: Run) -> None:
    rows = {row["name"]: row for row in run("targets", "--json").json["targets"]}
    assert list(rows) == [*target_names(), "titan-v", "table:PATH"]
    here = rows["torch:cpu"]
    assert here == {
        "name": "torch:cpu",
        "available": True,
        "dtypes": list(DTYPES),
        "why_not": None,
        "device": get_target("torch:cpu").device,
        "alignment": get_target("torch:cpu").alignment,
        "fingerprint": get_target("torch:cpu").fingerprint(),
    }
    assert rows.pop("table:PATH")["fingerprint"] is None
    for row in rows.values():
        assert row["available"] == (row["why_not"] is None) == (row["fingerprint"] is not None)


def test_the_table_names_devices_and_what_is_missing(run: Run) -> None:
    done = run("targets")
    assert done.code == 0, done.err
    assert "can be used on this machine" in done.out
    assert f"measured as  {get_target('onnxruntime:cpu').fingerprint()}\n" in done.out
    for name in target_names():
        assert f"\n{name} " in done.out


@NO_GPU
@pytest.mark.parametrize(
    "args",
    [
        ("prune", TINY, *SHAPE, "--target", "torch:cuda", "-o", "x.pt"),
        ("profile", TINY, *SHAPE, "--target", "onnxruntime:cuda"),
        ("bench", TINY, *SHAPE, "--target", "onnxruntime:tensorrt"),
        ("frontier", TINY, *SHAPE, "--target", "onnxruntime:tensorrt-rtx"),
        ("diff", TINY, TINY, *SHAPE, "--target", "tensorrt"),
        ("export", TINY, *SHAPE, "--to", "tensorrt", "-o", "x.engine"),
    ],
)
def test_without_a_gpu_one_line_says_so(run: Run, folder: Path, args: tuple[str, ...]) -> None:
    done = run(*args)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert "needs " in done.err
    assert "NVIDIA GPU" in done.err or "built for CUDA" in done.err
    assert not (folder / "x.pt").exists()
    assert not (folder / "x.engine").exists()


def test_the_number_formats_are_those_of_the_option() -> None:
    assert tuple(options.DTYPES.choices) == DTYPES


def test_a_number_format_that_a_target_cannot_is_one_line(run: Run) -> None:
    done = run("bench", TINY, *SHAPE, "--dtype", "float16")
    assert (done.code, done.out) == (1, "")
    assert done.err == "mdp-fx: error: target onnxruntime:cpu cannot run in float16 here; it can in float32\n"


def test_a_network_is_profiled_pruned_and_compared_in_bfloat16(run: Run) -> None:
    brain = (*SHAPE, *TORCH, "--dtype", "bfloat16")
    facts = run("profile", TINY, *brain, "--step", "32", "--json").json
    assert " bfloat16 " in facts["device"]
    pruned = run("prune", TINY, *brain, "--step", "16", "--params", "60%", "-o", "slim.pt", "--json")
    assert pruned.code == 0, pruned.err
    assert " bfloat16 " in pruned.json["device"]
    assert {value.dtype for value in mdp_fx.load("slim.pt").parameters()} == {torch.float32}
    rows = run("bench", TINY, "slim.pt", *brain, *BRIEF, "--json").json["networks"]
    assert all(row["median_ms"] > 0 for row in rows)
    assert run("diff", TINY, "slim.pt", *brain, "--json").json["ms"][0] > 0


def test_onnx_is_exported_in_half_precision(run: Run) -> None:
    done = run("export", TINY, *SHAPE, "--dtype", "float16", "-o", "half.onnx")
    assert done.code == 0, done.err
    graph = onnx.load("half.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert {tensor.data_type for tensor in graph.initializer} & {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
    } == set()
