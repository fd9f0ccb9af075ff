"""Whole networks from regions: calibration lines, known networks, tables and exact sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mdp_fx.graph.axes import Dim
from mdp_fx.latency import LatencyTable
from mdp_fx.latency.network import Calibration, Measured, exact_sum, region_tables
from mdp_fx.latency.targets import RegionSpec
from mdp_fx.latency.timing import Effort, Timing
from mdp_fx.passes.choices import Analysis, choose
from mdp_fx.pipeline import analyse
from tests.latency.fakes import FormulaTarget, steady
from tests.zoo import ZOO


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "t.sqlite") as opened:
        yield opened


def analysed(name: str, step: int = 1) -> Analysis:
    specimen = next(s for s in ZOO if s.name == name)
    torch.manual_seed(0)
    return analyse(specimen.make(), specimen.inputs(), step=step)


# Calibration ---------------------------------------------------------------------------------------------------------


def test_a_region_takes_its_share_and_a_constant() -> None:
    line = Calibration(1.25, 1e-3)
    assert line.whole(()) == 0.0
    assert line.whole([0.004]) == pytest.approx(0.006)
    assert line.whole([0.004, 0.0]) == pytest.approx(0.007), "what goes takes the constant along"
    assert Calibration(1.25, -1e-3).whole([0.004, 0.0]) == pytest.approx(0.004), "nothing takes less than nothing"


@pytest.mark.parametrize(
    ("dense", "slim"),
    [
        (([4.0, 6.0], 12.0), ([2.0, 3.0], 7.0)),
        (([4.0, 6.0], 12.0), ([2.0, 3.0], 5.0)),
        (([4.0, 6.0], 9.0), ([1.0, 1.0], 2.5)),
        pytest.param(([4.0, 6.0], 12.0), ([6.0], 6.8), id="a region less"),
        pytest.param(([0.4, 0.6], 2.0), ([0.1, 0.15], 1.4), id="most of the time is spent on launching"),
    ],
)
def test_the_line_goes_through_two_networks(dense: Measured, slim: Measured) -> None:
    line = Calibration.through(dense, slim)
    assert line.whole(dense[0]) == pytest.approx(dense[1])
    assert line.whole(slim[0]) == pytest.approx(slim[1])


def test_what_was_chosen_counts_more_than_other_networks() -> None:
    networks: list[Measured] = [([4.0, 6.0], 10.0), ([2.0, 3.0], 6.0), ([1.0, 1.0], 2.0), ([3.0], 3.6)]

    def errors(chosen: int) -> list[float]:
        found = Calibration.through(*networks, chosen=chosen)
        return [abs(found.whole(parts) / seconds - 1) for parts, seconds in networks]

    assert errors(1)[-1] < 0.01 < errors(0)[-1]
    assert max(errors(2)[2:]) < 0.01 < max(errors(1)[2:])
    assert max(errors(0)) < max(errors(2)) < 0.3


def test_a_choice_that_is_off_does_not_tilt_the_line() -> None:
    # One network beside the budget says the opposite of what was chosen for it, which is a fifth faster.
    sums = [(3.227, 54, 3.333), (1.928, 42, 2.07), (1.553, 39, 1.683), (1.103, 39, 1.196), (0.787, 39, 0.892)]
    networks = [([seconds / n] * n, whole) for seconds, n, whole in [*sums, (0.853, 54, 1.006), (0.873, 42, 0.784)]]
    found = Calibration.through(*networks, chosen=1)
    assert found.whole(networks[0][0]) == pytest.approx(networks[0][1], rel=0.1)
    assert found.whole(networks[-1][0]) == pytest.approx(networks[-1][1], rel=0.05)


def test_what_takes_nothing_does_not_bend_the_line() -> None:
    true = Calibration(1.2, -0.5)
    parts = [[4.0, 6.0, 2.0], [2.0, 3.0, 0.1], [1.0, 3.0, 0.3]]
    found = Calibration.through(*((each, true.whole(each)) for each in parts))
    assert (found.factor, found.per_region_s) == pytest.approx((1.2, -0.5))


def test_fits_that_go_in_circles_end_with_a_good_one() -> None:
    random = np.random.default_rng(0)
    for _ in range(4000):
        dense = random.lognormal(0.0, 1.5, 30)
        parts = [dense, dense * random.uniform(0.2, 0.8, 30), dense * 0.2]
        true = Calibration(1.1, float(random.uniform(-0.2, 0.05) * dense.mean()))
        networks = [(each, true.whole(each) * random.normal(1.0, 0.05)) for each in parts]
        found = Calibration.through(*networks, chosen=1)
        assert found.whole(parts[-1]) == pytest.approx(networks[-1][1], rel=0.1)


@pytest.mark.parametrize(
    ("dense", "slim"),
    [
        pytest.param(([4.0, 6.0], 12.0), ([4.0, 5.5], 11.0), id="too close to tell"),
        pytest.param(([4.0, 6.0], 12.0), ([4.0, 5.0], 11.5), id="no closer than a tenth"),
        pytest.param(([4.0, 6.0], 12.0), ([5.0, 6.0], 12.5), id="the slim one is slower"),
        pytest.param(([4.0, 6.0], 12.0), ([2.0, 3.0], 12.5), id="with half of the work it is slower"),
        pytest.param(([4.0, 6.0], 12.0), ([2.0, 3.0], 2.0), id="too much below zero"),
    ],
)
def test_where_a_line_would_be_noise_it_is_proportional(dense: Measured, slim: Measured) -> None:
    shares = [sum(parts) / seconds for parts, seconds in (dense, slim)]
    line = Calibration.through(dense, slim)
    assert (line.factor, line.per_region_s) == (pytest.approx(sum(shares) / sum(each**2 for each in shares)), 0.0)
    chosen = Calibration.through(dense, slim, chosen=1)
    assert chosen.whole(slim[0]) == pytest.approx(slim[1], rel=0.05)


def test_a_network_without_costs_has_a_constant() -> None:
    assert Calibration.through(([0.0, 0.0], 2.0)) == Calibration(0.0, 1.0)


# Tables of regions ---------------------------------------------------------------------------------------------------


def test_every_region_has_a_full_table(table: LatencyTable) -> None:
    analysis, target = analysed("plain_residual", 4), FormulaTarget()
    found = region_tables(analysis, choose(analysis), target, table)
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
    analysis, target = analysed("plain_residual", 4), FormulaTarget()
    keys = [region.key for region in analysis.regions]
    assert len(set(keys)) < len(keys)
    found = region_tables(analysis, choose(analysis), target, table)
    assert len(target.asked) == len(set(target.asked)) == found.measured
    assert found.cached == 0


def test_what_is_known_is_not_measured_again(table: LatencyTable) -> None:
    analysis, target = analysed("plain_residual", 4), FormulaTarget()
    first = region_tables(analysis, choose(analysis), target, table)
    asked = len(target.asked)
    second = region_tables(analysis, choose(analysis), target, table)
    assert len(target.asked) == asked
    assert (second.measured, second.cached) == (0, first.measured)
    finer = region_tables(analysis, choose(replace(analysis, step=2)), target, table)
    assert finer.cached > 0
    assert len(target.asked) == asked + finer.measured


def test_noise_does_not_change_what_is_wanted_of_a_known_table(table: LatencyTable) -> None:
    class Noisy(FormulaTarget):
        """Every other measurement is half as long again; noise that patience finds out."""

        def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
            quick = super().time_region(region, sizes, effort)
            if effort.max_runs > 40 or len(self.asked) % 2:
                return quick
            return replace(steady(1.5 * quick.low_s, 0.3), runs=40)

    analysis, target = analysed("vgg", 1), Noisy()
    first = region_tables(analysis, choose(analysis), target, table)
    asked = len(target.asked)
    assert asked > first.measured, "some were noisy"
    again = region_tables(analysis, choose(analysis), target, table)
    assert (again.measured, len(target.asked)) == (0, asked)


def test_progress_counts_what_is_measured(table: LatencyTable) -> None:
    analysis, target = analysed("vgg", 2), FormulaTarget()
    told: list[tuple[int, int, str]] = []
    found = region_tables(analysis, choose(analysis), target, table, progress=lambda *call: told.append(call))
    assert [done for done, _, _ in told] == list(range(found.measured + 1))
    assert {total for _, total, _ in told} == {found.measured}


def test_held_groups_are_measured_at_their_dense_size_alone(table: LatencyTable) -> None:
    analysis, target = analysed("vgg", 2), FormulaTarget()
    found = region_tables(analysis, choose(analysis, keep=["features.3"]), target, table)
    assert found.seconds["pool"][0] == ((6,),)
    assert found.seconds["classifier.0"][0][1] == (54,)
    assert len(found.seconds["classifier.0"][0][0]) > 1


# Exact sums ----------------------------------------------------------------------------------------------------------


def test_each_region_counts_at_exactly_its_sizes(table: LatencyTable) -> None:
    analysis, target = analysed("vgg", 2), FormulaTarget()
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
    analysis, target = analysed("plain_residual", 4), FormulaTarget()
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
