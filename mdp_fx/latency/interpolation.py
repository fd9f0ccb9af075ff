"""Reading a table between its points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


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
