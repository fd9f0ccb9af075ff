"""Meets a budget on a target that only predicts: what its table says is what counts, and nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from mdp_fx.budget_search import BudgetSearch, absolute_limits, in_users_terms
from mdp_fx.budgets import Budget
from mdp_fx.errors import BudgetError, TargetError
from mdp_fx.latency.measuring import Progress
from mdp_fx.latency.network import Calibration, RegionTables
from mdp_fx.latency.table_options import region_lookups, table_options
from mdp_fx.latency.table_target import TableTarget
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Target
from mdp_fx.outcome import Outcome, SolverOptions
from mdp_fx.passes.base import Stage
from mdp_fx.passes.build_space import Points
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.importance import LayerImportance
from mdp_fx.passes.search_space import SearchSpace
from mdp_fx.report.facts import Prediction, Profile, RegionRow
from mdp_fx.whole_network import MeasuredNetwork


class PredictedSearch(BudgetSearch):
    """Finds a structure that meets the budgets on a table.

    The latency of a network is the sum of its regions: there is nothing to calibrate by, and no second round. What the
    search space says at an offered size is what the table says there.

    Args:
        target: the table where latency counts.
        batch: examples at once.
        others: as those of `BudgetSearch`; `choices` lose the sizes that the table does not have.

    Raises:
        TargetError: the dense network has a convolution outside of the table, or none inside.
        NothingToPruneError: the table has no smaller size for any group, and no block may go.
    """

    def __init__(
        self,
        analysis: Analysis,
        choices: Choices,
        importance: Sequence[LayerImportance],
        target: TableTarget,
        table: LatencyTable,
        inputs: tuple[Any, ...],
        *,
        batch: int,
        options: SolverOptions,
        stage: Stage,
    ) -> None:
        offered = table_options(analysis, choices, target)
        super().__init__(analysis, offered.choices, importance, target, table, inputs, options=options, stage=stage)
        self._held = offered.held
        self._batch = batch
        self._lookups = region_lookups(analysis, offered.choices, target)
        self._table_target = target
        self._dense_s = dense_seconds(analysis, target)

    def run(self, latency: Budget | None, others: Mapping[str, Budget]) -> Outcome:
        """Solves and builds.

        Args:
            latency: the latency budget, None for none.
            others: further budgets by cost name ("params", "macs").

        Raises:
            BudgetError: a budget cannot be met; the message states the smallest reachable value.
            InputError: a restriction names what the network does not have.
        """
        asked = None if latency is None else latency.resolve(self._dense_s)
        if asked is not None and asked > self._dense_s * (1 + 1e-9):
            msg = (
                f"the latency budget of {1e3 * asked:.4g} ms is above the {1e3 * self._dense_s:.4g} ms predicted for "
                f"the dense network on {self._target.name}: nothing needs pruning"
            )
            raise BudgetError(msg)
        space = self._looked_up()
        limits = absolute_limits(space, others) | ({} if asked is None else {"latency": 1e6 * asked})
        space = replace(space, budgets=limits)
        try:
            selection, certificate = self._solve(space)
        except BudgetError as error:
            if asked is None:
                raise
            raise in_users_terms(error, asked, self._dense_s, 1e-6 * error.smallest.get("latency", 0.0)) from error
        module, kept = self._build(selection)
        predicted = sum(self._exact(selection))
        return Outcome(
            module=module,
            kept=kept,
            selection=selection,
            space=space,
            certificate=certificate,
            asked_s=asked,
            predicted_s=predicted,
            dense_sum_s=self._dense_s,
            calibration=None,
            dense=None,
            slim=None,
            rounds=1,
            regions_measured=0,
            regions_cached=0,
            prediction=self.prediction(predicted),
        )

    def plan(
        self, latency: Budget | None, others: Mapping[str, Budget], measured: MeasuredNetwork | None = None
    ) -> Outcome:
        """As `run`, which times nothing."""
        return self.run(latency, others)

    def measured_space(self) -> SearchSpace:
        """What `run` decides on, without a budget: the table takes the place of measurements.

        Raises:
            InputError: a restriction names what the network does not have.
        """
        return self._restricted(self._looked_up())

    def _looked_up(self) -> SearchSpace:
        self._stage("look up cost regions")
        return self._space(RegionTables(self._lookups, 0.0, 0, 0), Calibration(1.0))

    def prediction(self, slim_s: float | None = None) -> Prediction:
        """How far the table goes, with the predicted seconds of the slim network, if there is one."""
        points = {name: points for name, (points, _) in self._lookups.items()}
        return prediction(
            self._analysis, self._table_target, points, self._batch, self._dense_s, slim_s, held=self._held
        )


def search_for(
    analysis: Analysis,
    choices: Choices,
    importance: Sequence[LayerImportance],
    target: Target,
    table: LatencyTable,
    inputs: tuple[Any, ...],
    batch: int,
    options: SolverOptions,
    stage: Stage,
    progress: Progress | None,
) -> BudgetSearch:
    """What finds a structure on a target: by measurements, or on what a table says."""
    known = (analysis, choices, importance)
    if isinstance(target, TableTarget):
        return PredictedSearch(*known, target, table, inputs, batch=batch, options=options, stage=stage)
    return BudgetSearch(*known, target, table, inputs, options=options, stage=stage, progress=progress)


def dense_seconds(analysis: Analysis, target: TableTarget) -> float:
    """Predicted seconds of the dense network.

    Raises:
        TargetError: a convolution lies outside of the table, or the network has none.
    """
    total = sum(target.look_up(region, region.dense_sizes).seconds for region in analysis.regions)
    if not total:
        msg = f"the network has no convolution: {target.name} is a table of convolutions and says nothing of it"
        raise TargetError(msg)
    return total


def prediction(
    analysis: Analysis,
    target: TableTarget,
    points: Mapping[str, Points],
    batch: int,
    dense_s: float,
    slim_s: float | None = None,
    held: tuple[str, ...] = (),
) -> Prediction:
    """How far a table goes for a network.

    Args:
        analysis: the analysed network.
        target: the table.
        points: by region name, the sizes of each axis that were looked up.
        batch: examples at once.
        dense_s: seconds of the dense network, and `slim_s` of the slim one.
        slim_s: None where there is none.
        held: channel groups for which the table has no smaller size.
    """
    macs = {region.name: region.macs(region.dense_sizes) for region in analysis.regions}
    looked_up, guessed = 0, dict[str, int]()
    not_counted = []
    for region in analysis.regions:
        found = [target.look_up(region, at) for at in product(*points[region.name])]
        if not found[0].convolutions:
            not_counted.append(region.name)
            continue
        looked_up += len(found)
        if estimated := sum(each.estimated > 0 for each in found):
            guessed[region.name] = estimated
    return Prediction(
        table=target.fingerprint(),
        batch=batch,
        dense_per_s=batch / dense_s,
        slim_per_s=batch / slim_s if slim_s else None,
        points=looked_up,
        estimated_points=sum(guessed.values()),
        estimated=tuple(guessed),
        fit=str(target.roofline) if target.roofline is not None else None,
        not_counted=tuple(not_counted),
        counted_macs=1 - sum(macs[name] for name in not_counted) / sum(macs.values()),
        held=held,
    )


def predicted_profile(analysis: Analysis, target: TableTarget, batch: int, name: str) -> Profile:
    """Where the time of a network goes, as a table says.

    Raises:
        TargetError: a convolution lies outside of the table, or the network has none.
    """
    dense_s = dense_seconds(analysis, target)
    points = {region.name: tuple((size,) for size in region.dense_sizes) for region in analysis.regions}
    rows = []
    for region in analysis.regions:
        seconds = target.look_up(region, region.dense_sizes).seconds
        kind, macs = region.key.split(" ")[0], round(region.macs(region.dense_sizes))
        rows.append(RegionRow(region.name, kind, 1e3 * seconds, seconds / dense_s, macs))
    return Profile(
        model=name,
        target=target.name,
        device=target.fingerprint(),
        dense_ms=1e3 * dense_s,
        sum_ms=1e3 * dense_s,
        calibration=1.0,
        regions=tuple(rows),
        regions_measured=0,
        regions_cached=0,
        table=target.name,
        prediction=prediction(analysis, target, points, batch, dense_s),
    )
