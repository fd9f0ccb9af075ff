from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from mdp_fx.latency import LatencyTable, Timing, compare, measure_regions
from mdp_fx.latency.measuring import time_in_turn, timings_of
from mdp_fx.latency.targets import RegionSpec, Runner
from mdp_fx.latency.timing import Effort, Runs

from .fakes import FormulaTarget, steady
from .regions import constant_region, conv_region, depthwise_region

CONV, DEPTHWISE, POOL = conv_region(), depthwise_region(), constant_region()
POINTS: dict[str, list[tuple[int, ...]]] = {
    CONV.key: [(32, 64), (16, 64), (32, 32), (16, 32)],
    DEPTHWISE.key: [(64,), (32,)],
    POOL.key: [()],
}


class KilledError(Exception):
    """Stands in for the end of the process."""


class NoisyOnce(FormulaTarget):
    """The first measurement of every point comes out slow and noisy, later ones well."""

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        first = (region.key, sizes) not in self.asked
        timing = super().time_region(region, sizes, effort)
        return steady(2 * timing.low_s, spread=0.5) if first else timing


class Sleeper(Runner):
    """Takes a given time."""

    def __init__(self, seconds: float, log: list[float]) -> None:
        self.seconds = seconds
        self.log = log

    def __call__(self) -> None:
        self.log.append(self.seconds)
        time.sleep(self.seconds)


def test_all_points_are_measured_once_with_equal_keys_shared(tmp_path: Path) -> None:
    target = FormulaTarget()
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_regions([CONV, conv_region(), DEPTHWISE, POOL], POINTS, target, table)
        assert sorted(target.asked) == sorted((key, sizes) for key, wanted in POINTS.items() for sizes in wanted)
        for key, wanted in POINTS.items():
            measured = table.points(target.fingerprint(), key)
            assert measured == {sizes: steady(target.seconds(sizes)) for sizes in wanted}


def test_killed_and_resumed_measures_only_the_rest(tmp_path: Path) -> None:
    target = FormulaTarget()

    def die(done: int, total: int, _: str) -> None:
        assert total == 7
        if done == 3:
            raise KilledError

    with LatencyTable(tmp_path / "t.sqlite") as table, pytest.raises(KilledError):
        measure_regions([CONV, DEPTHWISE, POOL], POINTS, target, table, die)
    before = list(target.asked)
    assert len(before) == 3
    target.asked.clear()
    with LatencyTable(tmp_path / "t.sqlite") as table:
        for key, sizes in before:
            assert table.get(target.fingerprint(), key, sizes) == steady(target.seconds(sizes))
        measure_regions([CONV, DEPTHWISE, POOL], POINTS, target, table)
    assert len(target.asked) == 4
    assert not set(before) & set(target.asked)


def test_a_warm_table_measures_nothing(tmp_path: Path) -> None:
    target = FormulaTarget()
    calls: list[tuple[int, int, str]] = []
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_regions([POOL], {POOL.key: [()]}, target, table)
        measure_regions([POOL], {POOL.key: [()]}, target, table, lambda *call: calls.append(call))
    assert len(target.asked) == 1
    assert calls == []


def test_another_fingerprint_is_measured_anew(tmp_path: Path) -> None:
    one, two = FormulaTarget(1), FormulaTarget(2)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_regions([POOL], {POOL.key: [()]}, one, table)
        measure_regions([POOL], {POOL.key: [()]}, two, table)
    assert two.asked == [(POOL.key, ())]


def test_noisy_points_are_measured_again_and_the_quick_result_stays(tmp_path: Path) -> None:
    target = NoisyOnce()
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_regions([DEPTHWISE], {DEPTHWISE.key: [(64,)]}, target, table)
        assert len(target.asked) == 2
        assert table.get(target.fingerprint(), DEPTHWISE.key, (64,)) == steady(target.seconds((64,)))


def test_what_a_stopped_run_found_noisy_is_measured_again_by_the_next(tmp_path: Path) -> None:
    target = FormulaTarget()
    noisy = Timing(9.0, 9.0, 9.0, 0.5, 40)
    patient = Timing(5.0, 5.0, 5.0, 0.5, 150)
    told: list[tuple[int, int, str]] = []
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.put(target.fingerprint(), DEPTHWISE.key, (64,), noisy)
        table.put(target.fingerprint(), POOL.key, (), patient)
        wanted = {DEPTHWISE.key: [(64,), (32,)], POOL.key: [()]}
        assert measure_regions([DEPTHWISE, POOL], wanted, target, table, lambda *call: told.append(call)) == 1
        assert target.asked == [(DEPTHWISE.key, (32,)), (DEPTHWISE.key, (64,))]
        assert table.get(target.fingerprint(), DEPTHWISE.key, (64,)) == steady(target.seconds((64,)))
        assert table.get(target.fingerprint(), POOL.key, ()) == patient
        assert [(done, total) for done, total, _ in told] == [(0, 1), (1, 1), (2, 2)]


def test_disturbed_points_are_measured_again_and_the_undisturbed_result_stays(tmp_path: Path) -> None:
    class Disturbed(FormulaTarget):
        """Twice as slow at first, steadily so: only that it was disturbed tells."""

        def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
            quick = super().time_region(region, sizes, effort)
            if len(self.asked) == 1:
                return replace(steady(2 * quick.low_s), disturbed=1.0)
            return replace(quick, spread=0.05)

    target = Disturbed()
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_regions([POOL], {POOL.key: [()]}, target, table)
        assert len(target.asked) == 2
        found = table.get(target.fingerprint(), POOL.key, ())
    assert found is not None
    assert found.low_s == target.seconds(())


def test_a_noisier_measurement_with_patience_does_not_count(tmp_path: Path) -> None:
    class Noisier(FormulaTarget):
        def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
            super().time_region(region, sizes, effort)
            return Timing(1.0, 1.0, 0.5, 0.2 * len(self.asked) ** 2, 10)

    target = Noisier()
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_regions([POOL], {POOL.key: [()]}, target, table)
        assert len(target.asked) == 2
        found = table.get(target.fingerprint(), POOL.key, ())
    assert found is not None
    assert found.spread == 0.2


def test_points_without_a_region_are_refused_before_measuring(tmp_path: Path) -> None:
    target = FormulaTarget()
    with LatencyTable(tmp_path / "t.sqlite") as table, pytest.raises(KeyError, match="nowhere"):
        measure_regions([POOL], {POOL.key: [()], "nowhere": [()]}, target, table)
    assert target.asked == []


def test_compare_tells_fast_from_slow_and_runs_them_in_turns() -> None:
    log: list[float] = []
    timings = compare({"slow": Sleeper(4e-3, log), "fast": Sleeper(1e-3, log)}, min_time_s=0.01, max_time_s=0.4)
    assert 1.5 < timings["slow"].median_s / timings["fast"].median_s < 8
    assert timings["slow"].runs == timings["fast"].runs >= 10
    assert timings["slow"].low_s <= timings["slow"].median_s <= timings["slow"].p90_s
    rounds = [tuple(log[index : index + 2]) for index in range(0, len(log), 2)]
    assert {tuple(sorted(pair)) for pair in rounds} == {(1e-3, 4e-3)}
    assert len(set(rounds)) == 2  # both orders occur


def test_compare_stops_at_the_time_limit() -> None:
    begin = time.perf_counter()
    timings = compare({"a": Sleeper(1e-3, [])}, min_time_s=30.0, max_time_s=0.1)
    assert time.perf_counter() - begin < 5
    assert timings["a"].runs >= 10


def test_compare_nothing() -> None:
    assert compare({}) == {}


def test_rounds_keep_the_runs_of_each_in_order() -> None:
    log: list[float] = []
    rounds = time_in_turn({"slow": Sleeper(3e-3, log), "fast": Sleeper(1e-3, log)}, min_time_s=0.01, max_time_s=0.2)
    assert list(rounds) == ["slow", "fast"]
    count = len(rounds["slow"].seconds)
    assert count == len(rounds["fast"].seconds) == len(log) // 2 - 3
    assert min(rounds["slow"].seconds) >= 3e-3
    assert min(rounds["fast"].seconds) >= 1e-3
    assert time_in_turn({}) == {}


def test_networks_are_summarised_from_the_same_rounds() -> None:
    # Another process takes the core in every other round of the long network, and in none of the short one.
    long = Runs(1, [2.0, 1.0] * 15, [0.5, 1.0] * 15)
    short = Runs(1, [0.4, 0.1] * 15, [1.0, 1.0] * 15)
    found = timings_of({"long": long, "short": short})
    assert (found["long"].median_s, found["short"].median_s) == (1.0, 0.1)
    assert [each.disturbed for each in found.values()] == [0.5, 0.5]
    assert [each.runs for each in found.values()] == [15, 15]


def test_where_every_round_is_disturbed_all_of_them_count_for_all_networks() -> None:
    long = Runs(1, [2.0] * 30, [0.5] * 30)
    short = Runs(1, [0.4, 0.1] * 15, [0.5, 1.0] * 15)
    found = timings_of({"long": long, "short": short})
    assert (found["long"].median_s, found["short"].median_s) == (2.0, pytest.approx(0.25))
    assert [each.runs for each in found.values()] == [30, 30]
