"""Which sizes of a region to measure: a coarse grid first, finer where reading between its points errs.

A region's time over one of its sizes is a line with a small constant, a staircase with the target's alignment as its
tread, or something rougher. Three lines per axis tell most of it. Three probes per axis, off the treads and on them,
tell whether there are treads, and what padding costs. Then every inner line is left out in turn and read from its
neighbours: where that errs, gaps where most sizes lie are halved, until it does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
_SURE = 0.02  # a penalty below this is noise
_PENALTIES = (1.0, 20.0)
_TREADS = (1, 2, 4, 8)  # of the target's alignment: kernels work on several vectors at once
_WIDER = 0.25  # times as sure
_LARGE_PROBE = 8  # alignments; the small one is the first size off the treads
_ACROSS_ONE = 0.5  # reading across one gap errs less than across the two around a line that was left out


class RegionSampler:
    """Decides what to measure of one region; `wanted`, measure, `refine`, until that says that it is enough.

    Args:
        sizes: per axis every size in play, ascending.
        alignment: multiple at which the target's time steps, if it does.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], alignment: int) -> None:
        self._sizes = [list(axis) for axis in sizes]
        self._alignment = alignment
        self._axes = [AxisModel(_first_lines(axis, alignment)) for axis in sizes]
        self._probes = [_probes(axis, lines.lines, alignment) for axis, lines in zip(sizes, self._axes, strict=True)]
        self._probed = False
        self._before = [math.inf] * len(self._sizes)
        self.expected_error = 0.0

    def wanted(self) -> list[Sizes]:
        """The points that `refine` and `model` need."""
        points = list(product(*(axis.lines for axis in self._axes)))
        return points + [self._at_probe(axis, probe) for axis, probes in enumerate(self._probes) for probe in probes]

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
        model = self.model(seconds)
        dense_s = float(model.seconds.reshape(-1)[-1])
        tolerance = max(EXPECTED_ERROR, _SMALL * network_s / dense_s) if dense_s > 0 else math.inf
        gaps = [self._gap_errors(model, axis) for axis in range(len(self._axes))]
        self.expected_error = max((sum(errors) for errors in gaps), default=0.0)
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
            if not probes:
                continue
            treads = product((k * self._alignment for k in _TREADS), (1, self._alignment))
            fits = [self._fit(axis, tread, first, seconds) for tread, first in ((1, 1), *treads)]
            self._axes[axis] = min(fits, key=lambda fit: fit[0])[1]

    def _fit(self, axis: int, tread: int, first: int, seconds: Mapping[Sizes, float]) -> tuple[float, AxisModel]:
        """Share by which probes, and lines on the tread of another, are misread with such treads; and the axis then."""
        lines = self._axes[axis].lines
        model = AxisModel(_one_per_tread(AxisModel(lines, tread, first)), tread, first)
        spare = [line for line in lines if line not in model.lines]

        def misread(model: AxisModel, size: int) -> float:
            axes = [*self._axes[:axis], model, *self._axes[axis + 1 :]]
            point = self._at_probe(axis, size)
            return max(seconds[point], _SHORTEST_S) / max(_read(_model(axes, seconds), point), _SHORTEST_S)

        off = [size for size in self._probes[axis] if model.off(size)]
        if any(abs(misread(model, size) - 1.0) > _SURE for size in off):
            penalties = dict.fromkeys(off, 1.0)
            for _ in range(3):  # lines off the treads have the penalty too
                for size in off:
                    penalties[size] = float(np.clip(penalties[size] * misread(model, size), *_PENALTIES))
                    model = replace(model, penalties=tuple(penalties.items()))
        # Several explanations may fit: no treads is the simplest, narrow ones are simpler than wide ones, those that
        # hold for all sizes than others, and no penalty than one.
        wide = max(0.0, math.log2(tread / self._alignment))
        doubts = (tread > 1) + _WIDER * (wide + (first > 1)) + bool(model.penalties)
        return max(abs(misread(model, size) - 1.0) for size in (*self._probes[axis], *spare)) + _SURE * doubts, model

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
    """The smallest, the largest, and one between them; all where there are no more than three."""
    if len(sizes) <= 3:
        return tuple(sizes)
    middle = _nearest(_aligned(sizes[1:-1], alignment), math.sqrt(sizes[0] * sizes[-1]))
    return (sizes[0], middle, sizes[-1])


def _probes(sizes: Sequence[int], lines: Sequence[int], alignment: int) -> tuple[int, ...]:
    """The first size off the treads, the next one on them, and a larger one off them; empty where none is off."""
    off = [size for size in sizes if size > alignment and size % alignment and size not in lines]
    if not off or len(sizes) <= len(lines):
        return ()
    on = [size for size in sizes if size > off[0] and size % alignment == 0]
    large = min(off, key=lambda size: abs(math.log(size / (_LARGE_PROBE * alignment))))
    return tuple(dict.fromkeys((off[0], *on[:1], large)))


def _one_per_tread(axis: AxisModel) -> tuple[int, ...]:
    """Of lines on the same tread the one at its end."""
    by_place = dict(zip(axis.places(axis.lines), axis.lines, strict=True))  # ascending: the last one stays
    return tuple(by_place.values())


def _aligned(sizes: Sequence[int], alignment: int) -> list[int]:
    return [size for size in sizes if size % alignment == 0] or list(sizes)


def _nearest(sizes: Sequence[int], wanted: float) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))


def _model(axes: Sequence[AxisModel], seconds: Mapping[Sizes, float]) -> RegionModel:
    lines = [axis.lines for axis in axes]
    grid = np.array([seconds[point] for point in product(*lines)]).reshape([len(each) for each in lines])
    return RegionModel(tuple(axes), grid)


def _read(model: RegionModel, point: Sizes) -> float:
    return float(model.at([(size,) for size in point]).reshape(()))


def _left_out_error(model: RegionModel, axis: int, line: int) -> float:
    """Mean share by which an inner line is misread from its neighbours."""
    others = [each.lines for each in model.axes]
    others[axis] = (others[axis][line],)
    measured = np.take(model.seconds, [line], axis)
    read = model.without(axis, line).at(others)
    return float(np.mean(np.abs(read - measured) / np.maximum(measured, _SHORTEST_S)))
