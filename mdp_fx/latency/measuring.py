"""Fill latency tables, and time whole networks against each other."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import compress

from mdp_fx.latency.ratio import FEWEST_ROUNDS
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import RegionSpec, Runner, Target
from mdp_fx.latency.timing import (
    MOSTLY_DISTURBED,
    Effort,
    Runs,
    Timing,
    no_garbage_collection,
    pinned,
    timing_of,
    undisturbed_rounds,
)

_log = logging.getLogger(__name__)

_REGION_EFFORT = Effort()
_PATIENT_EFFORT = Effort(min_runs=15, max_runs=150, max_time_s=0.4)
_NOISY_SPREAD = 0.1
_MOST_REPEATS = 0.1

Progress = Callable[[int, int, str], None]


def measure_regions(
    regions: Sequence[RegionSpec],
    points: Mapping[str, Sequence[tuple[int, ...]]],
    target: Target,
    table: LatencyTable,
    progress: Progress | None = None,
) -> int:
    """Measure what `table` lacks of the regions at `points`; each measurement is stored as it is made.

    The points are visited in a shuffled order that is the same every time: a machine that gets slower or faster
    while it measures then blurs all regions a little instead of bending one. Points that came out noisy or disturbed
    are measured once more at the end, with more patience: those that blur a network's sum most, up to a tenth of all.

    Args:
        regions: any number of regions; those with equal keys are measured once.
        points: per region key the sizes wanted, one per axis role; () for a region without axes.
        target: where to measure.
        table: what is known, and where to store.
        progress: called after every measurement with (done, total, region key), and once at the start; not where
            nothing is missing.

    Returns:
        How many points were missing.

    Raises:
        ModelError: a region cannot be brought to the target.
        TargetError: the table cannot be written.
        KeyError: `points` names a key that no region has.
    """
    fingerprint = target.fingerprint()
    by_key = {region.key: region for region in regions}
    missing: list[tuple[str, tuple[int, ...]]] = []
    noisy: list[tuple[str, tuple[int, ...], Timing]] = []
    for key, wanted in points.items():
        by_key[key]  # a key without a region is the caller's mistake, better found before an hour of measuring
        known = table.points(fingerprint, key)
        missing.extend((key, sizes) for sizes in dict.fromkeys(wanted) if sizes not in known)
        # A run that was stopped while it measured did not come to those that it had found noisy.
        noisy.extend((key, sizes, known[sizes]) for sizes in dict.fromkeys(wanted) if _may_improve(known.get(sizes)))
    random.Random(0).shuffle(missing)
    total = len(missing)
    if not missing:
        return 0
    if progress is not None:
        progress(0, total, "")
    for done, (key, sizes) in enumerate(missing, start=1):
        timing = target.time_region(by_key[key], sizes, _REGION_EFFORT)
        table.put(fingerprint, key, sizes, timing)
        if _may_improve(timing):
            noisy.append((key, sizes, timing))
        if progress is not None:
            progress(done, total, key)
    noisy.sort(key=lambda entry: (entry[2].spread + entry[2].disturbed) * entry[2].median_s, reverse=True)
    noisy = noisy[: round(total * _MOST_REPEATS) + 1]
    for done, (key, sizes, first) in enumerate(noisy, start=1):
        timing = target.time_region(by_key[key], sizes, _PATIENT_EFFORT)
        if (_mostly_disturbed(timing), timing.median_error) < (_mostly_disturbed(first), first.median_error):
            table.put(fingerprint, key, sizes, timing)
        if progress is not None:
            progress(total + done, total + len(noisy), f"again: {key}")
    _log.info("measured %d points on %s, %d of them noisy", total, target.name, len(noisy))
    return total


def _may_improve(timing: Timing | None) -> bool:
    """Whether a measurement is noisy or disturbed, and was not made with patience."""
    if timing is None or timing.runs > _REGION_EFFORT.max_runs:
        return False
    return timing.spread > _NOISY_SPREAD or _mostly_disturbed(timing)


def _mostly_disturbed(timing: Timing) -> bool:
    return timing.disturbed > MOSTLY_DISTURBED


def compare(
    runners: Mapping[str, Runner],
    min_time_s: float = 0.5,
    max_time_s: float = 20.0,
    error: float = 0.005,
    min_runs: int = 10,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time several networks in the same run, see `time_in_turn` and `timings_of`."""
    return timings_of(time_in_turn(runners, min_time_s, max_time_s, error, min_runs, seed))


def timings_of(rounds: Mapping[str, Runs]) -> dict[str, Timing]:
    """Summaries of networks that were timed in turn, all of them from the same rounds.

    Rounds count in which no network lost its processor to another process; all of them do where those are too few. A
    short run gets through undisturbed more often than a long one: each for itself would not be comparable.
    """
    good = undisturbed_rounds(rounds.values())
    return {name: timing_of(runs.seconds, good, FEWEST_ROUNDS // 2) for name, runs in rounds.items()}


def time_in_turn(
    runners: Mapping[str, Runner],
    min_time_s: float = 0.5,
    max_time_s: float = 20.0,
    error: float = 0.005,
    min_runs: int = 10,
    seed: int = 0,
) -> dict[str, Runs]:
    """Time several networks in rounds of one inference each, in a new random order every round.

    What slows the machine down for a while then slows all of them alike, and the ratios keep.

    Args:
        runners: what to time, by name.
        min_time_s: seconds that each of them runs at least.
        max_time_s: seconds for all together, after which no further round starts (`min_runs` granted).
        error: stop when every median's standard error is below this share of it, by the rounds that count (see
            `timings_of`).
        min_runs: such rounds at least.
        seed: of the random order.

    Returns:
        By name every timed run; those at one place of their lists were made in one round.
    """
    order = list(runners)
    shuffle = random.Random(seed).shuffle
    runs = {name: Runs(runners[name].threads) for name in runners}
    with no_garbage_collection(), pinned(next((each.core for each in runners.values()), None)):
        for _ in range(3):  # the first inferences allocate buffers and wake threads
            for name in order:
                runners[name]()
        started = time.perf_counter()
        while order:
            shuffle(order)
            for name in order:
                runs[name].add(runners[name])
            elapsed = time.perf_counter() - started
            if elapsed > max_time_s and len(runs[order[0]].seconds) >= min_runs:
                break
            if all(sum(each.seconds) >= min_time_s for each in runs.values()) and _steady(runs, min_runs, error):
                break
    return runs


def _steady(runs: Mapping[str, Runs], min_runs: int, error: float) -> bool:
    """Whether so many rounds count, and every median of them is known to within `error` of it."""
    good = undisturbed_rounds(runs.values())
    if sum(good) < min_runs:
        return False
    return all(Timing.of(list(compress(each.seconds, good))).median_error < error for each in runs.values())
