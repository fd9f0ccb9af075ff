"""Latency of a whole network from the latencies of its regions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mdp_fx.graph.axes import Dim
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.latency.interpolation import FloatArray
from mdp_fx.latency.measuring import Progress, measure_regions
from mdp_fx.latency.region_model import RegionModel
from mdp_fx.latency.sampling import RegionSampler, Sizes
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import Target
from mdp_fx.latency.timing import Effort
from mdp_fx.passes.build_space import Points, reachable_sizes, thinned
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.cost_regions import CostRegion

_CLOSE = 0.1  # of the largest sum: sums no further apart tell nothing
_MISSING = 0.25  # of the latency may be gained beside the regions
_CHOSEN_WEIGHT = 10.0
_FITS = 5


@dataclass(frozen=True)
class RegionTables:
    """Tables of every region of a network.

    Attributes:
        seconds: by region name the points of its axes and the seconds there, measured or read between what was.
        expected_error: mean share by which reading errs at points that no reading rests on, regions weighted by time.
        measured: how many points were measured now.
        cached: how many were known.
    """

    seconds: dict[str, tuple[Points, FloatArray]]
    expected_error: float
    measured: int
    cached: int


Measured = tuple[Collection[float], float]
"""A network: seconds of its regions, each alone, and of its whole."""


@dataclass(frozen=True)
class Calibration:
    """From what a network's regions take alone to what its whole takes.

    Attributes:
        factor: on the seconds of a region.
        per_region_s: what a region takes beside that (calls, what the caches lose). It goes with a region that is
            removed. Where it is negative, a region takes no less than nothing.
    """

    factor: float
    per_region_s: float = 0.0

    def of_regions(self, seconds: FloatArray) -> FloatArray:
        """Seconds of regions inside a network, by what they take alone."""
        return np.asarray(np.maximum(self.factor * seconds + self.per_region_s, 0.0))

    def whole(self, regions: Collection[float]) -> float:
        """Predicted seconds of a network whose regions take so many alone."""
        return float(self.of_regions(np.array(list(regions))).sum())

    @classmethod
    def through(cls, *networks: Measured, chosen: int = 0) -> Calibration:
        """The one whose squared relative errors on measured networks are least.

        It is proportional where all are too close to tell; and no other is taken that costs could not have: a slimmer
        network is not faster, or by so much that a quarter of the latency is missing.

        Args:
            networks: what was measured. What a network takes beside its regions counts as theirs, alike for all.
            chosen: how many of the last networks a solver chose. They weigh ten times as much: it chooses what the
                tables make too cheap, and will again, which networks made without it do not show.
        """
        regions = [np.array(list(parts)) for parts, _ in networks]
        whole = np.array([seconds for _, seconds in networks])
        sums = np.array([parts.sum() for parts in regions])
        if not sums.any():
            return cls(0.0, float(whole[-1] / max(1, len(regions[-1]))))
        weights = 1.0 / whole
        weights[len(networks) - chosen :] *= _CHOSEN_WEIGHT
        weighted = sums * weights
        tried = [cls(float(weighted @ (whole * weights) / (weighted @ weighted)))]
        if sums.max() - sums.min() <= _CLOSE * sums.max():
            return tried[0]
        most, found = int(np.argmax(sums)), cls(1.0)
        # What takes nothing drops out, which changes what fits the others, perhaps in circles.
        for _ in range(_FITS):
            taking = [found.of_regions(parts) > 0 for parts in regions]
            rows = np.array([(parts[some].sum(), some.sum()) for parts, some in zip(regions, taking, strict=True)])
            factor, per_region_s = np.linalg.lstsq(rows * weights[:, None], whole * weights)[0]
            found = cls(float(factor), float(per_region_s))
            if found.factor > 0 and found.per_region_s * len(regions[most]) >= -_MISSING * whole[most]:
                tried.append(found)

        def error(each: Calibration) -> float:
            return float(np.square(weights * ([each.whole(parts) for parts in regions] - whole)).sum())

        return min(tried, key=error)


def region_tables(
    analysis: Analysis,
    choices: Choices,
    target: Target,
    table: LatencyTable,
    *,
    progress: Progress | None = None,
) -> RegionTables:
    """Measures what `table` lacks of the regions of a network, as few sizes as tell the others.

    Where a size was measured exactly, for whatever reason, that counts and not what its neighbours say.
    """
    fingerprint = target.fingerprint()
    sizes = {region.name: reachable_sizes(analysis, choices, region) for region in analysis.regions}
    samplers = {
        (region.key, sizes[region.name]): RegionSampler(sizes[region.name], target.alignment)
        for region in analysis.regions
    }
    dense = {region.name: tuple(axis[-1] for axis in sizes[region.name]) for region in analysis.regions}
    asked: set[tuple[str, Sizes]] = set()
    measured = 0

    def told(done: int, total: int, text: str) -> None:
        if progress is not None:
            progress(before + done, before + total, text)

    while True:
        # What was asked for before is not asked for again: that it is noisy must not change what was decided by it.
        wanted: dict[str, dict[Sizes, None]] = {}
        for (key, _), sampler in samplers.items():
            new = [at for at in sampler.wanted() if (key, at) not in asked]
            wanted.setdefault(key, {}).update(dict.fromkeys(new))
        asked.update((key, at) for key, points in wanted.items() for at in points)
        before = measured
        measured += measure_regions(
            analysis.regions, {key: tuple(at) for key, at in wanted.items()}, target, table, told
        )
        known = {key: {at: timing.low_s for at, timing in table.points(fingerprint, key).items()} for key in wanted}
        total = sum(known[region.key][dense[region.name]] for region in analysis.regions)
        unfinished = [sampler for (key, _), sampler in samplers.items() if sampler.refine(known[key], total)]
        if not unfinished:
            break
    read = {
        (key, each): (points := thinned(each), _with_measured(sampler.model(known[key]), points, known[key]))
        for (key, each), sampler in samplers.items()
    }
    seconds, error = {}, 0.0
    for region in analysis.regions:
        alike = region.key, sizes[region.name]
        seconds[region.name] = read[alike]
        error += samplers[alike].expected_error * known[region.key][dense[region.name]]
    return RegionTables(seconds, error / total if total else 0.0, measured, len(asked) - measured)


def _with_measured(model: RegionModel, points: Points, known: Mapping[Sizes, float]) -> FloatArray:
    values = model.at(points)
    places = [{size: place for place, size in enumerate(axis)} for axis in points]
    for at, seconds in known.items():
        if len(at) == len(places) and all(size in place for size, place in zip(at, places, strict=True)):
            values[tuple(place[size] for size, place in zip(at, places, strict=True))] = seconds
    return values


Left = tuple[Sequence[CostRegion], Callable[[Dim], int]]
"""What a selection leaves of a network: regions, and the sizes of their dimensions."""


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
    return exact_sums([(regions, size_of)], target, table, progress)[0]


def exact_sums(
    networks: Sequence[Left], target: Target, table: LatencyTable, progress: Progress | None = None
) -> list[dict[str, float]]:
    """`exact_sum` of each; what is missing is measured together, so that a drifting machine bends none of them."""
    sized: list[list[tuple[CostRegion, Sizes]]] = []
    for regions, size_of in networks:
        at = ((region, tuple(kept_size(axis, size_of) for axis in region.axes)) for region in regions)
        sized.append([(region, sizes) for region, sizes in at if all(sizes)])

    if target.can_run:
        wanted: dict[str, list[Sizes]] = {}
        for region, sizes in chain.from_iterable(sized):
            wanted.setdefault(region.key, []).append(sizes)
        measure_regions([region for region, _ in chain.from_iterable(sized)], wanted, target, table, progress)

    def seconds(region: CostRegion, sizes: Sizes) -> float:
        if not target.can_run:
            return target.time_region(region, sizes, Effort()).low_s
        timing = table.get(target.fingerprint(), region.key, sizes)
        assert timing is not None
        return timing.low_s

    return [{region.name: seconds(region, sizes) for region, sizes in each} for each in sized]
