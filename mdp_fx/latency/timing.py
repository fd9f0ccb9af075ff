"""What a set of timed runs amounts to, and when to stop timing."""

from __future__ import annotations

import gc
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import compress, count

import numpy as np

_FINE_CLOCK_S = 1e-5  # where processor time ticks in milliseconds (Windows) it cannot tell
_KEPT_SHARE = 0.95
_FEWEST_GOOD = 3
MOSTLY_DISTURBED = 0.9
"""Share of disturbed runs above which what is left tells little."""

_PATIENCE = 3  # times the usual limit, while too few runs are undisturbed
_SLOW = 1.1  # times the quickest pace
_QUICKEST = 0.05  # quantile of the latest paces
_LATEST = 2000
_LOOKED_UP = 50  # paces after which the quantile is taken again
_WORK, _RESULT = np.full((32, 32), 0.5, np.float32), np.empty((32, 32), np.float32)  # in the first cache, and stays


@dataclass(frozen=True)
class Timing:
    """Time of one thing, from several runs.

    Attributes:
        median_s: median in seconds.
        p90_s: 90th percentile in seconds.
        low_s: lower quartile in seconds. Interference by other processes only ever adds time, so on a busy machine
            this is steadier than the median; on an idle one the two agree.
        spread: interquartile range over the median.
        runs: how many runs were timed.
        disturbed: share of all runs that were disturbed (see `Runs.undisturbed`); those are not among `runs`, unless
            there were too few others. A table does not keep it.
    """

    median_s: float
    p90_s: float
    low_s: float
    spread: float
    runs: int
    disturbed: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarise `samples`, seconds.

        Raises:
            ValueError: there are none.
        """
        if not samples:
            message = "no samples to summarise"
            raise ValueError(message)
        low, median, high, p90 = np.quantile(np.asarray(samples), (0.25, 0.5, 0.75, 0.9))
        spread = float((high - low) / median) if median > 0 else 0.0
        return cls(float(median), float(p90), float(low), spread, len(samples))

    @property
    def median_error(self) -> float:
        """Standard error of the median over the median, from the interquartile range (as if normal)."""
        # sigma = IQR / 1.349, and the median's standard error is 1.2533 sigma / sqrt(n)
        return 1.2533 * self.spread / 1.349 / math.sqrt(self.runs)


@dataclass(frozen=True)
class Effort:
    """How long to go on timing.

    Attributes:
        error: stop when the standard error of the median is below this share of it.
        min_runs: but not before this many runs,
        max_runs: and at the latest after this many,
        max_time_s: or after this many seconds, whichever is first, `min_runs` granted.
        warm_up: runs thrown away at the start.
    """

    error: float = 0.008
    min_runs: int = 7
    max_runs: int = 40
    max_time_s: float = 0.15
    warm_up: int = 2


@dataclass
class Runs:
    """Timed runs, in the order they were made.

    Attributes:
        threads: how many processor cores each was meant to have; None where that says nothing about disturbance.
        seconds: of each, by the clock.
        cores: processor time over wall-clock time of each: how many cores it did have.
        paces: of the processor after each (see `pace`), if it was looked at.
    """

    threads: int | None = 1
    seconds: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)

    def add(self, run: Callable[[], object]) -> None:
        """Run once, and note the time: what a device's own clock says, where `run` returns that, else the wall's."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        answer = run()
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
        self.seconds.append(answer if isinstance(answer, float) else seconds)
        self.cores.append(cpu_seconds / max(seconds, 1e-9))
        if self.threads is not None:
            self.paces.append(pace())

    def undisturbed(self) -> list[bool]:
        """Which runs kept their cores throughout, at full pace, as a mask.

        A run of one thread whose processor time falls short of the clock's was put aside for another process. Several
        threads may sleep of their own accord, so theirs is compared with the upper quartile of the runs. A run after
        which the processor is slower than it can be was probably made while it was.
        """
        if self.threads is None:
            return [True] * len(self.seconds)
        good = [True] * len(self.seconds)
        if time.get_clock_info("process_time").resolution <= _FINE_CLOCK_S:
            full = 1.0 if self.threads == 1 or not self.cores else float(np.quantile(self.cores, 0.75))
            good = [cores >= _KEPT_SHARE * full for cores in self.cores]
        if self.paces:
            limit = _SLOW * _paces.quickest()
            good = [each and seconds <= limit for each, seconds in zip(good, self.paces, strict=True)]
        return good

    def timing_of(self, values: Sequence[float]) -> Timing:
        """Summarise one value per run (its seconds, or a part of them), of undisturbed runs if those are enough."""
        return timing_of(values, self.undisturbed(), _FEWEST_GOOD)

    def settled(self, started: float, effort: Effort) -> bool:
        """Whether these runs, timed since `started` (`time.perf_counter`), are enough."""
        good = list(compress(self.seconds, self.undisturbed()))
        elapsed = time.perf_counter() - started
        if len(good) < effort.min_runs:
            return len(self.seconds) >= effort.min_runs and elapsed > _PATIENCE * effort.max_time_s
        if len(good) >= effort.max_runs or elapsed > effort.max_time_s:
            return True
        return Timing.of(good).median_error < effort.error


def pace() -> float:
    """Seconds that the processor takes now for a small piece of work, which is always the same.

    What shares the processor with others (the second thread of its core, guests of the same host, clocks that follow
    the heat) is slower by up to a half for some tenths of a second at a time, and processor time does not tell.
    """
    for _ in range(2):  # the first time it may have to fetch its code
        begin = time.perf_counter()
        for _ in range(8):
            np.matmul(_WORK, _WORK, out=_RESULT)
        seconds = time.perf_counter() - begin
    _paces.add(seconds)
    return seconds


class Paces:
    """The latest paces of a processor, of all that a process times: what it can do is found once."""

    def __init__(self, latest: Iterable[float] = ()) -> None:
        self._latest = deque(latest, maxlen=_LATEST)
        self._quickest: float | None = None
        self._since = 0

    def add(self, seconds: float) -> None:
        """Takes note of one."""
        self._latest.append(seconds)
        self._since += 1

    def quickest(self) -> float:
        """What the processor can do, some of the time."""
        if self._quickest is None or self._since >= _LOOKED_UP:
            self._quickest, self._since = float(np.quantile(self._latest, _QUICKEST)), 0
        return self._quickest


_paces = Paces()


def undisturbed_rounds(networks: Iterable[Runs]) -> list[bool]:
    """Of networks that were timed in turn, the rounds in which none was disturbed."""
    return [all(each) for each in zip(*(runs.undisturbed() for runs in networks), strict=True)]


def timing_of(values: Sequence[float], good: Sequence[bool], fewest: int) -> Timing:
    """Summarise the good values, or all of them where fewer than `fewest` are good."""
    kept = list(compress(values, good))
    timing = Timing.of(kept if len(kept) >= fewest else values)
    return replace(timing, disturbed=1.0 - len(kept) / len(values))


def time_runs(
    run: Callable[[], object],
    effort: Effort,
    between: Callable[[], object] | None = None,
    threads: int | None = 1,
    core: int | None = None,
) -> Runs:
    """Time `run` until the median is steady; `between` goes before every run, untimed.

    On a busy machine it goes on for longer, for enough runs that nothing else got in the way of. The thread stays
    on the processor `core`, if given.

    Returns:
        Every run after the `effort.warm_up` first ones.
    """
    runs = Runs(threads)
    with no_garbage_collection(), pinned(core):
        started = time.perf_counter()
        for index in count():
            if between is not None:
                between()
            if index < effort.warm_up:
                run()
                continue
            runs.add(run)
            if runs.settled(started, effort):
                break
    return runs


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keep this thread on one processor: it finds its caches again. None leaves it where it likes."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
