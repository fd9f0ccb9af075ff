"""inspect, profile, bench, diff, apply, export."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

import mdp_fx
from tests.cli.networks import BRIEF, SHAPE, TINY, TORCH
from tests.cli.running import Run
from tests.cli.tiny import make_network


@pytest.fixture
def slim(run: Run) -> str:
    """A pruned network in slim.pt, with its recipe in recipe.json."""
    done = run("prune", TINY, *SHAPE, *TORCH, "--params", "50%", "-o", "slim.pt", "--recipe", "recipe.json")
    assert done.code == 0, done.err
    return "slim.pt"


def test_inspect_shows_groups_blocks_and_frozen_channels(run: Run) -> None:
    done = run("inspect", TINY, *SHAPE)
    assert done.code == 0, done.err
    for text in (
        "make_network: 100 % of the parameters",
        "2 channel groups",
        "1 residual block",
        "output of the network",
    ):
        assert text in done.out


def test_profile_measures_once(run: Run, folder: Path) -> None:
    args = ("profile", TINY, *SHAPE, *TORCH, "--step", "32")
    first = run(*args, "--json").json
    assert first["regions_measured"] > 0
    assert first["dense_ms"] > 0
    assert first["sum_ms"] == pytest.approx(sum(region["ms"] for region in first["regions"]))
    assert first["table"] == str(folder / ".cache" / "latency.sqlite")
    second = run(*args)
    assert "0 measured now" in second.out
    assert "stem" in second.out


def test_bench_times_in_turn(run: Run, slim: str) -> None:
    rows = run("bench", TINY, slim, TINY, *TORCH, *BRIEF, "--json").json["networks"]
    assert [row["name"] for row in rows] == [TINY, slim, f"{TINY} (2)"]
    assert rows[0]["ratio"] == 1.0
    assert all(row["median_ms"] > 0 and row["runs"] >= 10 for row in rows)
    table = run("bench", TINY, slim, *TORCH, *BRIEF)
    assert table.code == 0
    assert "torch:cpu, batch 1, timed in turn" in table.out


def test_diff_shows_shapes_and_totals(run: Run, slim: str) -> None:
    facts = run("diff", TINY, slim, "--json").json
    rows = {row["module"]: row for row in facts["rows"]}
    module = mdp_fx.load(slim)
    for name, row in rows.items():
        if not row["removed"]:
            assert row["after"] == list(module.get_parameter(f"{name}.weight").shape)
    assert rows["head"]["before"] == [4, 32]
    assert facts["params"] == [count(make_network()), count(module)]
    table = run("diff", TINY, slim)
    assert table.code == 0
    assert "parameters" in table.out


def count(module: torch.nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def test_diff_with_a_target_has_latencies(run: Run, slim: str) -> None:
    facts = run("diff", TINY, slim, *TORCH, "--json").json
    dense, pruned = facts["ms"]
    assert dense > 0
    assert pruned > 0
    assert {row["module"]: row for row in facts["rows"]}["stem.0"]["ms_before"] > 0


def test_apply_repeats_the_recipe(run: Run, slim: str) -> None:
    done = run("apply", TINY, "--recipe", "recipe.json", "-o", "again.pt")
    assert done.code == 0, done.err
    assert "wrote       again.pt" in done.out
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(mdp_fx.load("again.pt").eval()(x), mdp_fx.load(slim).eval()(x))
    facts = run("apply", TINY, "--recipe", "recipe.json", "-o", "again.pt", "--force", "--json").json
    assert facts["params"]["slim"] == count(mdp_fx.load(slim))


def test_apply_refuses_other_weights(run: Run, slim: str, folder: Path) -> None:
    done = run("apply", "torchvision:resnet18", "--recipe", "recipe.json", "-o", "again.pt")
    assert done.code == 1
    assert "the recipe belongs to another model" in done.err
    assert not (folder / "again.pt").exists()


def test_export_runs_in_onnx_runtime(run: Run, slim: str) -> None:
    done = run("export", slim, "--to", "onnx", "-o", "slim.onnx")
    assert done.code == 0, done.err
    assert "checked  dynamic batch, max abs error" in done.out
    session = onnxruntime.InferenceSession("slim.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(7, 3, 16, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), mdp_fx.load(slim).eval()(x), rtol=1e-4, atol=1e-5)
    facts = run("export", slim, "-o", "slim.onnx", "--force", "--json").json
    assert facts["written"] == {"onnx": "slim.onnx"}
    assert facts["max_rel_error"] < 1e-3
    assert run("export", slim, "-o", "slim.onnx").code == 1
