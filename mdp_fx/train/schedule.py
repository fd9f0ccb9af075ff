"""Schedules of pruning: when a structure is chosen, and which share of the dense latency is asked for, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mdp_fx.budgets import Budget
from mdp_fx.errors import InputError, one_of
from mdp_fx.passes.arguments import check_whole

Curve = Literal["linear", "exp", "exp2"]
CURVES: tuple[str, ...] = get_args(Curve)

EXP_RATE = 0.05
"""Decay per step of the "exp" curve, as in SMCP."""


@dataclass(frozen=True)
class Schedule:
    """When a structure is chosen, and how far each choice goes.

    Importance is gathered over the `gather` iterations before each step. Step k of K comes after `start + gather +
    (k - 1) * every` iterations and asks for the share of the dense network's cost that the curve has at k:

        linear  1 - (1 - target) k / K
        exp     1 - (1 - target) (1 - e^(-0.05 k)) / (1 - e^(-0.05 K))     SMCP (arXiv 2211.02206)
        exp2    target^(k / K)                                              FORCE (arXiv 2006.09081), HALP and SMCP

    One step asks for the target at once whatever the curve.

    Attributes:
        steps: K, 1 for one-shot.
        curve: "linear", "exp" or "exp2".
        start: iterations before any gradient is looked at.
        gather: iterations that importance is gathered over before a step.
        every: iterations from one step to the next, at least `gather`; None for `gather`.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 1
    curve: str = "exp2"
    start: int = 0
    gather: int = 1
    every: int | None = None

    def __post_init__(self) -> None:
        if self.curve not in CURVES:
            raise InputError(f"unknown curve {self.curve!r} of a schedule{one_of(self.curve, CURVES, 'there are')}")
        check_whole("steps of the schedule", self.steps, 1)
        check_whole("start of the schedule", self.start, 0)
        check_whole("gather of the schedule", self.gather, 1)
        if self.every is not None:
            check_whole("every of the schedule", self.every, 1)
            if self.every < self.gather:
                raise InputError(
                    f"the schedule takes a step every {self.every} iterations and gathers importance over "
                    f"{self.gather}: gather over at most as many as lie between two steps"
                )

    @property
    def interval(self) -> int:
        """Iterations from one step to the next."""
        return self.gather if self.every is None else self.every

    @property
    def iterations(self) -> int:
        """Iterations up to the last step."""
        return self.ends(self.steps)

    def ends(self, number: int) -> int:
        """How many iterations are done when a step, counted from 1, comes."""
        return self.start + self.gather + (number - 1) * self.interval

    def gathers(self, iteration: int, number: int) -> bool:
        """Whether importance is gathered in an iteration, counted from 0, when step `number` is the next one."""
        return number <= self.steps and self.ends(number) - self.gather <= iteration < self.ends(number)

    def share(self, number: int, target: float) -> float:
        """Share of the dense cost that a step asks for on the way to a target share."""
        if number >= self.steps:
            return target
        if self.curve == "linear":
            return 1 - (1 - target) * number / self.steps
        if self.curve == "exp":
            return 1 - (1 - target) * math.expm1(-EXP_RATE * number) / math.expm1(-EXP_RATE * self.steps)
        return float(target ** (number / self.steps))

    def check(self, iterations: int) -> None:
        """Checks that training lasts long enough.

        Raises:
            InputError: it ends before the last step.
        """
        if self.iterations > iterations:
            raise InputError(
                f"the schedule cannot reach its target: its last step comes after {self.iterations} iterations, and "
                f"training has {iterations}; train longer, or lower steps, start, gather or every"
            )


@dataclass(frozen=True)
class ScheduledBudget(Budget):
    """What a step asks for on the way to a budget.

    Attributes:
        target: the budget at the end.
        schedule: the way.
        number: of the step, counted from 1.
    """

    target: Budget = Budget(share=1.0)  # noqa: RUF009 - immutable
    schedule: Schedule = Schedule()
    number: int = 1

    def resolve(self, dense: float) -> float:
        """The limit in absolute terms."""
        return dense * self.schedule.share(self.number, self.target.resolve(dense) / dense)
