"""A network as a whole beside the sum of its regions, on a target whose times are a formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx import whole_network
from mdp_fx.errors import ModelError
from mdp_fx.latency import LatencyTable, Timing
from mdp_fx.latency.targets import Runner
from mdp_fx.passes.build_space import build_space
from mdp_fx.passes.choices import choose
from mdp_fx.passes.search_space import Selection, evaluate, normalise, violations
from mdp_fx.pipeline import analyse
from mdp_fx.whole_network import (
    SLIM_SHARE,
    MeasuredNetwork,
    calibrating_selections,
    dense_runner,
    exact_seconds,
    measure_network,
)
from tests.pruning import layer_macs
from tests.work_target import (
    CALIBRATING,
    MEASURING,
    STEP,
    Analysed,
    WorkTarget,
    analysed,
    compare_fakes,
    dense_time,
    no_clocks,
    table,
)
from tests.zoo import FireModules, NestedBlocks, Residual, conv_bn, image

__all__ = ["analysed", "no_clocks", "table"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_clocks")


class OuterResidual(nn.Module):
    """One block holds all there is, and two within it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16), Residual(16, 24), Residual(16, 24), nn.Conv2d(16, 3, 1))

    def forward(self, x: Tensor) -> Any:
        return x + self.body(x)


def measure(analysed: Analysed, target: WorkTarget, table: LatencyTable, told: list[str]) -> MeasuredNetwork:
    analysis, _, inputs = analysed
    with dense_runner(analysis, target, inputs) as runner:
        return measure_network(analysis, choose(analysis), target, table, inputs, runner, stage=told.append)


def test_what_is_constant_beside_the_regions_is_told_from_what_is_a_share(
    analysed: Analysed, table: LatencyTable
) -> None:
    dense = dense_time(analysed)
    per_layer = 0.1 * dense / len(layer_macs(analysed[0].graph.module, analysed[2]))
    target = WorkTarget(whole=lambda seconds, layers: 1.2 * seconds + per_layer * layers)
    found = measure(analysed, target, table, [])
    assert found.sum_s == pytest.approx(dense, rel=1e-3)
    assert found.whole_s == pytest.approx(1.3 * dense)
    assert found.calibration.factor == pytest.approx(1.2, rel=0.02)
    assert len(found.regions_s) * found.calibration.per_region_s == pytest.approx(0.1 * dense, rel=0.05)


def test_each_slim_network_is_timed_in_turn_with_the_dense_one(
    analysed: Analysed, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    target = WorkTarget()

    def compare(runners: Mapping[str, Runner], min_runs: int) -> dict[str, Timing]:
        assert set(runners.values()) == target.open, "no other is in memory"
        assert list(runners) == ["dense", "slim"]
        return compare_fakes(runners)

    monkeypatch.setattr(whole_network, "time_networks", compare)
    first = measure(analysed, target, table, told)
    assert told == MEASURING
    assert len(target.prepared) == CALIBRATING
    assert target.open == set()
    again = measure(analysed, target, table, told)
    assert len(target.prepared) == 2 * CALIBRATING, "what was timed another day says nothing of today"
    assert again.calibration == first.calibration
    assert (first.tables.cached, again.tables.measured) == (0, 0)


def test_every_group_of_the_slim_network_has_its_share(analysed: Analysed) -> None:
    analysis = analysed[0]
    choices = choose(analysis, keep=["two.1"])
    slim = calibrating_selections(analysis, choices)[-1]
    assert slim.removed_blocks == ()
    assert choices.held
    for group in analysis.groups:
        share = 1.0 if group.name in choices.held else SLIM_SHARE
        assert abs(slim.sizes[group.name] - share * group.size) <= 1


@pytest.mark.parametrize("name", ["stages", "fire_modules", "nested_blocks", "outer_residual"])
def test_the_mixed_networks_are_structures_that_a_search_may_choose(name: str, analysed: Analysed) -> None:
    torch.manual_seed(0)
    networks = {"fire_modules": FireModules, "nested_blocks": NestedBlocks, "outer_residual": OuterResidual}
    analysis = analysed[0]
    if name in networks:
        analysis = analyse(networks[name]().eval(), (image(side=16, batch=1),), step=STEP)
    choices = choose(analysis)
    space = build_space(analysis, choices, (), {})
    found = calibrating_selections(analysis, choices)
    assert found == calibrating_selections(analysis, choices), "the same every time: what is measured counts again"
    assert len(found) == CALIBRATING - 1
    *mixed, slim = found
    assert slim.removed_blocks == ()
    assert any(selection.removed_blocks for selection in mixed)
    dense = evaluate(space, space.dense())["macs"]
    for selection in found:
        assert violations(space, selection) == []
        blocks_gone = normalise(space, Selection(space.dense().sizes, selection.removed_blocks))
        assert evaluate(space, blocks_gone)["macs"] >= 0.5 * dense


class Refusing(WorkTarget):
    """Takes no slim network that `refuses` says so of, by the number of those before."""

    def __init__(self, refuses: Callable[[int], bool]) -> None:
        super().__init__()
        self._refuses = refuses

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        runner = super().prepare(module, inputs)
        if len(self.prepared) > 1 and self._refuses(len(self.prepared) - 2):
            runner.close()
            raise ModelError(f"network {len(self.prepared) - 1} is refused")
        return runner


def test_a_slim_network_that_the_target_refuses_is_left_out(analysed: Analysed, table: LatencyTable) -> None:
    target = Refusing(lambda before: before in (0, 2))
    found = measure(analysed, target, table, [])
    assert len(found.calibrating) == CALIBRATING - 2
    assert [seconds for _, seconds in found.calibrating] == pytest.approx([target.prepared[i] for i in (0, 2, 4, 5)])
    assert target.open == set()


def test_a_target_that_refuses_every_slim_network_is_told(analysed: Analysed, table: LatencyTable) -> None:
    target = Refusing(lambda _: True)
    with pytest.raises(ModelError, match="network 1 is refused"):
        measure(analysed, target, table, [])
    assert target.open == set()


def test_a_removed_block_takes_its_regions_along(analysed: Analysed, table: LatencyTable) -> None:
    analysis = analysed[0]
    block = analysis.blocks.removable[0]
    target = WorkTarget()
    whole = exact_seconds(analysis, Selection({}, ()), target, table)
    left = exact_seconds(analysis, Selection({}, (block.name,)), target, table)
    gone = {region.name for region in analysis.regions if region.nodes[0] in block.nodes}
    assert gone
    assert left == {name: seconds for name, seconds in whole.items() if name not in gone}
