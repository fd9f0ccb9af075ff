"""A network as a whole beside the sum of its regions, on a target whose times are a formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mdp_fx import whole_network
from mdp_fx.latency import LatencyTable
from mdp_fx.passes.build_space import build_space
from mdp_fx.passes.choices import choose
from mdp_fx.passes.search_space import Selection, evaluate, normalise, violations
from mdp_fx.pipeline import analyse
from mdp_fx.whole_network import (
    MIXED_SHARES,
    SLIM_SHARE,
    MeasuredNetwork,
    calibrating_selections,
    dense_runner,
    exact_seconds,
    measure_network,
)
from tests.pruning import layer_macs
from tests.work_target import CALIBRATING, Analysed, WorkTarget, analysed, compare_fakes, dense_time
from tests.zoo import FireModules, image

__all__ = ["analysed"]  # a fixture


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "t.sqlite") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_network, "time_networks", compare_fakes)


def measure(analysed: Analysed, target: WorkTarget, table: LatencyTable, told: list[str]) -> MeasuredNetwork:
    analysis, _, inputs = analysed
    with dense_runner(analysis, target, inputs) as runner:
        return measure_network(analysis, choose(analysis, 2), target, table, inputs, runner, stage=told.append)


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


def test_the_slim_networks_are_timed_in_turn_with_the_dense_one(analysed: Analysed, table: LatencyTable) -> None:
    told: list[str] = []
    target = WorkTarget()
    first = measure(analysed, target, table, told)
    assert told == ["measure cost regions", "time the dense network and slim ones"]
    assert len(target.prepared) == CALIBRATING
    assert target.open == set()
    again = measure(analysed, target, table, told)
    assert len(target.prepared) == 2 * CALIBRATING, "what was timed another day says nothing of today"
    assert again.calibration == first.calibration
    assert (first.tables.cached, again.tables.measured) == (0, 0)


def test_every_group_of_the_slim_network_has_its_share(analysed: Analysed) -> None:
    analysis = analysed[0]
    choices = choose(analysis, 2, keep=["two.1"])
    slim = calibrating_selections(analysis, choices)["slim"]
    assert slim.removed_blocks == ()
    assert choices.held
    for group in analysis.groups:
        share = 1.0 if group.name in choices.held else SLIM_SHARE
        assert abs(slim.sizes[group.name] - share * group.size) <= 1


@pytest.mark.parametrize("name", ["stages", "fire_modules"])
def test_the_mixed_networks_are_structures_that_a_search_may_choose(name: str, analysed: Analysed) -> None:
    analysis = analysed[0]
    if name == "fire_modules":
        torch.manual_seed(0)
        analysis = analyse(FireModules().eval(), (image(side=16, batch=1),))
    choices = choose(analysis, 2)
    space = build_space(analysis, choices, (), {})
    found = calibrating_selections(analysis, choices)
    assert found == calibrating_selections(analysis, choices), "the same every time: what is measured counts again"
    assert len(found) == len(MIXED_SHARES) + 1
    macs = {each: evaluate(space, selection)["macs"] for each, selection in found.items()}
    assert macs["mixed 35%"] < macs["mixed 50%"] < macs["mixed 80%"]
    assert [bool(selection.removed_blocks) for selection in found.values()] == [True] * len(MIXED_SHARES) + [False]
    for selection in found.values():
        assert violations(space, selection) == []
        assert normalise(space, selection) == selection


def test_a_removed_block_takes_its_regions_along(analysed: Analysed, table: LatencyTable) -> None:
    analysis = analysed[0]
    block = analysis.blocks.removable[0]
    target = WorkTarget()
    whole = exact_seconds(analysis, Selection({}, ()), target, table)
    left = exact_seconds(analysis, Selection({}, (block.name,)), target, table)
    gone = {region.name for region in analysis.regions if region.nodes[0] in block.nodes}
    assert gone
    assert left == {name: seconds for name, seconds in whole.items() if name not in gone}
