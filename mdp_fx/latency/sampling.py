"""Which sizes of a region to measure: a coarse grid first, finer where reading between its points errs.

A region's time over one of its sizes is a line with a small constant, a staircase with the target's alignment as its
tread, or something rougher. Three lines per axis tell most of it. Four probes per axis, off the treads and on them,
tell whether there are treads, and what padding costs. Then every inner line is left out in turn and read from its
neighbours: where that errs, gaps where most sizes lie are halved, until it does not. One point that none of this has
seen, off the treads on every axis at once, then says how far reading is off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np

from mdp_fx.latency.region_model import AxisModel, RegionModel

Sizes = tuple[int, ...]

EXPECTED_ERROR = 0.02
"""Mean error, as a share, at which a region's table is good enough."""
_SMALL = 0.001  # or a region's error as a share of the network's latency
_MOST_LINES = 7
_MENDED = 0.75  # of an axis' error is left at most where halving its worst gaps helps
_SHORTEST_S = 1e-9  # some regions take no time at all
_SURE = 0.02  # a price below this is noise
_PRICES = (1.0, 20.0)
_NARROW_PRICES = (0.05, 20.0)  # what does not fill a vector has kernels of its own, which may be faster
_TREADS = (1, 2, 4, 8)  # of the target's alignment: kernels work on several vectors at once
_WIDER = 0.25  # times as sure
_LARGE_PROBE = 8  # alignments; the small one is the first size off the treads
_ACROSS_ONE = 0.5  # reading across one gap errs less than across the two around a line that was left out


class RegionSampler:
    """Decides what to measure of one region; `wanted`, measure, `refine`, until that says that it is enough.

    Args:
        sizes: per axis every size in play, ascending.
        alignment: multiple at which the target's time steps, if it does.

    Attributes:
        expected_error: share by which reading errs at a point that no reading rests on.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], alignment: int) -> None:
        self._sizes = [list(axis) for axis in sizes]
        self._alignment = alignment
        self._axes = [AxisModel(_first_lines(axis, alignment)) for axis in sizes]
        self._probes = [_probes(axis, lines.lines, alignment) for axis, lines in zip(sizes, self._axes, strict=True)]
        self._check = tuple(
            _held_out(axis, {*lines.lines, *probes}, alignment)
            for axis, lines, probes in zip(sizes, self._axes, self._probes, strict=True)
        )
        self._probed = False
        self._before = [math.inf] * len(self._sizes)
        self.expected_error = 0.0

    def wanted(self) -> list[Sizes]:
        """The points that `refine` and `model` need."""
        points = list(product(*(axis.lines for axis in self._axes)))
        probes = [self._at_probe(axis, probe) for axis, probes in enumerate(self._probes) for probe in probes]
        return [*points, *probes, self._check]

    def refine(self, seconds: Mapping[Sizes, float], network_s: float) -> bool:
        """Adds lines where reading between them errs.

        Args:
            seconds: what was measured at the points wanted.
            network_s: what all regions of the dense network take, to which this one's error is held.

        Returns:
            Whether there is more to measure.
        """
        if not self._probed:
            self._find_treads(seconds)
            self._probed = True
            if not all(point in seconds for point in self.wanted()):
                return True  # Without treads the smallest size is a line as well.
        model = self.model(seconds)
        dense_s = float(model.seconds.reshape(-1)[-1])
        tolerance = max(EXPECTED_ERROR, _SMALL * network_s / dense_s) if dense_s > 0 else math.inf
        gaps = [self._gap_errors(model, axis) for axis in range(len(self._axes))]
        read = float(model.at([(size,) for size in self._check]).reshape(()))
        self.expected_error = abs(read / max(seconds[self._check], _SHORTEST_S) - 1.0) if dense_s > 0 else 0.0
        before = list(self._axes)
        for axis, errors in enumerate(gaps):
            # What finer lines do not mend is noise. Without an inner line nothing says how well the axis is read.
            mends = sum(errors) < _MENDED * self._before[axis]
            if len(errors) == 1 or (sum(errors) > tolerance and mends):
                self._before[axis] = sum(errors) if len(errors) > 1 else math.inf
                self._halve(axis, errors)
        return self._axes != before

    def model(self, seconds: Mapping[Sizes, float]) -> RegionModel:
        """The region from what was measured."""
        return _model(self._axes, seconds)

    def _at_probe(self, axis: int, probe: int) -> Sizes:
        return tuple(probe if i == axis else each.lines[-1] for i, each in enumerate(self._axes))

    def _find_treads(self, seconds: Mapping[Sizes, float]) -> None:
        """Per axis the tread, and the price of padding, that its probes agree with best."""
        for axis, probes in enumerate(self._probes):
            if probes:
                lines = self._axes[axis].lines
                known = {size: max(seconds[self._at_probe(axis, size)], _SHORTEST_S) for size in (*lines, *probes)}
                self._axes[axis] = _best_fit(lines, known, self._alignment)

    def _gap_errors(self, model: RegionModel, axis: int) -> list[float]:
        """Per gap between the lines of an axis what reading there adds to the mean error over all of its sizes."""
        lines = model.axes[axis].lines
        if len(lines) < 3:
            return [0.0] * (len(lines) - 1)
        left_out = [0.0, *(_left_out_error(model, axis, line) for line in range(1, len(lines) - 1)), 0.0]
        inside = [sum(low < size < high for size in self._sizes[axis]) for low, high in pairwise(lines)]
        return [
            _ACROSS_ONE * max(ends) * count / len(self._sizes[axis])
            for ends, count in zip(pairwise(left_out), inside, strict=True)
        ]

    def _halve(self, axis: int, errors: Sequence[float]) -> None:
        """Lines into the middle of the two gaps that err most, as far as there is a size and room for them."""
        model = self._axes[axis]
        lines = set(model.lines)
        gaps = sorted(zip(errors, pairwise(model.lines), strict=True), reverse=True)
        for _, (low, high) in gaps[: min(2, _MOST_LINES - len(lines))]:
            taken = set(model.places(sorted(lines)))
            between = [s for s in self._sizes[axis] if low < s < high and model.places([s])[0] not in taken]
            if between:
                lines.add(_nearest(_aligned(between, self._alignment), (low + high) / 2))
        self._axes[axis] = replace(model, lines=tuple(sorted(lines)))


def _first_lines(sizes: Sequence[int], alignment: int) -> tuple[int, ...]:
    """The smallest, the largest, and one between them; all where there are no more than three.

    Where there may be treads, the smallest that fills one.
    """
    if len(sizes) <= 3:
        return tuple(sizes)
    smallest = _aligned(sizes, alignment)[0] if _has_treads(sizes, alignment) else sizes[0]
    between = [size for size in sizes if smallest < size < sizes[-1]]
    if _has_treads(sizes, alignment):
        between = [size for size in between if size % alignment == 0]
    middle = [_nearest(_aligned(between, alignment), math.sqrt(smallest * sizes[-1]))] if between else []
    return (smallest, *middle, sizes[-1])


def _probes(sizes: Sequence[int], lines: Sequence[int], alignment: int) -> tuple[int, ...]:
    """The smallest size, the first off the treads and the next one on them, and a larger one off them."""
    if len(sizes) <= len(lines) or not _has_treads(sizes, alignment):
        return ()
    off = [size for size in sizes if size % alignment]
    first = next((size for size in off if size > alignment), off[0])
    on = [size for size in sizes if size > first and size % alignment == 0]
    large = min(off, key=lambda size: abs(math.log(size / (_LARGE_PROBE * alignment))))
    return tuple(sorted({sizes[0], first, *on[:1], large} - set(lines)))


def _held_out(sizes: Sequence[int], known: Collection[int], alignment: int) -> int:
    """A size that is not known, off the treads if there is one, near the middle; the middle where all are known."""
    left = [size for size in sizes if size not in known] or list(sizes)
    return _nearest([size for size in left if size % alignment] or left, math.sqrt(sizes[0] * sizes[-1]))


def _has_treads(sizes: Sequence[int], alignment: int) -> bool:
    """Whether sizes lie on and off the treads that there may be."""
    on = sum(size % alignment == 0 for size in sizes)
    return 2 <= on < len(sizes)


def _best_fit(lines: Sequence[int], known: Mapping[int, float], alignment: int) -> AxisModel:
    """The treads and prices that agree best with the seconds known along an axis; its lines are `lines` or fewer.

    Several explanations may fit: no treads is the simplest, narrow ones are simpler than wide ones, and no price than
    one.
    """
    found: list[tuple[float, AxisModel]] = []
    for tread in (1, *(k * alignment for k in _TREADS)):
        smallest = min(known)
        covered = -(-smallest // tread) >= -(-lines[0] // tread)
        model = AxisModel(_one_per_tread(lines if covered else (smallest, *lines[1:]), tread), tread)
        padded = [size for size in known if size % tread and size not in model.lines]
        misread = _misread(model, known)
        if tread == alignment and any(abs(misread[size] - 1.0) > _SURE for size in padded):
            prices = dict.fromkeys(sorted(padded), 1.0)
            for _ in range(3):  # lines off the treads have their price too
                for size in padded:
                    least, most = _PRICES if size > alignment else _NARROW_PRICES
                    prices[size] = min(max(prices[size] * misread[size], least), most)
                model = replace(model, prices=tuple(prices.items()))
                misread = _misread(model, known)
        doubts = (tread > 1) + _WIDER * max(0.0, math.log2(tread / alignment)) + bool(model.prices)
        found.append((max(abs(each - 1.0) for each in misread.values()) + _SURE * doubts, model))
    return min(found, key=lambda each: each[0])[1]


def _misread(model: AxisModel, known: Mapping[int, float]) -> dict[int, float]:
    """What was measured at each size over what the model reads there."""
    region = RegionModel((model,), np.array([known[line] for line in model.lines]))
    return dict(zip(known, np.array(list(known.values())) / region.at([list(known)]), strict=True))


def _one_per_tread(lines: Sequence[int], tread: int) -> tuple[int, ...]:
    """Of lines on the same tread the one at its end."""
    by_place = {-(-line // tread): line for line in lines}  # ascending: the last one stays
    return tuple(by_place.values())


def _aligned(sizes: Sequence[int], alignment: int) -> list[int]:
    return [size for size in sizes if size % alignment == 0] or list(sizes)


def _nearest(sizes: Sequence[int], wanted: float) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))


def _model(axes: Sequence[AxisModel], seconds: Mapping[Sizes, float]) -> RegionModel:
    lines = [axis.lines for axis in axes]
    grid = np.array([seconds[point] for point in product(*lines)]).reshape([len(each) for each in lines])
    return RegionModel(tuple(axes), grid)


def _left_out_error(model: RegionModel, axis: int, line: int) -> float:
    """Mean share by which an inner line is misread from its neighbours."""
    others = [each.lines for each in model.axes]
    others[axis] = (others[axis][line],)
    measured = np.take(model.seconds, [line], axis)
    read = model.without(axis, line).at(others)
    return float(np.mean(np.abs(read - measured) / np.maximum(measured, _SHORTEST_S)))
