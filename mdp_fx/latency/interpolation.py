"""Which sizes of a region to measure, and how to read a table between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def grid(dense_size: int, step: int, alignment: int, count: int) -> tuple[int, ...]:
    """Sizes of one axis to measure, ascending, always with the smallest option and the dense size.

    The options of an axis are the multiples of `step` below `dense_size`, and `dense_size`. Where there are more
    than `count` of them they are thinned evenly, and on multiples of `alignment`: there the target's staircase is at
    the end of a tread, and between two such points a line is a fair picture of it.

    Args:
        dense_size: channels (or other units) of the dense network on this axis.
        step: distance of the options.
        alignment: channel multiple at which the target's latency steps.
        count: most points wanted, at least 2.

    Raises:
        ValueError: a size, step or alignment below 1, or a count below 2.
    """
    if min(dense_size, step, alignment) < 1 or count < 2:
        message = f"no grid for size {dense_size}, step {step}, alignment {alignment}, count {count}"
        raise ValueError(message)
    options = sorted({*range(step, dense_size, step), dense_size})
    if len(options) <= count:
        return tuple(options)
    smallest = options[0]
    aligned = [size for size in options[1:-1] if size % alignment == 0] or options[1:-1]
    chosen = {smallest, dense_size}
    for wanted in np.linspace(smallest, dense_size, count)[1:-1]:
        chosen.add(min(aligned, key=lambda size: abs(size - wanted)))
    return tuple(sorted(chosen))


def resample(points: Sequence[Sequence[int]], values: FloatArray, at: Sequence[Sequence[int]]) -> FloatArray:
    """Multilinear interpolation of a table on the grid spanned by `at`.

    Args:
        points: the measured sizes of every axis, ascending.
        values: measured seconds, shape (len(points[0]), len(points[1]), ...).
        at: the sizes wanted, per axis, in any order.

    Returns:
        Seconds, shape (len(at[0]), len(at[1]), ...).

    Raises:
        ValueError: shapes disagree, sizes are not ascending, or a size lies outside the measured ones.
    """
    if values.shape != tuple(len(axis) for axis in points) or len(at) != len(points):
        message = f"table of shape {values.shape} for {[len(axis) for axis in points]} points read on {len(at)} axes"
        raise ValueError(message)
    result = np.asarray(values, dtype=np.float64)
    for axis, (known, wanted) in enumerate(zip(points, at, strict=True)):
        result = np.moveaxis(np.tensordot(_weights(known, wanted), result, axes=(1, axis)), 0, axis)
    return result


def interpolate(points: Sequence[Sequence[int]], values: FloatArray, at: Sequence[int]) -> float:
    """`resample` at one place: seconds of a region at the sizes `at`."""
    return float(resample(points, values, [(size,) for size in at]).reshape(()))


def _weights(known: Sequence[int], wanted: Sequence[int]) -> FloatArray:
    """Matrix that interpolates linearly from `known` to `wanted`, shape (len(wanted), len(known))."""
    sizes = np.asarray(known, dtype=np.float64)
    places = np.asarray(wanted, dtype=np.float64)
    if sizes.size == 0 or np.any(np.diff(sizes) <= 0):
        message = f"measured sizes {list(known)} are not ascending"
        raise ValueError(message)
    if places.size and (places.min() < sizes[0] or places.max() > sizes[-1]):
        message = f"sizes {list(wanted)} reach outside the measured {known[0]} to {known[-1]}"
        raise ValueError(message)
    matrix = np.zeros((places.size, sizes.size))
    if sizes.size == 1:
        matrix[:, 0] = 1.0
        return matrix
    left = np.clip(np.searchsorted(sizes, places, side="right") - 1, 0, sizes.size - 2)
    share = (places - sizes[left]) / (sizes[left + 1] - sizes[left])
    rows = np.arange(places.size)
    matrix[rows, left] = 1.0 - share
    matrix[rows, left + 1] = share
    return matrix
