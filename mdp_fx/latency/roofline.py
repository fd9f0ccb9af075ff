"""An estimate for convolutions that a table does not have, fitted to those that it has."""

from __future__ import annotations

from itertools import combinations
from math import prod

import numpy as np

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_table import ConvolutionTable
from mdp_fx.latency.interpolation import FloatArray
from mdp_fx.passes.convolutions import Convolution

_BYTES = 4
"""Of a number: tables do not record the format, and another one only scales the coefficient."""


class Roofline:
    """seconds = a + b * multiply-accumulates + c * bytes moved, with a, b, c >= 0.

    A roofline (Williams, Waterman, Patterson 2009) takes the larger of compute and memory time; the sum, with a
    constant for the launch, is its smooth upper bound and linear in what is fitted. The fit minimises the squared
    relative error over all points of the table, so that short convolutions count as much as long ones. Bytes are those
    of operand, weight and result, each moved once.

    Attributes:
        coefficients: a in seconds, b in seconds per multiply-accumulate, c in seconds per byte.
        error: median relative error on the table's own points.
    """

    def __init__(self, table: ConvolutionTable) -> None:
        """Fits a table.

        Raises:
            InputError: it has too few points to fit.
        """
        if len(table) < len(_COLUMNS):
            raise InputError(f"{table.name} has {len(table)} points: too few to estimate others from")
        seconds = np.array([entry.seconds for entry in table])
        features = np.array([_features(entry.convolution) for entry in table])
        self.coefficients = _least_squares(features / seconds[:, None])
        self.error = float(np.median(np.abs(features @ self.coefficients / seconds - 1)))

    def seconds(self, convolution: Convolution) -> float:
        """Estimated seconds."""
        return float(np.dot(_features(convolution), self.coefficients))

    def __str__(self) -> str:
        launch, compute, memory = self.coefficients
        rates = [f"{1e6 * launch:.3g} us"]
        rates += [f"MACs / {1e-12 / compute:.3g} T/s"] if compute else []
        rates += [f"bytes / {1e-9 / memory:.3g} GB/s"] if memory else []
        return f"{' + '.join(rates)}, median error {100 * self.error:.0f} % on the table's own points"


_COLUMNS = ("constant", "macs", "bytes")


def macs(convolution: Convolution) -> int:
    """Multiply-accumulates of a convolution."""
    places = convolution.input_size if convolution.transposed else convolution.output_size
    weights = convolution.in_channels * convolution.out_channels // convolution.groups * prod(convolution.kernel)
    return convolution.batch * prod(places) * weights


def _features(convolution: Convolution) -> tuple[float, float, float]:
    moved = (
        convolution.batch * convolution.in_channels * prod(convolution.input_size)
        + convolution.batch * convolution.out_channels * prod(convolution.output_size)
        + convolution.in_channels * convolution.out_channels // convolution.groups * prod(convolution.kernel)
    )
    return 1.0, float(macs(convolution)), float(_BYTES * moved)


def _least_squares(rows: FloatArray) -> FloatArray:
    """The non-negative x that brings rows @ x closest to 1, shape (columns,): the best of all sets of columns."""
    scale = np.abs(rows).max(axis=0)
    scaled, ones = rows / scale, np.ones(len(rows))
    best, least = np.zeros(rows.shape[1]), float("inf")
    for count in range(1, rows.shape[1] + 1):
        for used in map(list, combinations(range(rows.shape[1]), count)):
            found = np.linalg.lstsq(scaled[:, used], ones, rcond=None)[0]
            rest = float(np.square(scaled[:, used] @ found - 1).sum())
            if (found >= 0).all() and rest < least:
                best, least = np.zeros(rows.shape[1]), rest
                best[used] = found
    return np.asarray(best / scale, dtype=np.float64)
