from __future__ import annotations

import gc
import time

import pytest

from mdp_fx.latency import timing
from mdp_fx.latency.timing import Effort, Paces, Runs, Timing, no_garbage_collection, time_runs


def test_summary_of_known_samples() -> None:
    timing = Timing.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.median_s, timing.low_s, timing.runs) == (3.0, 2.0, 5)
    assert timing.spread == pytest.approx(2 / 3)
    assert timing.p90_s == pytest.approx(4.6)


def test_interference_moves_neither_median_nor_lower_quartile() -> None:
    timing = Timing.of([1.0] * 9 + [50.0] * 2)
    assert (timing.median_s, timing.low_s, timing.spread) == (1.0, 1.0, 0.0)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Timing.of([])


def _runs(seconds: list[float], cores: float = 1.0, threads: int = 1) -> Runs:
    return Runs(threads, seconds, [cores] * len(seconds))


def test_steady_runs_settle_and_noisy_ones_do_not() -> None:
    effort = Effort(error=0.01, min_runs=5, max_runs=20, max_time_s=60.0)
    now = time.perf_counter()
    assert _runs([1.0] * 5).settled(now, effort)
    assert not _runs([1.0] * 4).settled(now, effort)
    assert not _runs([1.0, 2.0] * 4).settled(now, effort)
    assert _runs([1.0, 2.0] * 10).settled(now, effort)
    assert _runs([1.0, 2.0] * 4).settled(now - 61.0, effort)
    few, many = Timing.of([1.0, 2.0] * 2), Timing.of([1.0, 2.0] * 8)
    assert many.median_error == pytest.approx(few.median_error / 2, rel=0.01)


def test_runs_that_lost_their_core_do_not_count() -> None:
    effort = Effort(error=0.01, min_runs=3, max_runs=20, max_time_s=1.0)
    now = time.perf_counter()
    runs = Runs(1, [3.0, 1.0, 3.0, 1.0, 3.0, 1.1], [0.4, 1.0, 0.4, 1.0, 0.4, 0.98])
    assert runs.undisturbed() == [False, True] * 3
    assert runs.timing_of(runs.seconds).median_s == 1.0
    assert runs.timing_of([6.0, 2.0, 6.0, 2.0, 6.0, 2.2]).runs == 3
    lost = _runs([3.0] * 6, cores=0.4)
    assert lost.timing_of(lost.seconds).runs == 6  # better all of them than none
    assert not lost.settled(now - 1.5, effort)
    assert lost.settled(now - 10.0, effort)


def test_several_threads_are_compared_with_their_better_runs() -> None:
    assert Runs(2, [1.0] * 5, [1.6, 1.58, 1.6, 1.59, 1.0]).undisturbed() == [True] * 4 + [False]
    assert Runs(2, [1.0] * 51, [1.95] * 50 + [2.08]).undisturbed() == [True] * 51, "one run is no yardstick"
    assert Runs(None, [1.0] * 3, [1.6, 1.58, 1.0]).undisturbed() == [True] * 3


def test_runs_on_a_slow_processor_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_paces", Paces([1e-5] * 90 + [2e-5] * 910))
    runs = Runs(1, [1.0, 1.5, 1.0, 1.5, 1.0], [1.0] * 5, [1e-5, 2e-5, 1.05e-5, 1.2e-5, 1e-5])
    assert runs.undisturbed() == [True, False, True, False, True], "a tenth of the paces says what can be had"
    found = runs.timing_of(runs.seconds)
    assert (found.median_s, found.runs, found.disturbed) == (1.0, 3, pytest.approx(0.4))
    monkeypatch.setattr(timing, "_paces", Paces([1e-5] * 9 + [2e-5] * 991))
    assert runs.undisturbed() == [True] * 5, "what a hundredth had is chance"


def test_the_pace_is_noted_where_the_processor_is_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = Paces()
    monkeypatch.setattr(timing, "_paces", paces)
    runs, others = Runs(1), Runs(None)
    for _ in range(4):
        runs.add(lambda: None)
        others.add(lambda: None)
    assert 0 < min(runs.paces) <= paces.quickest() <= max(runs.paces) < 1
    assert others.paces == []


def test_what_a_processor_can_do_is_looked_up_now_and_then() -> None:
    paces = Paces([2.0])
    assert paces.quickest() == 2.0
    paces.add(1.0)
    assert paces.quickest() == 2.0
    for _ in range(100):
        paces.add(1.0)
    assert paces.quickest() == 1.0
    for _ in range(5000):
        paces.add(3.0)
    assert paces.quickest() == 3.0, "what was long ago is forgotten"


def test_time_runs_leaves_warm_up_and_the_work_between_out() -> None:
    calls: list[str] = []

    def between() -> None:
        calls.append("between")
        time.sleep(2e-3)

    def run() -> None:
        calls.append("run")
        sum(range(2000))

    runs = time_runs(run, Effort(error=0.0, min_runs=3, max_runs=6, warm_up=2), between)
    assert len(runs.seconds) == len(runs.cores) >= 6
    assert calls == ["between", "run"] * (len(runs.seconds) + 2)
    assert sorted(runs.seconds)[3] < 1e-3


def test_garbage_collection_is_restored() -> None:
    assert gc.isenabled()
    seen: list[bool] = []

    def fail() -> None:
        with no_garbage_collection():
            seen.append(gc.isenabled())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [False]
    assert gc.isenabled()


def test_a_devices_own_clock_counts() -> None:
    runs = Runs(None)
    runs.add(lambda: 0.25)
    runs.add(lambda: time.sleep(0.001))
    assert runs.seconds[0] == 0.25
    assert 0.001 <= runs.seconds[1] < 0.25
