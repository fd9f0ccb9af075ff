"""Unification: what must be equal is made equal, axes are cut into parts, and what cannot be followed is frozen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mdp_fx.graph.axes import (
    Axis,
    Dim,
    Factor,
    Shuffled,
    Span,
    concat,
    constant,
    factor_size,
    fresh,
    normal_part,
    product,
    shuffled,
    single_dim,
    span_size,
    unordered,
    written_dims,
)


def freeze(axis: Axis, reason: str, *, batch: bool = False) -> None:
    """Makes every free dimension of `axis` a constant, keeping `reason` at it; the batch too where `batch` is true."""
    for dim in written_dims(axis.normal):
        if dim.exp is None and (batch or not dim.rigid):
            dim.exp = constant(dim.size)
            dim.reason = reason


def frozen_reasons(axis: Axis) -> Iterator[tuple[int, str]]:
    """(size, reason) of every frozen part of an axis as it was written."""
    for span in axis.spans:
        for factor in span:
            if isinstance(factor, Dim):
                if factor.reason is not None:
                    yield factor.size, factor.reason
                elif factor.exp is not None:
                    yield from frozen_reasons(factor.exp)
            elif isinstance(factor, Axis | Shuffled):
                yield from frozen_reasons(unordered(factor))


def _is_constant(axis: Axis) -> bool:
    return all(isinstance(factor, int) for span in axis.spans for factor in span)


def unify(left: Axis, right: Axis, reason: str) -> None:
    """Makes two types of the same size equal, freezing what cannot be.

    Args:
        left: an axis type.
        right: an axis type with the same number of entries.
        reason: kept at every dimension that has to be frozen.

    Raises:
        ValueError: the sizes differ: the caller paired two axes that are not the same.
    """
    pending = [(left, right)]
    if left is right:
        return
    if _is_constant(left.normal) or _is_constant(right.normal):
        # What meets a frozen axis is frozen for the same reason.
        frozen = (why for side in (left, right) if _is_constant(side.normal) for _, why in frozen_reasons(side))
        reason = next(frozen, reason)
    while pending:
        x, y = pending.pop()
        x, y = x.normal, y.normal
        if x.size != y.size:
            msg = f"cannot unify {x!r} with {y!r}: {x.size} and {y.size} entries ({reason})"
            raise ValueError(msg)
        if x == y:
            continue
        if _is_constant(x) or _is_constant(y):
            freeze(x, reason, batch=True)
            freeze(y, reason, batch=True)
        elif not _bind(x, y):
            parts = _split_sums(x, y) if len(x.spans) > 1 or len(y.spans) > 1 else _split_products(x, y)
            if parts is None:
                freeze(x, reason, batch=True)
                freeze(y, reason, batch=True)
            else:
                pending.extend(parts)


def _bind(x: Axis, y: Axis) -> bool:
    """Binds a single free Dim to the other side; False where neither side is one or it occurs in the other."""
    for one, other in ((x, y), (y, x)):
        dim = single_dim(one)
        if dim is not None and not dim.rigid and dim not in written_dims(other):
            dim.exp = other
            return True
    return False


def _split_sums(x: Axis, y: Axis) -> list[tuple[Axis, Axis]] | None:
    at = min(span_size(x.spans[0]), span_size(y.spans[0]))
    first, second = cut(x, at), cut(y, at)
    if first is None or second is None:
        return None
    return [(first[1], second[1]), (first[0], second[0])]


def _split_products(x: Axis, y: Axis) -> list[tuple[Axis, Axis]] | None:
    a, b = x.spans[0], y.spans[0]
    if isinstance(a[0], Shuffled) and isinstance(b[0], Shuffled) and _is_shuffled(x) and _is_shuffled(y):
        same = np.array_equal(a[0].order, b[0].order)
        return [(a[0].axis, b[0].axis)] if same else None
    for one, other in ((x, y), (y, x)):
        only = one.spans[0][0]
        if isinstance(only, Shuffled) and _is_shuffled(one):
            columns = _as_columns(only)
            if columns is None:
                return None
            unify(*columns, "shuffled into columns")
            # Where its axis turned out to be no rows and columns, it stays shuffled.
            return None if _is_shuffled(one.normal) else [(one, other)]
    if len(a) == 1 and len(b) == 1:
        return None
    if factor_size(a[-1]) == factor_size(b[-1]):
        return [(Axis(a[:-1]), Axis(b[:-1])), (Axis(a[-1:]), Axis(b[-1:]))]
    if factor_size(a[0]) == factor_size(b[0]):
        return [(Axis(a[1:]), Axis(b[1:])), (Axis(a[:1]), Axis(b[:1]))]
    if factor_size(a[-1]) < factor_size(b[-1]):
        a, b = b, a
    parts = _refine(a[-1], factor_size(b[-1]), trailing=True)
    if parts is not None:
        return [(Axis((*a[:-1], parts[0])), Axis(b[:-1])), (Axis((parts[1],)), Axis(b[-1:]))]
    if factor_size(a[0]) < factor_size(b[0]):
        a, b = b, a
    parts = _refine(a[0], factor_size(b[0]), trailing=False)
    if parts is not None:
        return [(Axis((parts[1], *a[1:])), Axis(b[1:])), (Axis((parts[0],)), Axis(b[:1]))]
    return None


def _is_shuffled(axis: Axis) -> bool:
    return len(axis.spans) == 1 and len(axis.spans[0]) == 1 and isinstance(axis.spans[0][0], Shuffled)


def _as_columns(factor: Shuffled) -> tuple[Axis, Axis] | None:
    """What must be equal for a shuffled axis to be a product: its axis, and rows and columns whose exchange it is."""
    columns = int(factor.order[1])
    if columns <= 1 or factor.size % columns:
        return None
    grid = np.arange(factor.size).reshape(-1, columns)
    if not np.array_equal(factor.order, grid.T.reshape(-1)):
        return None
    return factor.axis, product(Dim(grid.shape[0]), Dim(columns))


def _refine(factor: Factor, size: int, *, trailing: bool) -> tuple[Factor, Factor] | None:
    """Splits a factor of n units into (n/size, size), or (size, n/size) where `trailing` is false."""
    total = factor_size(factor)
    if total % size or isinstance(factor, Axis | Shuffled):
        return None
    outer, inner = (total // size, size) if trailing else (size, total // size)
    if isinstance(factor, int):
        return outer, inner
    if factor.rigid:
        return None
    parts = Dim(outer), Dim(inner)
    factor.exp = Axis(parts)
    return parts


def cut(axis: Axis, at: int) -> tuple[Axis, Axis] | None:
    """Cuts `axis` after `at` entries.

    Dims that the cut falls into are bound to the sum of their parts; None where the cut would go through the batch, or
    among shuffled entries: inside one that stands for several, or of which each part would be made of many runs.
    """
    left: list[Span] = []
    spans = list(axis.normal.spans)
    while spans and span_size(spans[0]) <= at:
        at -= span_size(spans[0])
        left.append(spans.pop(0))
    if not at:
        return normal_part(left), normal_part(spans)
    parts = _cut_span(spans.pop(0), at)
    if parts is None:
        return None
    return Axis(*left, *parts[0].spans), Axis(*parts[1].spans, *spans)


def _cut_span(span: Span, at: int) -> tuple[Axis, Axis] | None:
    lead, rest = span[0], span[1:]
    whole, inside = divmod(at, span_size(rest))
    after = factor_size(lead) - whole - (inside > 0)
    head: Axis
    tail: Axis
    if isinstance(lead, int):
        head, tail = product(whole, *rest), product(after, *rest)
    elif isinstance(lead, Dim) and not lead.rigid:
        first, last = fresh(whole), fresh(after)
        lead.exp = concat(first, constant(int(inside > 0)), last)
        head, tail = product(first, *rest), product(last, *rest)
    elif isinstance(lead, Shuffled) and not inside:
        pieces = _cut_shuffled(lead, whole)
        if pieces is None:
            return None
        head, tail = product(pieces[0], *rest), product(pieces[1], *rest)
    else:
        return None
    if not whole:
        head = Axis()
    if not after:
        tail = Axis()
    if not inside:
        return head, tail
    parts = cut(Axis(rest), inside)
    if parts is None:
        return None
    return concat(head, parts[0]), concat(parts[1], tail)


MOST_RANGES = 64
"""A shuffled axis is cut only where the parts are made of at most so many runs of entries."""


def _cut_shuffled(factor: Shuffled, at: int) -> tuple[Axis, Axis] | None:
    """Cuts a shuffled axis: its axis is cut wherever entries of one part end and those of the other begin."""
    in_head = np.zeros(factor.size, dtype=bool)
    in_head[factor.order[:at]] = True
    edges = (np.flatnonzero(in_head[1:] != in_head[:-1]) + 1).tolist()
    if len(edges) > MOST_RANGES:
        return None
    runs: list[Axis] = []
    rest, done = factor.axis, 0
    for edge in edges:
        pieces = cut(rest, edge - done)
        if pieces is None:
            return None
        runs.append(pieces[0])
        rest, done = pieces[1], edge
    runs.append(rest)
    ranges = list(zip([0, *edges], [*edges, factor.size], strict=True))
    result = []
    for part, order in ((True, factor.order[:at]), (False, factor.order[at:])):
        mine = [i for i, (start, _) in enumerate(ranges) if in_head[start] == part]
        entries = np.concatenate([np.arange(*ranges[i]) for i in mine])
        result.append(shuffled(concat(*(runs[i] for i in mine)), np.searchsorted(entries, order)))
    return result[0], result[1]
