"""A network on a target as a whole, beside the sum of its regions: what the sum does not say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mdp_fx.graph.axes import Dim
from mdp_fx.latency.measuring import Progress, compare
from mdp_fx.latency.network import Calibration, Measured, RegionTables, exact_sum, region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Runner, Target
from mdp_fx.latency.timing import Timing
from mdp_fx.passes.base import Stage
from mdp_fx.passes.build_space import build_space
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.search_space import Selection, normalise, violations
from mdp_fx.pipeline import rewrite

SLIM_SHARE = 0.25
"""Share of its units that every channel group has in the slimmest network that calibrates."""
MIXED_SHARES = (0.8, 0.65, 0.5, 0.35)
"""Share of its units that a channel group has on average in the others between it and the dense one."""
_SPREAD = 0.3  # about the average: sizes that fit each other badly cost more than their regions say
_REMOVED = 0.25  # of the blocks that may go


@dataclass(frozen=True)
class MeasuredNetwork:
    """A dense network on a target.

    Attributes:
        tables: of its regions at every size in play.
        regions_s: seconds of each region at its dense sizes.
        whole_s: seconds of the whole, median.
        calibrating: the dense network, and slim ones of it that were timed in turn with it, the slimmest last.
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
    """
    stage("measure cost regions")
    tables = region_tables(analysis, choices, target, table, progress=progress)
    selections = {"dense": Selection({}, ())} | calibrating_selections(analysis, choices)
    parts = {name: exact_seconds(analysis, each, target, table) for name, each in selections.items()}
    stage("time the dense network and slim ones")
    with ExitStack() as stack:
        runners = {"dense": runner}
        for name, each in selections.items():
            if name not in runners:
                kept = {group: range(size) for group, size in each.sizes.items()}
                runners[name] = target.prepare(rewrite(analysis, kept, each.removed_blocks), inputs)
                stack.callback(runners[name].close)
        timings = time_networks(runners)
    calibrating = tuple((parts[name].values(), timing.median_s) for name, timing in timings.items())
    return MeasuredNetwork(tables, parts["dense"], timings["dense"].median_s, calibrating)


def calibrating_selections(analysis: Analysis, choices: Choices) -> dict[str, Selection]:
    """Slim networks of all latencies, by name, the same every time: each group at about a share of its units.

    Blocks are removed from the mixed ones, so that what goes with a region is told from what stays.
    """
    space, draw = build_space(analysis, choices, (), {}), random.Random(0)

    def sizes(share: Callable[[], float]) -> dict[str, int]:
        """At random sizes, 0 excepted, or at those next to one share."""
        found = {}
        for dimension in space.dimensions:
            wanted = share() * dimension.dense
            found[dimension.name] = min(
                filter(None, space.options(dimension.name)), key=lambda size: abs(size - wanted)
            )
        return found

    found = {}
    for average in MIXED_SHARES:
        mixed = Selection(sizes(partial(draw.uniform, average - _SPREAD, average + _SPREAD)))
        for block in draw.sample(space.blocks, math.ceil(_REMOVED * len(space.blocks))):
            without = normalise(space, Selection(mixed.sizes, (*mixed.removed_blocks, block.name)))
            mixed = mixed if violations(space, without) else without
        found[f"mixed {average:.0%}"] = mixed
    return found | {"slim": Selection(sizes(lambda: SLIM_SHARE))}


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
