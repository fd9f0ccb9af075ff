"""What is asked of a search for a structure, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from mdp_fx.latency.network import Calibration
from mdp_fx.latency.timing import Timing
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.minlp import Certificate
from mdp_fx.passes.search_space import SearchSpace, Selection
from mdp_fx.report.facts import Prediction


@dataclass(frozen=True)
class SolverOptions:
    """What the solver is asked, see `solve` and `restrict`; `max_removed` counts those of `removed`."""

    method: str = "mdp"
    gap: float = 1e-3
    time_limit: float = 20.0
    seed: int = 0
    min_keep: float | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    keep_blocks: tuple[str, ...] = ()
    max_removed: int | None = None
    at_most: Mapping[str, int] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A slim network that was built, and timed where the target can run it.

    Attributes:
        module: the slim network.
        kept: indices of the kept units, by group.
        selection: sizes and removed blocks.
        space: the search space that it was chosen from, without the user's restrictions, with the budgets that the
            solver was given.
        certificate: what the solver proved. Its latencies and those of `space` and `calibration` are of the speed that
            the machine had before this round.
        asked_s: the latency budget in seconds, None without one.
        predicted_s: predicted latency, from the regions at their exact sizes, at the speed that the machine had when
            `dense` and `slim` were timed; None without a latency budget.
        dense_sum_s: sum of the dense network's regions; None without a latency budget.
        calibration: from the sum of regions to the whole network; None without a latency budget.
        dense: timing of the dense network; None on a target that only predicts.
        slim: timing of the slim one, alternated with the dense one; None on a target that only predicts.
        rounds: how often the solver was asked.
        regions_measured: table points measured now.
        regions_cached: table points that were known.
        prediction: how far the table goes that a target predicts from; None where it measures.
    """

    module: fx.GraphModule
    kept: dict[str, list[int]]
    selection: Selection
    space: SearchSpace
    certificate: Certificate
    asked_s: float | None
    predicted_s: float | None
    dense_sum_s: float | None
    calibration: Calibration | None
    dense: Timing | None
    slim: Timing | None
    rounds: int
    regions_measured: int
    regions_cached: int
    prediction: Prediction | None = None

    @property
    def dense_s(self) -> float:
        """Latency of the dense network: measured, or predicted where nothing is."""
        return self.dense.median_s if self.dense is not None else self.dense_sum_s or 0.0

    @property
    def slim_s(self) -> float:
        """Latency of the slim network: measured, or predicted where nothing is."""
        return self.slim.median_s if self.slim is not None else self.predicted_s or 0.0

    @property
    def ratio(self) -> float:
        """Measured over asked latency."""
        return self.slim_s / self.asked_s if self.asked_s is not None else 0.0

    @property
    def miss(self) -> float:
        """Share by which the prediction is off, to either side."""
        return abs(self.predicted_s / self.slim_s - 1.0) if self.predicted_s is not None else 0.0


def selection_changes(selection: Selection, analysis: Analysis) -> bool:
    """Whether a selection prunes anything at all."""
    return bool(selection.removed_blocks) or any(selection.sizes[group.name] != group.size for group in analysis.groups)
