"""Schedules of pruning: which latency is asked for at which iteration, as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mdp_fx.errors import InputError, one_of

EXP_RATE = 0.05
"""Decay per step of the "exp" schedule, as in SMCP."""

# Share of the dense latency asked for when a share `done` of the steps is done, for a target share `target`.
_CURVES: dict[str, Callable[[float, float, int], float]] = {
    "linear": lambda done, target, steps: 1 - (1 - target) * done,
    "exp": lambda done, target, steps: (
        1 - (1 - target) * math.expm1(-EXP_RATE * steps * done) / math.expm1(-EXP_RATE * steps)
    ),
    "exp2": lambda done, target, steps: target**done,
}
CURVES: tuple[str, ...] = tuple(_CURVES)


@dataclass(frozen=True)
class Schedule:
    """When a structure is chosen, and how far each choice goes.

    Importance is gathered over the `gather` iterations before each step. Step k of K comes after `start + gather +
    (k - 1) * every` iterations and asks for the share of the dense latency that the curve gives at k / K:

        linear  1 - (1 - target) k / K
        exp     1 - (1 - target) (1 - e^(-0.05 k)) / (1 - e^(-0.05 K))     SMCP (arXiv 2211.02206): "exp"
        exp2    target^(k / K)                                              FORCE (arXiv 2006.09081), HALP, SMCP: "exp2"

    One step asks for the target at once whatever the curve.

    Attributes:
        steps: K, 1 for one-shot.
        curve: "linear", "exp" or "exp2".
        start: iterations before any gradient is looked at.
        gather: iterations that importance is gathered over before a step.
        every: iterations from one step to the next; `gather` where it is None.
    """

    steps: int = 1
    curve: str = "exp2"
    start: int = 0
    gather: int = 1
    every: int | None = None
