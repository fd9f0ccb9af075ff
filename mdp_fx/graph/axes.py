"""Axis types: the algebra in which coupled channel groups are found.

Every axis of every tensor has a type, written as a sum of products::

    Axis    sum of spans            cat([a, b]) is (A) + (B)
    Span    product of factors      row-major: (H, D) has H*D entries, (C, 49) is a flattened C x 7 x 7
    Factor  Dim | int | Axis        a nested sum is needed where it does not lead its product
            | Shuffled              all entries of an axis in another order, as a channel shuffle gives
    Dim     a prunable dimension of n units; `exp` says what it turned out to be

Types are stored as written and normalised when read, so a type that was recorded early is never stale. `unify.unify`
makes two types equal: what is left free after all nodes have been visited are the channel groups of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self.size: int = span_size(spans[0]) if len(spans) == 1 else sum(map(span_size, spans))
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
        self._mentions = tuple(written_dims(self._normal))
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


def factor_size(factor: Factor) -> int:
    """Number of entries of a factor."""
    return factor if isinstance(factor, int) else factor.size


def span_size(span: Span) -> int:
    """Number of entries of a span."""
    size = 1
    for factor in span:
        size *= factor if isinstance(factor, int) else factor.size
    return size


def single_dim(axis: Axis) -> Dim | None:
    """The dimension that an axis as written is, if it is one and nothing else."""
    if len(axis.spans) == 1 and len(axis.spans[0]) == 1 and isinstance(axis.spans[0][0], Dim):
        return axis.spans[0][0]
    return None


def _is_free_dim(axis: Axis) -> bool:
    dim = single_dim(axis)
    return dim is not None and dim.exp is None


def unordered(factor: Axis | Shuffled) -> Axis:
    """The axis whose entries a factor has, in whatever order."""
    return factor if isinstance(factor, Axis) else factor.axis


def written_dims(axis: Axis) -> Iterator[Dim]:
    """The dimensions that `axis` mentions as it is written, bound or free."""
    for span in axis.spans:
        for factor in span:
            if isinstance(factor, Dim):
                yield factor
            elif isinstance(factor, Axis | Shuffled):
                yield from written_dims(unordered(factor))


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
        if span_size(span):
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
        size = span_size(span)
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
        rows *= factor_size(factor)
    return None


def _whole_spans(axis: Axis, order: IntArray) -> Axis | None:
    """The sum in which spans that the order leaves whole stand apart from the rest; None where they cannot."""
    sizes = [span_size(span) for span in axis.spans]
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


def normal_part(spans: list[Span]) -> Axis:
    """The axis of some spans of a normal form, which are one themselves."""
    part = Axis(*spans)
    part._normal, part._mentions = part, tuple(written_dims(part))
    return part
