"""Seconds of a region at any of its sizes, read from a few measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from mdp_fx.latency.interpolation import FloatArray, resample


@dataclass(frozen=True)
class AxisModel:
    """How a region's time follows one of its sizes.

    Attributes:
        lines: measured sizes, ascending; no two on the same tread.
        tread: time follows the size rounded up to a multiple of this (a staircase, from vectors and tiles); 1 where it
            follows the size itself.
        prices: (size, factor) on the time of sizes that are no multiple of `tread`: padding has its price. Between two
            sizes it follows their logarithm, beyond them it stays.
    """

    lines: tuple[int, ...]
    tread: int = 1
    prices: tuple[tuple[int, float], ...] = ()

    def places(self, sizes: Sequence[int]) -> list[int]:
        """The sizes rounded up to their treads."""
        return [-(-size // self.tread) * self.tread for size in sizes]

    def factors(self, sizes: Sequence[int]) -> FloatArray:
        """What the time at the places is multiplied by, per size."""
        if not self.prices:
            return np.ones(len(sizes))
        known, factors = zip(*self.prices, strict=True)
        padded = [size % self.tread > 0 for size in sizes]
        return np.where(padded, np.interp(np.log(sizes), np.log(known), factors), 1.0)


@dataclass(frozen=True, eq=False)
class RegionModel:
    """A region's measured times, multilinear between the treads of their axes.

    Attributes:
        axes: per axis of the region.
        seconds: measured at the lines, shape [len(axis.lines) for axis in axes].
    """

    axes: tuple[AxisModel, ...]
    seconds: FloatArray

    def at(self, sizes: Sequence[Sequence[int]]) -> FloatArray:
        """Seconds on the grid spanned by `sizes`, shape [len(each) for each in sizes].

        Raises:
            ValueError: a size lies outside of the measured ones.
        """
        own = self.seconds / _outer([axis.factors(axis.lines) for axis in self.axes])
        known = [axis.places(axis.lines) for axis in self.axes]
        wanted = [axis.places(each) for axis, each in zip(self.axes, sizes, strict=True)]
        factors = _outer([axis.factors(each) for axis, each in zip(self.axes, sizes, strict=True)])
        return np.asarray(resample(known, own, wanted) * factors)

    def without(self, axis: int, line: int) -> RegionModel:
        """The model as if the line at this position of an axis had not been measured."""
        lines = self.axes[axis].lines
        left = replace(self.axes[axis], lines=lines[:line] + lines[line + 1 :])
        return RegionModel((*self.axes[:axis], left, *self.axes[axis + 1 :]), np.delete(self.seconds, line, axis))


def _outer(factors: Sequence[FloatArray]) -> FloatArray:
    return reduce(np.multiply.outer, factors, np.ones(()))
