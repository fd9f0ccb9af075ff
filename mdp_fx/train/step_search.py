"""What a step of a schedule decides: the structure for its share of the way to the budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mdp_fx.budgets import Budget
from mdp_fx.errors import BudgetError
from mdp_fx.latency.tables import table_for
from mdp_fx.latency.targets import Target
from mdp_fx.outcome import Outcome, SolverOptions
from mdp_fx.passes.base import Stage
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.importance import LayerImportance
from mdp_fx.passes.restrict import named_restrictions
from mdp_fx.predicted_search import search_for
from mdp_fx.train.masks import Masks
from mdp_fx.train.schedule import Schedule, ScheduledBudget
from mdp_fx.whole_network import MeasuredNetwork

_BY_BOTH_SIZES = {"halp": "mdlm", "mgp": "mdp"}
"""The method that prunes the same, with tables by input and output size."""


class StepSearch:
    """Searches for the structure of each step of a schedule.

    Args:
        analysis: of the dense network.
        choices: sizes and blocks to choose from.
        target: where latency counts.
        inputs: example inputs, `batch` of them.
        batch: that latency counts.
        options: of the solver.
        budgets: for the end of the schedule, by what they are of.
        schedule: when to decide, and for which share of the way.
        stage: called with the name of each stage as it starts.
        progress: called with (done, total, text) while measuring.
    """

    def __init__(
        self,
        analysis: Analysis,
        choices: Choices,
        target: Target,
        inputs: tuple[Any, ...],
        batch: int,
        options: SolverOptions,
        budgets: Mapping[str, Budget],
        schedule: Schedule,
        stage: Stage,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._analysis, self._choices, self._target, self._inputs = analysis, choices, target, inputs
        self._batch, self._options, self._budgets = batch, options, budgets
        self._schedule, self._stage, self._progress = schedule, stage, progress
        self._measured: MeasuredNetwork | None = None  # The dense network stays the same from step to step.

    def check_reach(self, scores: Sequence[LayerImportance], masks: Masks) -> None:
        """Checks that the end of the schedule can be reached, as far as this can be told before the first step.

        Raises:
            BudgetError: no structure meets the budgets.
        """
        method = self._options.method
        if self._schedule.steps > 1:
            # Tables by output size hold the inputs at what they are: many steps get lower than one, as far as both do.
            method = _BY_BOTH_SIZES.get(method, method)
        self._search(scores, self._schedule.steps, masks, replace(self._options, method=method), timed=False)

    def choose(self, scores: Sequence[LayerImportance], number: int, masks: Masks) -> Outcome:
        """The structure of a step; that of the last one is timed.

        Raises:
            BudgetError: no structure reaches what the step asks for.
        """
        return self._search(scores, number, masks, self._options, timed=number == self._schedule.steps)

    def _search(
        self, scores: Sequence[LayerImportance], number: int, masks: Masks, options: SolverOptions, *, timed: bool
    ) -> Outcome:
        options = replace(options, at_most=masks.at_most(), removed=masks.gone())
        asked = {
            what: budget
            if number == self._schedule.steps
            else ScheduledBudget(None, None, budget, self._schedule, number)
            for what, budget in self._budgets.items()
        }
        latency, others = asked.pop("latency", None), asked
        with (
            table_for(self._target) as table,
            named_restrictions(options.min_keep, options.fixed, options.keep_blocks),
        ):
            search = search_for(
                *(self._analysis, self._choices, scores, self._target, table, self._inputs, self._batch),
                *(options, self._stage, self._progress),
            )
            try:
                if timed:
                    return search.run(latency, others)
                if latency is not None and self._target.can_run and self._measured is None:
                    self._measured = search.measure()
                return search.plan(latency, others, self._measured)
            except BudgetError as error:
                if self._schedule.steps == 1:
                    raise
                where = f"step {number} of {self._schedule.steps} of the schedule"
                raise BudgetError(f"{where} cannot be taken: {error}", error.smallest) from error
