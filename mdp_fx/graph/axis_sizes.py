"""What is left of an axis when its dimensions keep some of their units: masks, sizes, where each unit is mentioned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mdp_fx.graph.axes import Axis, BoolArray, Dim, IntArray, Shuffled, factor_size, span_size, unordered


def kept_mask(axis: Axis, kept: Mapping[Dim, BoolArray]) -> BoolArray:
    """Which entries of `axis` stay, shape (size,), when each Dim keeps the units that `kept` marks (all by default)."""
    parts: list[BoolArray] = []
    for span in axis.normal.spans:
        mask = np.ones(1, dtype=bool)
        for factor in span:
            if isinstance(factor, int):
                inner = np.ones(factor, dtype=bool)
            elif isinstance(factor, Dim):
                inner = kept.get(factor, np.ones(factor.size, dtype=bool))
            elif isinstance(factor, Shuffled):
                inner = kept_mask(factor.axis, kept)[factor.order]
            else:
                inner = kept_mask(factor, kept)
            mask = np.logical_and.outer(mask, inner).reshape(-1)
        parts.append(mask)
    return np.concatenate(parts) if parts else np.ones(0, dtype=bool)


def kept_size(axis: Axis, size_of: Callable[[Dim], int]) -> int:
    """Number of entries of `axis` when Dim d keeps `size_of(d)` units."""
    total = 0
    for span in axis.normal.spans:
        entries = 1
        for factor in span:
            if isinstance(factor, int):
                entries *= factor
            elif isinstance(factor, Dim):
                entries *= size_of(factor)
            else:
                entries *= kept_size(unordered(factor), size_of)
        total += entries
    return total


def occurrences(axis: Axis) -> list[tuple[Dim, IntArray]]:
    """Every mention of a Dim in `axis`: the Dim and, per entry of the axis, its unit index or -1; shape (size,)."""
    found: list[tuple[Dim, IntArray]] = []
    normal = axis.normal
    offset = 0
    for span in normal.spans:
        inner_size = entries = span_size(span)
        for factor in span:
            outer = entries // inner_size
            inner_size //= factor_size(factor)
            if isinstance(factor, int):
                continue
            if isinstance(factor, Dim):
                mentions = [(factor, np.arange(factor.size, dtype=np.int64))]
            elif isinstance(factor, Shuffled):
                mentions = [(dim, units[factor.order]) for dim, units in occurrences(factor.axis)]
            else:
                mentions = occurrences(factor)
            for dim, units in mentions:
                index = np.full(normal.size, -1, dtype=np.int64)
                index[offset : offset + entries] = np.tile(np.repeat(units, inner_size), outer)
                found.append((dim, index))
        offset += entries
    return found


def size_terms(axis: Axis) -> tuple[int, list[tuple[int, tuple[Dim, ...]]]]:
    """The size of `axis` as a polynomial in the sizes of its Dims: (constant, [(coefficient, Dims multiplied)])."""
    constant_part = 0
    terms: dict[tuple[Dim, ...], int] = {}
    for span in axis.normal.spans:
        # A product of sums is multiplied out.
        monomials: list[tuple[int, tuple[Dim, ...]]] = [(1, ())]
        for factor in span:
            if isinstance(factor, int):
                monomials = [(c * factor, dims) for c, dims in monomials]
            elif isinstance(factor, Dim):
                monomials = [(c, (*dims, factor)) for c, dims in monomials]
            else:
                base, inner = size_terms(unordered(factor))
                inner = inner + ([(base, ())] if base else [])
                monomials = [(c * k, dims + more) for c, dims in monomials for k, more in inner]
        for coefficient, dims in monomials:
            if not dims:
                constant_part += coefficient
            else:
                key = tuple(sorted(dims, key=id))
                terms[key] = terms.get(key, 0) + coefficient
    return constant_part, [(coefficient, dims) for dims, coefficient in terms.items()]
