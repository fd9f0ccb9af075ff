"""One row of a latency table, and which numbers make sense in it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from mdp_fx.latency.timing import Timing


@dataclass(frozen=True)
class Measurement:
    """One row: the timing of one region at one set of sizes.

    Attributes:
        fingerprint: device, runtime and method.
        region: key of the region.
        sizes: one for each of its axes.
        timing: what was measured.
        measured_at: when, in seconds since 1970; None where that is not known.
    """

    fingerprint: str
    region: str
    sizes: tuple[int, ...]
    timing: Timing
    measured_at: float | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong with its numbers, whatever their types; None where nothing is."""
        timing = self.timing
        times = {"low": timing.low_s, "median": timing.median_s, "p90": timing.p90_s}
        others = {"spread": timing.spread, "time of measurement": 0.0 if self.measured_at is None else self.measured_at}
        for name, value in (times | others).items():
            if not is_amount(value):
                return f"{name} {value!r} is no number of at least 0"
        if not timing.low_s <= timing.median_s <= timing.p90_s:
            return f"low {timing.low_s!r}, median {timing.median_s!r} and p90 {timing.p90_s!r} s are in no order"
        if not isinstance(timing.runs, int) or timing.runs < 1:
            return f"runs {timing.runs!r} is no whole number above 0"
        return None


def is_amount(value: object) -> bool:
    """Whether a value is a finite number of at least 0."""
    return isinstance(value, int | float) and isfinite(value) and value >= 0
