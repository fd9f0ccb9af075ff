"""Axis types: the algebra in which coupled channel groups are found.

Every axis of every tensor has a type, written as a sum of products::

    Axis    sum of spans            cat([a, b]) is (A) + (B)
    Span    product of factors      row-major: (H, D) has H*D entries, (C, 49) is a flattened C x 7 x 7
    Factor  Dim | int | Axis        a nested sum is needed where it does not lead its product
            | Shuffled              all entries of an axis in another order, as a channel shuffle gives
    Dim     a prunable dimension of n units; `exp` says what it turned out to be

Types are stored as written and normalised when read, so a type that was recorded early is never stale. `unify` makes
two types equal: what is left free after all nodes have been visited are the channel groups of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]


class Dim:
    """A dimension of `size` >= 2 units.

    Attributes:
        size: number of units in the dense network.
        exp: what the dimension turned out to be (another Dim, a product, a sum, a constant), None while it is free.
        reason: why it was frozen, None unless it was.
        rigid: True for the batch, which is never sliced, refined or bound.
    """

    __slots__ = ("exp", "reason", "rigid", "size")

    def __init__(self, size: int, *, rigid: bool = False) -> None:
        self.size = size
        self.exp: Axis | None = None
        self.reason: str | None = None
        self.rigid = rigid

    def __repr__(self) -> str:
        return f"{'batch' if self.rigid else 'Dim'}[{self.size}]"


class Axis:
    """A sum of spans. Equality is structural, so compare normal forms."""

    __slots__ = ("_mentions", "_normal", "size", "spans")

    def __init__(self, *spans: Span) -> None:
        self.spans = spans
        self.size: int = _span_size(spans[0]) if len(spans) == 1 else sum(map(_span_size, spans))
        self._normal: Axis | None = None
        self._mentions: tuple[Dim, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.spans == other.spans

    def __hash__(self) -> int:
        return hash(self.spans)

    def __repr__(self) -> str:
        return " + ".join("(" + ", ".join(map(repr, span)) + ")" for span in self.spans) or "(0)"

    @property
    def normal(self) -> Axis:
        """The normal form; see `normalise`."""
        # Found before and still right, unless a dimension in it has turned out to be something since.
        if self._normal is not None:
            for dim in self._mentions:
                if dim.exp is not None:
                    break
            else:
                return self._normal
        self._normal = self if _is_free_dim(self) else normalise(self)
        self._mentions = tuple(_dims(self._normal))
        return self._normal


class Shuffled:
    """All entries of an axis in another order.

    Attributes:
        axis: the axis.
        order: entry i of the shuffled axis is entry order[i] of `axis`; a permutation, shape (size,).
    """

    __slots__ = ("_key", "axis", "order", "size")

    def __init__(self, axis: Axis, order: IntArray) -> None:
        self.axis = axis
        self.order = order
        self.size = axis.size
        self._key = order.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shuffled) and self._key == other._key and self.axis == other.axis

    def __hash__(self) -> int:
        return hash((self.axis, self._key))

    def __repr__(self) -> str:
        return f"shuffled {self.axis!r}"


Factor: TypeAlias = Dim | int | Axis | Shuffled
Span: TypeAlias = tuple[Factor, ...]
TensorType: TypeAlias = tuple[Axis, ...]


def fresh(size: int) -> Axis:
    """A new axis of `size` entries: one free Dim, or the constant 1 or 0."""
    return Axis((Dim(size),)) if size > 1 else constant(size)


def constant(size: int) -> Axis:
    """An axis of `size` entries that cannot be pruned."""
    return Axis((size,)) if size else Axis()


def product(*factors: Factor) -> Axis:
    """The row-major product of `factors`."""
    return Axis(factors)


def concat(*axes: Axis) -> Axis:
    """The concatenation of `axes`."""
    return Axis(*(span for axis in axes for span in axis.spans))


def shuffled(axis: Axis, order: IntArray) -> Axis:
    """All entries of `axis` in the given order, a permutation of shape (size,)."""
    return Axis((Shuffled(axis, np.asarray(order, dtype=np.int64)),))


def _factor_size(factor: Factor) -> int:
    return factor if isinstance(factor, int) else factor.size


def _span_size(span: Span) -> int:
    size = 1
    for factor in span:
        size *= factor if isinstance(factor, int) else factor.size
    return size


def _is_free_dim(axis: Axis) -> bool:
    dim = _single_dim(axis)
    return dim is not None and dim.exp is None


def unordered(factor: Axis | Shuffled) -> Axis:
    """The axis whose entries a factor has, in whatever order."""
    return factor if isinstance(factor, Axis) else factor.axis


def _dims(axis: Axis) -> Iterator[Dim]:
    for span in axis.spans:
        for factor in span:
            if isinstance(factor, Dim):
                yield factor
            elif isinstance(factor, Axis | Shuffled):
                yield from _dims(unordered(factor))


def free_dims(axis: Axis) -> list[Dim]:
    """The free, prunable dimensions that `axis` mentions, in order, each once."""
    return list(dict.fromkeys(dim for dim in _mentions(axis) if not dim.rigid))


def batch_dims(axis: Axis) -> list[Dim]:
    """The rigid dimensions that `axis` mentions."""
    return list(dict.fromkeys(dim for dim in _mentions(axis) if dim.rigid))


def _mentions(axis: Axis) -> tuple[Dim, ...]:
    """The dimensions in the normal form of an axis."""
    axis.normal  # noqa: B018 - finds them
    return axis._mentions


def is_batch(axis: Axis) -> bool:
    """Whether an axis is the batch and nothing else."""
    spans = axis.normal.spans
    return len(spans) == 1 and len(spans[0]) == 1 and getattr(spans[0][0], "rigid", False)


# Normal form -----------------------------------------------------------------------------------------------------


def normalise(axis: Axis) -> Axis:
    """Returns the normal form of `axis`.

    Bound Dims are replaced by what they are, ones are dropped, adjacent ints are merged, a leading sum is distributed,
    adjacent equal spans become copies, and what the parts of a nested sum share is pulled out of it.
    """
    spans: list[Span] = []
    for span in axis.spans:
        if _span_size(span):
            spans.extend(_expand(span))
    return Axis(*_merge_copies(spans))


def _expand(span: Span) -> list[Span]:
    factors: list[Factor] = []
    for factor in span:
        if isinstance(factor, int):
            if factor != 1:
                factors.append(factor)
            continue
        if isinstance(factor, Dim):
            if factor.exp is None:
                factors.append(factor)
                continue
            factor = factor.exp
        inner = factor.normal if isinstance(factor, Axis) else _in_order(factor)
        if len(inner.spans) == 1:
            factors.extend(inner.spans[0])
        elif not inner.spans:
            return []
        else:
            factors.append(inner)
    if factors and isinstance(factors[0], Axis):
        rest = tuple(factors[1:])
        return [spread for part in factors[0].spans for spread in _expand(part + rest)]
    pulled: list[Factor] = []
    for factor in factors:
        pulled.extend(_pull_common(factor) if isinstance(factor, Axis) else (factor,))
    return [_merge_ints(pulled)]


def _in_order(factor: Shuffled) -> Axis:
    """The normal form of a shuffled axis: spans that lie together in order, and what is left shuffled."""
    axis, order = _unshuffle(factor.axis.normal, factor.order)
    if all(isinstance(f, int) for span in axis.spans for f in span):
        return constant(axis.size)
    columns = _transposed(axis, order)
    if columns is not None:
        return columns
    parts = _whole_spans(axis, order)
    return parts if parts is not None else Axis((Shuffled(axis, order),))


def _unshuffle(axis: Axis, order: IntArray) -> tuple[Axis, IntArray]:
    """An axis without shuffled spans, and the order of its entries."""
    if not any(len(span) == 1 and isinstance(span[0], Shuffled) for span in axis.spans):
        return axis, order
    inner: list[Span] = []
    places: list[IntArray] = []
    offset = 0
    for span in axis.spans:
        size = _span_size(span)
        only = span[0] if len(span) == 1 else None
        inner.extend(only.axis.spans if isinstance(only, Shuffled) else (span,))
        places.append(offset + (only.order if isinstance(only, Shuffled) else np.arange(size)))
        offset += size
    return Axis(*inner).normal, np.concatenate(places)[order]


def _transposed(axis: Axis, order: IntArray) -> Axis | None:
    """The product (Q, P) where the order transposes the product (P, Q) that the axis is."""
    span = axis.spans[0] if len(axis.spans) == 1 else tuple(_pull_common(axis))
    rows = 1
    for at, factor in enumerate(span):
        if np.array_equal(order, np.arange(axis.size).reshape(rows, -1).T.reshape(-1)):
            return Axis((*span[at:], *span[:at])).normal
        rows *= _factor_size(factor)
    return None


def _whole_spans(axis: Axis, order: IntArray) -> Axis | None:
    """The sum in which spans that the order leaves whole stand apart from the rest; None where they cannot."""
    sizes = [_span_size(span) for span in axis.spans]
    starts = [int(end) - size for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
    runs: list[int | None] = []
    rest: list[int] = []
    at = 0
    while at < len(order):
        place = starts.index(order[at]) if order[at] in starts else None
        if place is not None and np.array_equal(order[at : at + sizes[place]], order[at] + np.arange(sizes[place])):
            runs.append(place)
            at += sizes[place]
        else:
            if not runs or runs[-1] is not None:
                runs.append(None)
            rest.append(int(order[at]))
            at += 1
    if runs == [None] or runs.count(None) > 1:
        return None
    left = [i for i in range(len(starts)) if i not in runs]
    entries = np.concatenate([starts[i] + np.arange(sizes[i]) for i in left] or [np.empty(0, dtype=np.int64)])
    local = Shuffled(Axis(*(axis.spans[i] for i in left)), np.searchsorted(entries, np.asarray(rest, dtype=np.int64)))
    return Axis(*((local,) if i is None else axis.spans[i] for i in runs)).normal


def _merge_ints(factors: list[Factor]) -> Span:
    merged: list[Factor] = []
    for factor in factors:
        if isinstance(factor, int):
            if factor == 1:
                continue
            last = merged[-1] if merged else None
            if isinstance(last, int):
                merged[-1] = last * factor
                continue
        merged.append(factor)
    return tuple(merged)


def _copies(span: Span) -> tuple[int, Span]:
    """Reads `span` as k copies of R."""
    if span and isinstance(span[0], int):
        return span[0], span[1:]
    return 1, span


def _times(count: int, rest: Span) -> Span:
    return rest if count == 1 else (count, *rest)


def _merge_copies(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged:
            count, rest = _copies(span)
            last_count, last_rest = _copies(merged[-1])
            if rest == last_rest:
                merged[-1] = _times(count + last_count, rest)
                continue
        merged.append(span)
    return merged


def _pull_common(inner: Axis) -> list[Factor]:
    """Pulls the period, then the common suffix, out of a nested sum: (A, R) + (B, R) = ((A) + (B)), R."""
    spans = list(inner.spans)
    suffix: list[Factor] = []
    period = next(n for n in range(1, len(spans) + 1) if len(spans) % n == 0 and spans == spans[:n] * (len(spans) // n))
    repeats = len(spans) // period
    spans = spans[:period]
    while len(spans) > 1 and all(spans):
        lasts = [span[-1] for span in spans]
        if all(last == lasts[0] for last in lasts[1:]):
            suffix.insert(0, lasts[0])
            spans = [span[:-1] for span in spans]
            continue
        ints = [last for last in lasts if isinstance(last, int)]
        shared = int(np.gcd.reduce(ints)) if len(ints) == len(lasts) else 1
        if shared == 1:
            break
        suffix.insert(0, shared)
        spans = [_merge_ints([*span[:-1], int(last) // shared]) for span, last in zip(spans, ints, strict=True)]
    core = Axis(*_merge_copies(spans))
    head: list[Factor] = list(core.spans[0]) if len(core.spans) == 1 else [core]
    return ([repeats] if repeats > 1 else []) + head + suffix


# Unification -----------------------------------------------------------------------------------------------------


def freeze(axis: Axis, reason: str, *, batch: bool = False) -> None:
    """Makes every free dimension of `axis` a constant, keeping `reason` at it; the batch too where `batch` is true."""
    for dim in _dims(axis.normal):
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


def _single_dim(axis: Axis) -> Dim | None:
    if len(axis.spans) == 1 and len(axis.spans[0]) == 1 and isinstance(axis.spans[0][0], Dim):
        return axis.spans[0][0]
    return None


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
        dim = _single_dim(one)
        if dim is not None and not dim.rigid and dim not in _dims(other):
            dim.exp = other
            return True
    return False


def _split_sums(x: Axis, y: Axis) -> list[tuple[Axis, Axis]] | None:
    at = min(_span_size(x.spans[0]), _span_size(y.spans[0]))
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
    if _factor_size(a[-1]) == _factor_size(b[-1]):
        return [(Axis(a[:-1]), Axis(b[:-1])), (Axis(a[-1:]), Axis(b[-1:]))]
    if _factor_size(a[0]) == _factor_size(b[0]):
        return [(Axis(a[1:]), Axis(b[1:])), (Axis(a[:1]), Axis(b[:1]))]
    if _factor_size(a[-1]) < _factor_size(b[-1]):
        a, b = b, a
    parts = _refine(a[-1], _factor_size(b[-1]), trailing=True)
    if parts is not None:
        return [(Axis((*a[:-1], parts[0])), Axis(b[:-1])), (Axis((parts[1],)), Axis(b[-1:]))]
    if _factor_size(a[0]) < _factor_size(b[0]):
        a, b = b, a
    parts = _refine(a[0], _factor_size(b[0]), trailing=False)
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
    total = _factor_size(factor)
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

    Dims that the cut falls into are bound to the sum of their parts; None where the cut would go through the batch.
    """
    left: list[Span] = []
    spans = list(axis.normal.spans)
    while spans and _span_size(spans[0]) <= at:
        at -= _span_size(spans[0])
        left.append(spans.pop(0))
    if not at:
        return _part(left), _part(spans)
    parts = _cut_span(spans.pop(0), at)
    if parts is None:
        return None
    return Axis(*left, *parts[0].spans), Axis(*parts[1].spans, *spans)


def _part(spans: list[Span]) -> Axis:
    """Some spans of a normal form, which are one themselves."""
    part = Axis(*spans)
    part._normal, part._mentions = part, tuple(_dims(part))
    return part


def _cut_span(span: Span, at: int) -> tuple[Axis, Axis] | None:
    lead, rest = span[0], span[1:]
    whole, inside = divmod(at, _span_size(rest))
    after = _factor_size(lead) - whole - (inside > 0)
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


# Evaluation ------------------------------------------------------------------------------------------------------


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
        inner_size = entries = _span_size(span)
        for factor in span:
            outer = entries // inner_size
            inner_size //= _factor_size(factor)
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
