"""Axes to try the algebra on: random ones that share Dims, and oracles that read them entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mdp_fx.graph.axes import Axis, BoolArray, Dim, Factor, IntArray, Shuffled, Span, free_dims

A, B, C, H = Dim(2), Dim(3), Dim(4), Dim(5)
"""Never bound: only read by the tests of the normal form."""


# Oracles: an axis as it is written, read entry by entry -------------------------------------------------------------


def mentions(axis: Axis, entry: int) -> list[tuple[Dim, int]]:
    """The free Dims and units that one entry of `axis` belongs to."""
    for span in axis.spans:
        size = prod(factor if isinstance(factor, int) else factor.size for factor in span)
        if entry >= size:
            entry -= size
            continue
        found: list[tuple[Dim, int]] = []
        for factor in reversed(span):
            entry, digit = divmod(entry, factor if isinstance(factor, int) else factor.size)
            inner = factor.exp if isinstance(factor, Dim) else factor
            if isinstance(inner, Shuffled):
                found = mentions(inner.axis, int(inner.order[digit])) + found
            elif isinstance(inner, Axis):
                found = mentions(inner, digit) + found
            elif isinstance(factor, Dim):
                found = [(factor, digit), *found]
        return found
    raise IndexError


def expected_mask(axis: Axis, kept: Mapping[Dim, BoolArray]) -> list[bool]:
    return [all(kept[dim][unit] for dim, unit in mentions(axis, entry) if dim in kept) for entry in range(axis.size)]


def random_units(*axes: Axis, seed: int) -> dict[Dim, BoolArray]:
    """Random kept units of every free dimension."""
    rng = np.random.default_rng(seed)
    return {dim: rng.random(dim.size) < 0.6 for axis in axes for dim in free_dims(axis)}


# Random axes --------------------------------------------------------------------------------------------------------

SIZES = (1, 2, 3, 4, 6, 8, 12, 18, 24)


class Draw:
    """Draws axes of given sizes that share Dims with one another."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int], *, batch: bool, shuffles: bool) -> None:
        self._draw = draw
        self._pool: dict[int, list[Dim]] = {}
        self._batch = batch
        self._kinds = 7 if shuffles else 5

    def below(self, count: int) -> int:
        return self._draw(st.integers(0, count - 1))

    def dim(self, size: int) -> Factor:
        if size == 1:
            return 1
        pool = self._pool.setdefault(size, [])
        chosen = self.below(len(pool) + 1)
        if chosen == len(pool):
            pool.append(Dim(size, rigid=self._batch and size == 2 and self.below(2) == 0))
        return pool[chosen]

    def factor(self, size: int, depth: int) -> Factor:
        kind = self.below(self._kinds)
        if kind == 0:
            return size
        if kind >= 5 and depth:
            return Shuffled(self.axis(size, depth - 1), self.order(size))
        return self.axis(size, depth - 1) if kind == 1 and depth else self.dim(size)

    def order(self, size: int) -> IntArray:
        """A permutation: rows and columns exchanged, once or twice, or any at all."""
        rows = [n for n in range(1, size + 1) if size % n == 0]
        once, twice = (transposed(rows[self.below(len(rows))], size) for _ in range(2))
        anyhow = np.random.default_rng(self.below(1000)).permutation(size)
        return (once, once[twice], anyhow)[self.below(3)]

    def span(self, size: int, depth: int) -> Span:
        factors: list[Factor] = []
        while size > 1 and len(factors) < 3:
            divisors = [n for n in range(2, size + 1) if size % n == 0]
            taken = divisors[self.below(len(divisors))]
            factors.append(self.factor(taken, depth))
            size //= taken
        return (*factors, size) if size > 1 or not factors else tuple(factors)

    def axis(self, size: int, depth: int = 2) -> Axis:
        parts = [size]
        while parts[-1] > 1 and len(parts) < 4 and self.below(3) == 0:
            part = 1 + self.below(parts[-1] - 1)
            parts[-1:] = [part, parts[-1] - part]
        return Axis(*(self.span(part, depth) for part in parts))


def transposed(rows: int, size: int) -> IntArray:
    """The order in which the entries of `rows` rows stand when they are read by columns."""
    return np.arange(size).reshape(rows, -1).T.reshape(-1)


@st.composite
def axes(
    draw: Callable[[st.SearchStrategy[int]], int], count: int = 1, batch: bool = False, shuffles: bool = False
) -> list[Axis]:
    """Axes of one size that share Dims, some of which have turned out to be something else."""
    source = Draw(draw, batch=batch, shuffles=shuffles)
    size = SIZES[source.below(len(SIZES))]
    return [source.axis(size) for _ in range(count)]


PROPERTY = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


UNORDERED = np.array([3, 1, 0, 2, 5, 4])
