"""Meets a measured budget: solve, measure what was chosen, correct the model, solve again."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import fx

from mdp_fx import whole_network
from mdp_fx.budgets import Budget
from mdp_fx.errors import BudgetError
from mdp_fx.latency.measuring import Progress
from mdp_fx.latency.network import Calibration, RegionTables, region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Runner, Target
from mdp_fx.latency.timing import Timing
from mdp_fx.outcome import Outcome, SolverOptions, selection_changes
from mdp_fx.passes.base import Stage
from mdp_fx.passes.build_space import build_space, unit_order
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.importance import LayerImportance
from mdp_fx.passes.minlp import Certificate, solve
from mdp_fx.passes.restrict import restrict, with_removed
from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate, share_of
from mdp_fx.pipeline import rewrite
from mdp_fx.whole_network import MeasuredNetwork, exact_seconds

_log = logging.getLogger(__name__)

MOST_ROUNDS = 3
MOST_CORRECTIONS = 4
AGREED = 0.005
"""Share by which the tables may err on what was chosen from them."""
AIM = 0.99
"""Share of the asked latency that is aimed at: a measured latency scatters to both sides."""
UNDER, OVER = 0.965, 1.02
"""Measured over asked latency with which a round is good enough."""
MISS = 0.04
"""Share that a prediction may be off in such a round: a model that is further off chose for the wrong costs."""


class BudgetSearch:
    """Finds a structure that meets the budgets on a target.

    Args:
        analysis: the analysed network.
        choices: what may be pruned.
        importance: scores by layer and group.
        target: where latency counts.
        table: latency table of that target.
        inputs: example inputs at the batch asked for.
        options: what the solver is asked.
        stage: told of each stage.
        progress: told of each measurement.
    """

    def __init__(
        self,
        analysis: Analysis,
        choices: Choices,
        importance: Sequence[LayerImportance],
        target: Target,
        table: LatencyTable,
        inputs: tuple[Any, ...],
        *,
        options: SolverOptions,
        stage: Stage,
        progress: Progress | None = None,
    ) -> None:
        self._analysis = analysis
        self._choices = choices
        self._importance = importance
        self._target = target
        self._table = table
        self._inputs = inputs
        self._options = options
        self._stage = stage
        self._progress = progress
        self._order = unit_order(importance, analysis.groups)

    def run(self, latency: Budget | None, others: Mapping[str, Budget]) -> Outcome:
        """Solves, builds and times until the measured latency is right, at most three rounds.

        Args:
            latency: the latency budget, None for none. A share is one of the dense latency in the same round; seconds
                are those of the speed that the machine has in it.
            others: further budgets by cost name ("params", "macs").

        Raises:
            BudgetError: a budget cannot be met; the message states the smallest reachable value.
            InputError: a restriction names what the network does not have.
        """
        unmeasured = self._space()
        self._restricted(unmeasured)  # What is restricted must be there before anything is measured.
        with self._dense_runner() as dense_runner:
            if latency is None:
                return self._without_latency(dense_runner, unmeasured, others)
            return self._within_latency(dense_runner, latency, others)

    def measure(self) -> MeasuredNetwork:
        """What `plan` needs to know of the dense network, which stays the same for every plan of it."""
        with self._dense_runner() as dense_runner:
            return self._measure(dense_runner)

    def plan(
        self, latency: Budget | None, others: Mapping[str, Budget], measured: MeasuredNetwork | None = None
    ) -> Outcome:
        """What `run` begins with: a structure of the right predicted latency, built and not timed.

        Args:
            latency: as in `run`.
            others: as in `run`.
            measured: what `measure` gave, for a search with a latency budget.

        Raises:
            BudgetError: a budget cannot be met; the message states the smallest reachable value.
            InputError: a restriction names what the network does not have.
        """
        unmeasured = self._space()
        self._restricted(unmeasured)
        if latency is None:
            return self._without_latency(None, unmeasured, others)
        measured = measured or self.measure()
        calibration, asked = measured.calibration, self._asked(latency, measured.whole_s)
        space, selection, certificate, exact = self._choose_within(asked, measured.whole_s, calibration, others)
        module, kept = self._build(selection)
        tables, predicted = measured.tables, calibration.whole(exact)
        known = (asked, predicted, measured.sum_s, calibration, None, None, 1, tables.measured, tables.cached)
        return Outcome(module, kept, selection, space, certificate, *known)

    def measured_space(self) -> SearchSpace:
        """What the first round would be asked of a network never pruned before, without a budget.

        Raises:
            InputError: a restriction names what the network does not have.
        """
        self._restricted(self._space())
        calibration = self.measure().calibration
        return self._restricted(self._space(self._tables(), calibration))

    @contextmanager
    def _dense_runner(self) -> Iterator[Runner]:
        self._stage("prepare the dense network")
        with whole_network.dense_runner(self._analysis, self._target, self._inputs) as runner:
            yield runner

    def _measure(self, dense_runner: Runner) -> MeasuredNetwork:
        parts = (self._analysis, self._choices, self._target, self._table, self._inputs, dense_runner)
        return whole_network.measure_network(*parts, stage=self._stage, progress=self._progress)

    def _without_latency(
        self, dense_runner: Runner | None, space: SearchSpace, others: Mapping[str, Budget]
    ) -> Outcome:
        space = replace(space, budgets=absolute_limits(space, others))
        selection, certificate = self._solve(space)
        module, kept = self._build(selection)
        dense, slim = self._time(dense_runner, module) if dense_runner is not None else (None, None)
        return Outcome(module, kept, selection, space, certificate, None, None, None, None, dense, slim, 1, 0, 0)

    def _within_latency(self, dense_runner: Runner, latency: Budget, others: Mapping[str, Budget]) -> Outcome:
        measured = self._measure(dense_runner)
        tables, dense_s, calibration = measured.tables, measured.whole_s, measured.calibration
        self._asked(latency, dense_s)
        # Shares of the dense latency that was timed in turn: the machine's speed may change between two rounds. (Not
        # so for regions, which are timed alone.)
        shares = [(parts, seconds / dense_s) for parts, seconds in measured.calibrating]
        best: Outcome | None = None
        for attempt in range(1, MOST_ROUNDS + 1):
            asked = latency.resolve(dense_s)
            try:
                chosen = self._choose_within(asked, dense_s, calibration, others)
            except BudgetError:
                if best is not None and best.ratio <= OVER:
                    break  # The corrected model says that no structure comes closer than the best so far.
                raise
            space, selection, certificate, exact = chosen
            module, kept = self._build(selection)
            dense, slim = self._time(dense_runner, module)
            speed = dense.median_s / dense_s
            predicted_s = speed * calibration.whole(exact)
            outcome = Outcome(
                module=module,
                kept=kept,
                selection=selection,
                space=space,
                certificate=certificate,
                asked_s=latency.resolve(dense.median_s),
                predicted_s=predicted_s,
                dense_sum_s=measured.sum_s,
                calibration=calibration,
                dense=dense,
                slim=slim,
                rounds=attempt,
                regions_measured=tables.measured,
                regions_cached=tables.cached,
            )
            _log.info(
                "round %d: asked %.3f ms, table %.3f, predicted %.3f, measured %.3f, dense %.3f",
                attempt,
                1e3 * speed * asked,
                1e-3 * speed * certificate.costs["latency"],
                1e3 * predicted_s,
                1e3 * slim.median_s,
                1e3 * dense.median_s,
            )
            best = outcome if best is None or _better(outcome, best) else best
            settled = UNDER <= outcome.ratio <= OVER and outcome.miss <= MISS
            if settled or (outcome.ratio <= OVER and not selection_changes(selection, self._analysis)):
                break
            dense_s = dense.median_s
            shares.append((exact, slim.median_s / dense_s))
            networks = ((parts, share * dense_s) for parts, share in shares)
            calibration = Calibration.through(*networks, chosen=attempt)
        assert best is not None
        return replace(best, rounds=attempt)

    def _asked(self, latency: Budget, dense_s: float) -> float:
        """Seconds of a latency budget.

        Raises:
            BudgetError: the dense network takes no more.
        """
        if latency.amount is not None and latency.amount > dense_s:
            msg = (
                f"the latency budget of {1e3 * latency.amount:.4g} ms is above the {1e3 * dense_s:.4g} ms of the dense "
                f"network on {self._target.name}: nothing needs pruning"
            )
            raise BudgetError(msg)
        return latency.resolve(dense_s)

    def _choose_within(
        self, asked_s: float, dense_s: float, calibration: Calibration, others: Mapping[str, Budget]
    ) -> tuple[SearchSpace, Selection, Certificate, Collection[float]]:
        """What `_choose` gives for an asked latency; that it cannot be met is said in the user's terms."""
        try:
            return self._choose(calibration, others, 1e6 * asked_s * AIM)
        except BudgetError as error:
            reach = 1e-6 * error.smallest.get("latency", 0.0) / AIM
            raise in_users_terms(error, asked_s, dense_s, reach) from error

    def _choose(
        self, calibration: Calibration, others: Mapping[str, Budget], limit_us: float
    ) -> tuple[SearchSpace, Selection, Certificate, Collection[float]]:
        """What the solver chooses under tables that hold what was measured of its choice, and seconds of its regions.

        A solver picks what the tables make too cheap. What it picked is measured exactly, which corrects the tables,
        and it is asked again, until the tables say of its choice what measuring says. A method whose model is not the
        tables (halp, mgp) is asked for what makes its choice really take as long as was asked.
        """
        bias, within = 1.0, 1.0
        tried: list[tuple[float, SearchSpace, Selection, Certificate, Collection[float]]] = []
        for _ in range(MOST_CORRECTIONS):
            space = self._space(self._tables(), calibration)
            space = replace(space, budgets=absolute_limits(space, others) | {"latency": bias * limit_us})
            selection, certificate = self._solve(space)
            self._stage("measure the chosen regions")
            exact = self._exact(selection)
            predicted_us = 1e6 * calibration.whole(exact)
            told_us, modelled_us = certificate.costs["latency"], certificate.modelled_costs["latency"]
            share = predicted_us / limit_us
            tried.append((share, space, selection, certificate, exact))
            modelled_truly = abs(modelled_us / told_us - 1.0) <= AGREED
            if abs(told_us / predicted_us - 1.0) <= AGREED and (modelled_truly or UNDER <= share <= 1.0 + AGREED):
                break
            if not modelled_truly and share <= 1.0:
                bias, within = bias / share, bias
            elif not modelled_truly:
                bias = (bias * within) ** 0.5
        # Of those that really fit, the one that keeps most; else the last, which is the best informed.
        fitting = [each for each in tried if each[0] <= 1.0 + AGREED]
        best = max(fitting, key=lambda each: each[3].objective) if fitting else tried[-1]
        _, space, selection, certificate, exact = best
        return space, selection, certificate, exact

    def _tables(self) -> RegionTables:
        return region_tables(self._analysis, self._choices, self._target, self._table, progress=self._progress)

    def _space(self, tables: RegionTables | None = None, calibration: Calibration | None = None) -> SearchSpace:
        """The search space, without latency where it was not measured."""
        latency = {}
        if tables is not None and calibration is not None:
            latency = {
                name: (points, 1e6 * calibration.of_regions(each)) for name, (points, each) in tables.seconds.items()
            }
        return build_space(self._analysis, self._choices, self._importance, latency)

    def _restricted(self, space: SearchSpace) -> SearchSpace:
        options = self._options
        return restrict(
            space,
            min_keep=options.min_keep,
            fixed=options.fixed,
            keep_blocks=options.keep_blocks,
            at_most=options.at_most,
            removed=options.removed,
        )

    def _solve(self, space: SearchSpace) -> tuple[Selection, Certificate]:
        self._stage("solve")
        options = self._options
        selection, certificate = solve(
            self._restricted(space),
            space.budgets,
            method=options.method,
            gap=options.gap,
            time_limit=options.time_limit,
            threads=self._target.threads,
            seed=options.seed,
            max_removed=None if options.max_removed is None else options.max_removed - len(options.removed),
        )
        return with_removed(space, selection, options.removed), certificate

    def _build(self, selection: Selection) -> tuple[fx.GraphModule, dict[str, list[int]]]:
        self._stage("rewrite")
        kept = {
            group.name: sorted(int(unit) for unit in self._order[group.name][: selection.sizes[group.name]])
            for group in self._analysis.groups
        }
        return rewrite(self._analysis, kept, selection.removed_blocks), kept

    def _time(self, dense_runner: Runner, module: fx.GraphModule) -> tuple[Timing, Timing]:
        self._stage("time dense and slim in turn")
        runner = self._target.prepare(module, self._inputs)
        try:
            timings = whole_network.time_networks({"dense": dense_runner, "slim": runner})
        finally:
            runner.close()
        return timings["dense"], timings["slim"]

    def _exact(self, selection: Selection) -> Collection[float]:
        """Seconds of each region that is left, at exactly its sizes."""
        return exact_seconds(self._analysis, selection, self._target, self._table).values()


def in_users_terms(error: BudgetError, asked_s: float, dense_s: float, reach_s: float) -> BudgetError:
    """What the solver was asked differs from what the user asked by the aim and the calibration."""
    if reach_s <= asked_s:
        return error  # Another budget is what cannot be met.

    asked, reach = (share_of(1e6 * s, "us", 1e6 * dense_s, r) for s, r in ((asked_s, math.floor), (reach_s, math.ceil)))
    message = f"the latency budget of {asked} cannot be met: the smallest reachable is {reach}"
    return BudgetError(message, error.smallest)


def absolute_limits(space: SearchSpace, others: Mapping[str, Budget]) -> dict[str, float]:
    """Budgets in absolute terms.

    Raises:
        BudgetError: one is above what the dense network has.
    """
    dense = evaluate(space, space.unpruned())
    limits = {name: budget.resolve(dense[name]) for name, budget in others.items()}
    for name, limit in limits.items():
        if limit > dense[name] * (1 + 1e-9):
            msg = f"the {name} budget of {limit:,.0f} is above the {dense[name]:,.0f} of the dense network"
            raise BudgetError(f"{msg}: nothing needs pruning")
    return limits


def _better(new: Outcome, old: Outcome) -> bool:
    """Closest to the asked latency, which up to `OVER` counts as met, and as predicted.

    Further above it only where nothing is near or below.
    """

    def distance(outcome: Outcome) -> float:
        over = outcome.ratio - 1.0
        return (3 * over if over > OVER - 1.0 else abs(over)) + max(0.0, outcome.miss - MISS)

    return distance(new) < distance(old)
