"""Whole networks from regions: calibration lines, known networks, tables and exact sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mdp_fx.graph.axes import Dim
from mdp_fx.latency import LatencyTable
from mdp_fx.latency.network import Calibration, exact_sum, region_tables
from mdp_fx.passes.choices import Analysis, choose
from mdp_fx.pipeline import analyse
from tests.latency.fakes import FormulaTarget
from tests.zoo import ZOO


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "t.sqlite") as opened:
        yield opened


def analysed(name: str) -> Analysis:
    specimen = next(s for s in ZOO if s.name == name)
    torch.manual_seed(0)
    return analyse(specimen.make(), specimen.inputs())


# Calibration ---------------------------------------------------------------------------------------------------------


def test_without_a_slim_network_the_offset_is_nothing() -> None:
    line = Calibration(1.25)
    assert line.whole(0.0) == 0.0
    assert line.whole(0.004) == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("dense", "slim"),
    [
        ((10.0, 12.0), (5.0, 7.0)),
        ((10.0, 12.0), (5.0, 5.0)),
        ((10.0, 9.0), (2.0, 2.5)),
        pytest.param((1.0, 2.0), (0.25, 1.4), id="most of the time is spent on launching"),
    ],
)
def test_the_line_goes_through_both_networks(dense: tuple[float, float], slim: tuple[float, float]) -> None:
    line = Calibration.through(dense, slim)
    assert line.whole(dense[0]) == pytest.approx(dense[1])
    assert line.whole(slim[0]) == pytest.approx(slim[1])


@pytest.mark.parametrize(
    ("dense", "slim"),
    [
        pytest.param((10.0, 12.0), (9.5, 11.0), id="too close to tell"),
        pytest.param((10.0, 12.0), (9.0, 11.5), id="no closer than a tenth"),
        pytest.param((10.0, 12.0), (11.0, 12.5), id="the slim one is slower"),
        pytest.param((10.0, 12.0), (5.0, 12.5), id="with half of the work it is slower"),
        pytest.param((10.0, 12.0), (5.0, 2.0), id="too much below zero"),
    ],
)
def test_where_a_line_would_be_noise_it_is_proportional(dense: tuple[float, float], slim: tuple[float, float]) -> None:
    line = Calibration.through(dense, slim)
    assert line == Calibration(slim[1] / slim[0])


# Tables of regions ---------------------------------------------------------------------------------------------------


def test_every_region_has_a_full_table(table: LatencyTable) -> None:
    analysis, target = analysed("plain_residual"), FormulaTarget()
    found = region_tables(analysis, choose(analysis, 4), target, table)
    assert list(found.seconds) == [region.name for region in analysis.regions]
    for region in analysis.regions:
        points, seconds = found.seconds[region.name]
        assert seconds.shape == tuple(len(axis) for axis in points)
        for index in np.ndindex(seconds.shape):
            sizes = tuple(axis[i] for axis, i in zip(points, index, strict=True))
            assert seconds[index] == pytest.approx(target.seconds(sizes))
        assert [axis[-1] for axis in points] == list(region.dense_sizes)
        assert all(axis[0] == 4 for axis in points)


def test_interchangeable_regions_are_measured_once(table: LatencyTable) -> None:
    analysis, target = analysed("plain_residual"), FormulaTarget()
    keys = [region.key for region in analysis.regions]
    assert len(set(keys)) < len(keys)
    found = region_tables(analysis, choose(analysis, 4), target, table)
    assert len(target.asked) == len(set(target.asked)) == found.measured
    assert found.cached == 0


def test_what_is_known_is_not_measured_again(table: LatencyTable) -> None:
    analysis, target = analysed("plain_residual"), FormulaTarget()
    first = region_tables(analysis, choose(analysis, 4), target, table)
    asked = len(target.asked)
    second = region_tables(analysis, choose(analysis, 4), target, table)
    assert len(target.asked) == asked
    assert (second.measured, second.cached) == (0, first.measured)
    finer = region_tables(analysis, choose(analysis, 2), target, table)
    assert finer.cached > 0
    assert len(target.asked) == asked + finer.measured


def test_progress_counts_what_is_measured(table: LatencyTable) -> None:
    analysis, target = analysed("vgg"), FormulaTarget()
    told: list[tuple[int, int, str]] = []
    found = region_tables(analysis, choose(analysis, 2), target, table, progress=lambda *call: told.append(call))
    assert [done for done, _, _ in told] == list(range(found.measured + 1))
    assert {total for _, total, _ in told} == {found.measured}


def test_held_groups_are_measured_at_their_dense_size_alone(table: LatencyTable) -> None:
    analysis, target = analysed("vgg"), FormulaTarget()
    found = region_tables(analysis, choose(analysis, 2, keep=["features.3"]), target, table)
    assert found.seconds["pool"][0] == ((6,),)
    assert found.seconds["classifier.0"][0][1] == (54,)
    assert len(found.seconds["classifier.0"][0][0]) > 1


# Exact sums ----------------------------------------------------------------------------------------------------------


def test_each_region_counts_at_exactly_its_sizes(table: LatencyTable) -> None:
    analysis, target = analysed("vgg"), FormulaTarget()
    sizes = {group.dim: size for group, size in zip(analysis.groups, (3, 5, 7), strict=True)}

    def size_of(dim: Dim) -> int:
        return sizes[dim]

    found = exact_sum(analysis.regions, size_of, target, table)
    assert found == {
        "features.0": target.seconds((3,)),
        "features.2": target.seconds((3,)),
        "features.3": target.seconds((5, 3)),
        "pool": target.seconds((5,)),
        "classifier.0": target.seconds((7, 5 * 9)),
        "classifier.3": target.seconds((7,)),
    }
    asked = len(target.asked)
    assert exact_sum(analysis.regions, size_of, target, table) == found
    assert len(target.asked) == asked


def test_only_the_given_regions_count(table: LatencyTable) -> None:
    analysis, target = analysed("plain_residual"), FormulaTarget()
    alive = [region for region in analysis.regions if region.block != "one"]
    found = exact_sum(alive, lambda dim: dim.size, target, table)
    assert set(found) == {region.name for region in alive}
    assert not any(name.startswith("one") for name in found)


@pytest.mark.parametrize("name", [s.name for s in ZOO if s.name != "twice"])
def test_the_dense_sum_has_every_region_once(name: str, table: LatencyTable) -> None:
    analysis, target = analysed(name), FormulaTarget()
    found = exact_sum(analysis.regions, lambda dim: dim.size, target, table)
    assert sum(found.values()) == pytest.approx(sum(target.seconds(r.dense_sizes) for r in analysis.regions))


def test_a_module_called_twice_counts_twice(table: LatencyTable) -> None:
    analysis, target = analysed("twice"), FormulaTarget()
    found = exact_sum(analysis.regions, lambda dim: dim.size, target, table)
    assert sum(found.values()) == pytest.approx(sum(target.seconds(r.dense_sizes) for r in analysis.regions))
