"""A network on a target as a whole, beside the sum of its regions: what the sum does not say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from mdp_fx.graph.axes import Dim
from mdp_fx.latency.measuring import Progress, compare
from mdp_fx.latency.network import Calibration, Measured, RegionTables, exact_sum, region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Runner, Target
from mdp_fx.latency.timing import Timing
from mdp_fx.passes.base import Stage
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.search_space import Selection
from mdp_fx.pipeline import rewrite

SLIM_SHARE = 0.25
"""Share of its units that every channel group has in the slimmer network that calibrates."""
MIXED_SHARES = (0.2, 0.8)
"""Between which the shares lie in the other one: sizes that fit each other badly cost more than their regions say."""


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
    a share. The dense network alone cannot tell these apart.
    """
    stage("measure cost regions")
    tables = region_tables(analysis, choices, target, table, progress=progress)
    regions = exact_seconds(analysis, Selection({}, ()), target, table)
    slim = {"mixed": _mixed_selection(choices), "slim": _slim_selection(choices)}
    parts = {name: exact_seconds(analysis, each, target, table) for name, each in slim.items()} | {"dense": regions}
    stage("time the dense and two slim networks")
    with ExitStack() as stack:
        runners = {"dense": runner}
        for name, each in slim.items():
            kept = {group: range(size) for group, size in each.sizes.items()}
            runners[name] = target.prepare(rewrite(analysis, kept, ()), inputs)
            stack.callback(runners[name].close)
        timings = time_networks(runners)
    calibrating = tuple((parts[name].values(), timing.median_s) for name, timing in timings.items())
    return MeasuredNetwork(tables, regions, timings["dense"].median_s, calibrating)


def exact_seconds(
    analysis: Analysis, selection: Selection, target: Target, table: LatencyTable, progress: Progress | None = None
) -> dict[str, float]:
    """Seconds of each region that a selection leaves, measured at exactly its sizes where unknown, by region name."""
    removed = set(selection.removed_blocks)
    gone = {node for block in analysis.blocks.removable if block.name in removed for node in block.nodes}
    sizes = {group.dim: selection.sizes[group.name] for group in analysis.groups if group.name in selection.sizes}

    def size_of(dim: Dim) -> int:
        return sizes.get(dim, dim.size)

    alive = [region for region in analysis.regions if region.nodes[0] not in gone]
    return exact_sum(alive, size_of, target, table, progress)


def time_networks(runners: Mapping[str, Runner]) -> dict[str, Timing]:
    """Networks timed in turn, to about 1 %."""
    return compare(runners, min_time_s=0.5, max_time_s=5.0, error=0.01)


def _slim_selection(choices: Choices) -> Selection:
    """Every group at about `SLIM_SHARE` of its units."""
    return _selection(choices, lambda: SLIM_SHARE)


def _mixed_selection(choices: Choices) -> Selection:
    """Every group at some share of its units between `MIXED_SHARES`, the same every time."""
    draw = random.Random(0)
    return _selection(choices, lambda: draw.uniform(*MIXED_SHARES))


def _selection(choices: Choices, share: Callable[[], float]) -> Selection:
    sizes = {}
    for dimension in choices.dimensions:
        if dimension.name not in choices.held:
            wanted = share() * dimension.dense
            sizes[dimension.name] = min(filter(None, dimension.sizes), key=lambda size: abs(size - wanted))
    return Selection(sizes, ())
