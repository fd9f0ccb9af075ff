"""A network on a target as a whole, beside the sum of its regions: what the sum does not say."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from mdp_fx.errors import ModelError
from mdp_fx.latency.measuring import Progress, compare
from mdp_fx.latency.network import Calibration, Left, Measured, RegionTables, exact_sum, exact_sums, region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Runner, Target
from mdp_fx.latency.timing import Timing
from mdp_fx.passes.base import Stage
from mdp_fx.passes.build_space import build_space
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.search_space import Selection, evaluate, normalise, violations
from mdp_fx.pipeline import rewrite

SLIM_SHARE = 0.25
"""Share of its units that every channel group has in one of the networks that calibrate."""
MIXED_SHARES = (0.8, 0.65, 0.5, 0.35)
"""Share of its units that a channel group has on average in the others that calibrate."""
_SPREAD = 0.3  # about the average: sizes that fit each other badly cost more than their regions say
_REMOVED = 0.25  # of the multiply-accumulates, at most, are those of the blocks that are removed
_FEWEST_RUNS = 5  # of each beside the dense one, which runs for all of them

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredNetwork:
    """A dense network on a target.

    Attributes:
        tables: of its regions at every size in play.
        regions_s: seconds of each region at its dense sizes.
        whole_s: seconds of the whole, median.
        calibrating: the dense network, and slim ones of it that were timed in turn with it.
    """

    tables: RegionTables
    regions_s: dict[str, float]
    whole_s: float
    calibrating: tuple[Measured, ...]

    @property
    def sum_s(self) -> float:
        """Seconds of all its regions."""
        return sum(self.regions_s.values())

    @property
    def calibration(self) -> Calibration:
        """What fits the networks that calibrate."""
        return Calibration.through(*self.calibrating)


@contextmanager
def dense_runner(analysis: Analysis, target: Target, inputs: tuple[Any, ...]) -> Iterator[Runner]:
    """The dense network as it was traced, ready to run on a target."""
    runner = target.prepare(rewrite(analysis, {}, ()), inputs)
    try:
        yield runner
    finally:
        runner.close()


def measure_network(
    analysis: Analysis,
    choices: Choices,
    target: Target,
    table: LatencyTable,
    inputs: tuple[Any, ...],
    runner: Runner,
    *,
    stage: Stage,
    progress: Progress | None = None,
) -> MeasuredNetwork:
    """Measures what `table` lacks of a network's regions, then the dense network and slim ones of it.

    What a network takes beyond its regions is in part the same for every region (calls, what the caches lose), in part
    a share. The dense network alone cannot tell these apart, and of few slim ones each would bend what is found by what
    only it has.

    Raises:
        ModelError: the target refuses some region, or every slim network.
    """
    stage("measure cost regions")
    tables = region_tables(analysis, choices, target, table, progress=progress)
    stage("measure the regions of slim networks")
    selections = calibrating_selections(analysis, choices)
    left = [_left(analysis, each) for each in (Selection({}, ()), *selections)]
    dense, *parts = exact_sums(left, target, table, progress)
    stage("time the dense network and slim ones")
    seconds: list[float] = []
    shares: list[tuple[Collection[float], float]] = []
    refused: list[ModelError] = []
    for each, selection in zip(parts, selections, strict=True):
        kept = {group: range(size) for group, size in selection.sizes.items()}
        try:
            slim = target.prepare(rewrite(analysis, kept, selection.removed_blocks), inputs)
        except ModelError as error:
            # That a network of no use to anyone does not run need not be the end.
            _log.info("not among the networks that calibrate: %s", error)
            refused.append(error)
            continue
        with closing(slim):
            timings = time_networks({"dense": runner, "slim": slim}, min_runs=_FEWEST_RUNS)
        seconds.append(timings["dense"].median_s)
        shares.append((each.values(), timings["slim"].median_s / timings["dense"].median_s))
    if not shares:
        raise refused[0]
    whole_s = median(seconds)
    calibrating = ((dense.values(), whole_s), *((each, share * whole_s) for each, share in shares))
    return MeasuredNetwork(tables, dense, whole_s, calibrating)


def calibrating_selections(analysis: Analysis, choices: Choices) -> list[Selection]:
    """Slim networks of all latencies, the same every time.

    Blocks are removed from the mixed ones, so that what goes with a region is told from what stays.
    """
    space, draw = build_space(analysis, choices, (), {}), random.Random(0)

    def drawn(low: float, high: float) -> Selection:
        """Every group at about a share of its units between two, and never at none."""
        sizes = {}
        for dimension in space.dimensions:
            wanted = draw.uniform(low, high) * dimension.dense
            offered = filter(None, space.options(dimension.name))
            sizes[dimension.name] = min(offered, key=lambda size: abs(size - wanted))
        return Selection(sizes)

    found = []
    for average in MIXED_SHARES:
        mixed = drawn(average - _SPREAD, average + _SPREAD)
        least = (1 - _REMOVED) * evaluate(space, mixed)["macs"]
        for block in draw.sample(space.blocks, len(space.blocks)):
            without = normalise(space, Selection(mixed.sizes, (*mixed.removed_blocks, block.name)))
            if evaluate(space, without)["macs"] >= least and not violations(space, without):
                mixed = without
        found.append(mixed)
    return [*found, drawn(SLIM_SHARE, SLIM_SHARE)]


def exact_seconds(analysis: Analysis, selection: Selection, target: Target, table: LatencyTable) -> dict[str, float]:
    """Seconds of each region that a selection leaves, measured at exactly its sizes where unknown, by region name."""
    return exact_sum(*_left(analysis, selection), target, table)


def _left(analysis: Analysis, selection: Selection) -> Left:
    """The regions that a selection leaves, and the sizes of their dimensions."""
    removed = set(selection.removed_blocks)
    gone = {node for block in analysis.blocks.removable if block.name in removed for node in block.nodes}
    sizes = {group.dim: selection.sizes[group.name] for group in analysis.groups if group.name in selection.sizes}
    return [region for region in analysis.regions if region.nodes[0] not in gone], lambda dim: sizes.get(dim, dim.size)


def time_networks(runners: Mapping[str, Runner], min_runs: int = 10) -> dict[str, Timing]:
    """Networks timed in turn, to about 1 %; so many rounds however long that takes."""
    return compare(runners, min_time_s=0.5, max_time_s=5.0, error=0.01, min_runs=min_runs)
