"""A network as a whole beside the sum of its regions, on a target whose times are a formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx import whole_network
from mdp_fx.budgets import Budget
from mdp_fx.errors import ModelError
from mdp_fx.latency import LatencyTable
from mdp_fx.latency.targets import Runner
from mdp_fx.passes.choices import choose
from mdp_fx.passes.importance import score
from mdp_fx.passes.search_space import Selection
from mdp_fx.pipeline import analyse, rewrite
from mdp_fx.whole_network import SLIM_SHARE, MeasuredNetwork, dense_network, exact_seconds, measure_network
from tests.work_target import Analysed, WorkTarget, analysed, compare_fakes, dense_time, search, work

__all__ = ["analysed"]  # a fixture


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "t.sqlite") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_network, "time_networks", compare_fakes)


class FusedProjections(nn.Module):
    """Attention twice whose queries, keys and values come from one layer: the graph has three."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 48), nn.Linear(16, 48)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        for projection in (self.one, self.two):
            q, k, v = projection(x).reshape(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
            x = x + ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.out(x.mean(1))


@pytest.fixture(scope="module")
def fused() -> Analysed:
    torch.manual_seed(0)
    inputs = (torch.randn(1, 6, 16),)
    analysis = analyse(FusedProjections().train(), inputs)
    return analysis, score(analysis.graph, analysis.groups, "l1"), inputs


def measure(analysed: Analysed, target: WorkTarget, table: LatencyTable, told: list[str]) -> MeasuredNetwork:
    analysis, _, inputs = analysed
    with dense_network(analysis, target, inputs) as runner:
        return measure_network(analysis, choose(analysis, 2), target, table, inputs, runner, stage=told.append)


def test_what_is_constant_beside_the_regions_is_told_from_what_is_a_share(
    analysed: Analysed, table: LatencyTable
) -> None:
    dense = dense_time(analysed)
    found = measure(analysed, WorkTarget(whole=lambda seconds: 0.1 * dense + 1.2 * seconds), table, [])
    assert found.sum_s == pytest.approx(dense, rel=1e-3)
    assert found.whole_s == pytest.approx(1.3 * dense)
    assert found.calibration.factor == pytest.approx(1.2, rel=0.01)
    assert len(found.regions_s) * found.calibration.per_region_s == pytest.approx(0.1 * dense, rel=0.02)


def test_the_slim_networks_are_timed_in_turn_with_the_dense_one(analysed: Analysed, table: LatencyTable) -> None:
    told: list[str] = []
    target = WorkTarget()
    first = measure(analysed, target, table, told)
    assert told == ["measure cost regions", "time the dense and two slim networks"]
    assert len(target.prepared) == 3
    assert target.open == set()
    again = measure(analysed, target, table, told)
    assert len(target.prepared) == 6, "what was timed another day says nothing of today"
    assert again.calibration == first.calibration
    assert (first.tables.cached, again.tables.measured) == (0, 0)


def test_every_group_of_the_slim_network_has_its_share(analysed: Analysed) -> None:
    analysis = analysed[0]
    choices = choose(analysis, 2, keep=["two.1"])
    slim = whole_network._slim_selection(choices)
    assert slim.removed_blocks == ()
    assert set(slim.sizes) == {group.name for group in analysis.groups} - choices.held
    assert choices.held
    for group in analysis.groups:
        if group.name in slim.sizes:
            assert abs(slim.sizes[group.name] - SLIM_SHARE * group.size) <= 1


def test_a_removed_block_takes_its_regions_along(analysed: Analysed, table: LatencyTable) -> None:
    analysis = analysed[0]
    block = analysis.blocks.removable[0]
    target = WorkTarget()
    whole = exact_seconds(analysis, Selection({}, ()), target, table)
    left = exact_seconds(analysis, Selection({}, (block.name,)), target, table)
    gone = {region.name for region in analysis.regions if region.nodes[0] in block.nodes}
    assert gone
    assert left == {name: seconds for name, seconds in whole.items() if name not in gone}


def test_the_graph_of_a_plain_network_stands_for_it(analysed: Analysed) -> None:
    assert analysed[0].given is None


def test_a_network_whose_graph_has_other_operators_is_timed_as_given(fused: Analysed, table: LatencyTable) -> None:
    analysis, _, inputs = fused
    assert analysis.given is not None
    given_s, traced_s = work(analysis.given, inputs), work(rewrite(analysis, {}, ()), inputs)
    assert traced_s - given_s == pytest.approx(4e-6)  # two layers more, twice
    target = WorkTarget()
    found = measure(fused, target, table, [])
    assert found.whole_s == pytest.approx(given_s)
    assert found.calibrating[0][1] == pytest.approx(traced_s)
    assert len(target.prepared) == 4
    assert target.open == set()
    # The regions are those of the graph, and so is what fits them.
    assert found.calibration.whole(found.regions_s.values()) == pytest.approx(traced_s, rel=1e-3)
    assert analysis.given.training, "left in the mode it was in"


def test_a_share_is_one_of_the_given_network(fused: Analysed, table: LatencyTable) -> None:
    analysis, _, inputs = fused
    assert analysis.given is not None
    given_s = work(analysis.given, inputs)
    outcome = search(fused, WorkTarget(), table).run(Budget(share=0.8), {})
    assert outcome.asked_s == pytest.approx(0.8 * given_s)
    assert outcome.dense is not None
    assert outcome.dense.median_s == pytest.approx(given_s)
    assert outcome.miss < 0.01


class RefusesTheModel(WorkTarget):
    """Takes graphs alone."""

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        if isinstance(module, FusedProjections):
            raise ModelError("the network cannot be exported")
        return super().prepare(module, inputs)


def test_what_cannot_be_brought_to_the_target_as_given_is_timed_as_traced(fused: Analysed, table: LatencyTable) -> None:
    target = RefusesTheModel()
    found = measure(fused, target, table, [])
    assert found.whole_s == found.calibrating[0][1] == pytest.approx(work(rewrite(fused[0], {}, ()), fused[2]))
    assert target.open == set()
