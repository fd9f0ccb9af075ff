"""The public functions that make and sweep the search space of a network, on a target without clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx import whole_network
from mdp_fx.errors import InputError, TargetError
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.cost_regions import CostRegion, find_cost_regions
from mdp_fx.passes.residual_blocks import Blocks
from mdp_fx.passes.search_space import evaluate, importance, violations
from tests.work_target import MEASURING, Stages, WorkTarget, compare_fakes
from tests.zoo import image


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Stages().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return image(side=16, batch=1)


@pytest.fixture(autouse=True)
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkTarget:
    """Where everything is measured."""
    made = WorkTarget()
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(whole_network, "time_networks", compare_fakes)
    for module in ("mdp_fx.api", "mdp_fx.train.pruning"):
        monkeypatch.setattr(f"{module}.get_target", lambda name, threads, dtype, **_: made)
    return made


def test_the_space_of_a_network_is_measured_and_swept(network: nn.Module, inputs: Tensor) -> None:
    seen: list[str] = []
    space = mdp_fx.search_space(network, inputs, step=4, min_keep=0.5, stage=seen.append)
    assert seen[-4:] == ["prepare the dense network", *MEASURING]
    assert all(min(dim.sizes) >= dim.dense / 2 for dim in space.dimensions)
    points = mdp_fx.frontier(space, most=10)
    assert len(points) == 10
    assert points[-1].cost == pytest.approx(evaluate(space, space.unpruned())["latency"])
    assert points[-1].importance == pytest.approx(importance(space, space.unpruned()))
    for point in points[:-1]:
        assert violations(space, point.selection) == []
        decided = mdp_fx.solve(space, {"latency": f"{1.0001 * point.cost}us"}, gap=1e-6)
        assert decided.certificate.objective == pytest.approx(point.importance, rel=1e-3)


def test_without_a_target_nothing_is_measured(network: nn.Module, inputs: Tensor, target: WorkTarget) -> None:
    space = mdp_fx.search_space(network, inputs, target=None, keep_blocks=["one.0"])
    assert set(space.costs) == {"params", "macs"}
    assert "one.0" not in {block.name for block in space.blocks}
    assert target.asked == target.prepared == []
    measured = mdp_fx.search_space(network, inputs, keep_blocks=["one.0"])
    assert (measured.dimensions, measured.importance) == (space.dimensions, space.importance)
    assert target.asked


def test_importance_and_patterns_count(network: nn.Module, inputs: Tensor) -> None:
    data = [(inputs, torch.zeros(1, dtype=torch.long))]

    def of(**options: object) -> mdp_fx.SearchSpace:
        return mdp_fx.search_space(network, inputs, target=None, **options)

    assert of(importance="l1").importance != of(importance="l2").importance == of().importance
    assert of(data=data).importance == of(data=data, importance="taylor").importance != of().importance
    assert len(of(keep=["one.*"]).fixed) > len(of().fixed)


@pytest.mark.parametrize("make", [mdp_fx.search_space, mdp_fx.profile, mdp_fx.Pruner])
def test_regions_are_measured_at_sizes_of_the_step(
    make: Callable[..., object], network: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def find(graph: PruneGraph, blocks: Blocks, batch: int, step: int) -> tuple[CostRegion, ...]:
        steps.append(step)
        return find_cost_regions(graph, blocks, batch, step)

    monkeypatch.setattr("mdp_fx.passes.cost_regions.find_cost_regions", find)
    make(network, inputs, step=4)
    assert steps == [4]


def test_restrictions_are_checked_before_anything_is_measured(
    network: nn.Module, inputs: Tensor, target: WorkTarget
) -> None:
    with pytest.raises(InputError, match="unknown dimension 'nowhere' is to be held at 8"):
        mdp_fx.search_space(network, inputs, fixed={"nowhere": 8})
    assert target.asked == target.prepared == []


def test_an_unknown_target_is_refused(network: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(TargetError, match="nowhere"):
        mdp_fx.search_space(network, inputs, target="nowhere")


@pytest.mark.parametrize("what", ["prune", "search_space"])
def test_a_table_that_cannot_be_used_is_told_before_the_data_are_read(
    what: str, network: nn.Module, inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path))
    (tmp_path / "latency.sqlite").write_bytes(b"SQLite format 3\x00" + b"\xff" * 2000)

    def data() -> Iterator[object]:
        raise AssertionError("a batch was read")
        yield

    with pytest.raises(TargetError, match="is damaged"):
        getattr(mdp_fx, what)(network, inputs, data=data(), target="torch:cpu", threads=1)
