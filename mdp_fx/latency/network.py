"""Latency of a whole network from the latencies of its regions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mdp_fx.graph.axes import Dim
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.latency.interpolation import FloatArray, grid
from mdp_fx.latency.measuring import Progress, measure_regions
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Target
from mdp_fx.latency.timing import Effort, Timing
from mdp_fx.passes.build_space import Points, table_points
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.cost_regions import CostRegion


class KnownNetworks:
    """Slim networks of one dense network that were measured before, by the sum of their regions.

    Args:
        regions: of the dense network.
        target: where they were measured.
        table: where they are kept.
    """

    def __init__(self, regions: Sequence[CostRegion], target: Target, table: LatencyTable) -> None:
        keys = "\n".join(region.key for region in regions)
        self._key = f"network of {len(regions)} regions {hashlib.sha256(keys.encode()).hexdigest()[:16]}"
        self._fingerprint = target.fingerprint()
        self._table = table

    def remember(self, total_s: float, timing: Timing) -> None:
        """Keeps the latency of a network whose regions take `total_s` seconds."""
        self._table.put(self._fingerprint, self._key, (round(total_s * 1e9),), timing)

    def nearest(self, wanted_s: float) -> tuple[float, float] | None:
        """(sum, measured) seconds of the network measured closest to `wanted_s`; None where there is none."""
        known = self._table.points(self._fingerprint, self._key)
        if not known:
            return None
        (total_ns,), timing = min(known.items(), key=lambda item: abs(item[1].low_s - wanted_s))
        return total_ns * 1e-9, timing.low_s


@dataclass(frozen=True)
class RegionTables:
    """Measured tables of every region of a network.

    Attributes:
        seconds: by region name the points of its axes and the seconds there.
        measured: how many points were measured now.
        cached: how many were known.
    """

    seconds: dict[str, tuple[Points, FloatArray]]
    measured: int
    cached: int


@dataclass(frozen=True)
class Calibration:
    """From the sum of the regions to the whole network: offset_s + factor * sum, both measured.

    With the dense network alone the offset is 0. With a slim one too, the line goes through both.
    """

    factor: float
    offset_s: float = 0.0

    def whole(self, total_s: float) -> float:
        """Predicted seconds of a network whose regions take `total_s`."""
        return self.offset_s + self.factor * total_s

    def through(self, dense: tuple[float, float], slim: tuple[float, float]) -> Calibration:
        """The line through the (sum, measured) of two networks, seconds.

        Where the two are too close to tell, or the line says that more than a quarter of the dense latency lies outside
        of its regions, the noise is larger than what a line could explain: then it is proportional to the slim network.
        """
        if dense[0] - slim[0] > 0.1 * dense[0]:
            factor = (dense[1] - slim[1]) / (dense[0] - slim[0])
            offset = slim[1] - factor * slim[0]
            if abs(offset) <= 0.25 * dense[1]:
                return Calibration(factor, offset)
        return Calibration(slim[1] / slim[0])


def region_tables(
    analysis: Analysis,
    choices: Choices,
    target: Target,
    table: LatencyTable,
    *,
    step: int,
    progress: Progress | None = None,
) -> RegionTables:
    """Measures what `table` lacks of the regions of a network at the sizes in play."""

    def sizes(dense: int, count: int) -> tuple[int, ...]:
        return grid(dense, step, target.alignment, max(2, count))

    points = {region.name: table_points(analysis, choices, region, sizes) for region in analysis.regions}
    wanted: dict[str, dict[tuple[int, ...], None]] = {}
    for region in analysis.regions:
        wanted.setdefault(region.key, {}).update(dict.fromkeys(product(*points[region.name])))
    total = sum(len(sizes_of) for sizes_of in wanted.values())
    measured = _measure(analysis.regions, {key: tuple(at) for key, at in wanted.items()}, target, table, progress)
    fingerprint = target.fingerprint()
    seconds = {
        region.name: (points[region.name], table.values(fingerprint, region.key, points[region.name]))
        for region in analysis.regions
    }
    return RegionTables(seconds, measured, total - measured)


def exact_sum(
    regions: Sequence[CostRegion],
    size_of: Callable[[Dim], int],
    target: Target,
    table: LatencyTable,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Seconds of each region at exactly the sizes that a selection keeps, measured where unknown, by region name.

    A region without entries is not there.
    """
    at = {region.name: tuple(kept_size(axis, size_of) for axis in region.axes) for region in regions}
    regions = [region for region in regions if all(at[region.name])]
    if not target.can_run:
        return {region.name: target.time_region(region, at[region.name], Effort()).low_s for region in regions}
    wanted: dict[str, list[tuple[int, ...]]] = {}
    for region in regions:
        wanted.setdefault(region.key, []).append(at[region.name])
    _measure(regions, wanted, target, table, progress)
    fingerprint = target.fingerprint()
    found: dict[str, float] = {}
    for region in regions:
        values = table.values(fingerprint, region.key, [(size,) for size in at[region.name]])
        found[region.name] = float(np.asarray(values).reshape(()))
    return found


def _measure(
    regions: Sequence[CostRegion],
    points: dict[str, Sequence[tuple[int, ...]]]
    | dict[str, list[tuple[int, ...]]]
    | dict[str, tuple[tuple[int, ...], ...]],
    target: Target,
    table: LatencyTable,
    progress: Progress | None,
) -> int:
    count = 0

    def counted(done: int, total: int, text: str) -> None:
        nonlocal count
        count = total
        if progress is not None:
            progress(done, total, text)

    measure_regions(regions, points, target, table, counted)
    return count
