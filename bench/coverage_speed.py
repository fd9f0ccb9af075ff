"""Seconds and memory of our passes, and Torch-Pruning's seconds, on one network."""

from __future__ import annotations

import gc
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from bench.coverage_row import CheckError, Inputs, Row, explain, halved, run
from bench.peers import Run, count, ours, theirs

REPEATS = 5
REPEAT_SECONDS = 5.0
PEER_SECONDS = 60
PEER_BYTES = 10 * 2**30


class Timing:
    """The best seconds of one tool, of as many runs as fit into REPEAT_SECONDS and at least one.

    Args:
        work: one run.
        facts: where the best seconds are written to, after every run.
    """

    def __init__(self, work: Callable[[], Run], facts: dict[str, Any]) -> None:
        self._work = work
        self._facts = facts
        self._spent = 0.0

    @property
    def wants_more(self) -> bool:
        """Whether another run fits in."""
        repeats = self._facts["repeats"]
        return repeats < REPEATS and self._spent * (repeats + 1) / repeats <= REPEAT_SECONDS

    def run(self) -> nn.Module:
        """Runs the tool once; the pruned network."""
        gc.collect()
        found = self._work()
        self._spent += found.seconds
        self._facts["repeats"] = self._facts.get("repeats", 0) + 1
        self._facts["total"] = min(found.seconds, self._facts.get("total", found.seconds))
        before: Mapping[str, float] = self._facts.get("passes", found.passes)
        self._facts["passes"] = {name: min(seconds, before[name]) for name, seconds in found.passes.items()}
        return found.network


def time_ours(row: Row, model: nn.Module, inputs: Inputs) -> Timing:
    """The first run of our passes from tracing to rewriting, and what it adds to the peak of memory."""
    timing = Timing(lambda: ours(model, inputs, halved), facts := {})
    before = _peak_bytes()
    timing.run()
    growth = _peak_bytes() - before
    stored = sum(value.numel() * value.element_size() for value in (*model.parameters(), *model.buffers()))
    row.data["seconds"] = facts
    row.data["memory"] = {
        "model_bytes": stored,
        "growth_bytes": growth,
        "growth_over_model": growth / max(1, stored),
        "peak_over_peak": (before + growth) / before,
    }
    return timing


def time_theirs(row: Row, model: nn.Module, inputs: Inputs) -> Timing:
    """The first run of Torch-Pruning's build and step.

    Raises:
        CheckError: it does not end with a smaller network that runs.
    """
    dense = run(model, inputs)
    timing = Timing(lambda: theirs(model, inputs, row.data.get("classifiers", ())), facts := {})
    with _limits():
        network = timing.run()
    try:
        pruned = run(network, inputs)
    except Exception as failure:
        raise CheckError(f"its network does not run: {explain(failure)}") from failure
    if [value.shape for value in pruned] != [value.shape for value in dense]:
        raise CheckError("the shape of the output changed")
    share = count(network) / count(model)
    if not share < 1:
        raise CheckError("not one parameter fewer")
    row.data["torch_pruning"] = facts
    facts["parameters"] = share
    return timing


def repeat_in_turn(*timings: Timing | None) -> None:
    """More runs of every tool that can, in turn, so that what else the machine does slows all of them."""
    while waiting := [timing for timing in timings if timing is not None and timing.wants_more]:
        for timing in waiting:
            timing.run()


def _peak_bytes() -> int:
    # Kibibytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _limits() -> Iterator[None]:
    """Ends what takes PEER_SECONDS or PEER_BYTES, so that the rest of the row is found."""

    def give_up(_signal: int, _frame: Any) -> None:
        raise CheckError(f"took more than {PEER_SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_DATA)
    signal.signal(signal.SIGALRM, give_up)
    # Again every second, since a bare except may swallow it.
    signal.setitimer(signal.ITIMER_REAL, PEER_SECONDS, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (PEER_BYTES, before[1]))
    try:
        yield
    except MemoryError as failure:
        raise CheckError(f"took more than {PEER_BYTES >> 30} GiB") from failure
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
