"""The algebra of axis types: normal form, unification, cutting, and evaluation against entry-by-entry oracles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdp_fx.graph.axes import (
    Axis,
    BoolArray,
    Dim,
    Factor,
    IntArray,
    Shuffled,
    Span,
    batch_dims,
    concat,
    constant,
    cut,
    free_dims,
    freeze,
    fresh,
    frozen_reasons,
    kept_mask,
    kept_size,
    normalise,
    occurrences,
    product,
    shuffled,
    size_terms,
    unify,
)

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


# Making axes --------------------------------------------------------------------------------------------------------


def test_an_axis_of_one_entry_is_the_constant_one() -> None:
    assert fresh(1) == constant(1) == Axis((1,))
    assert fresh(0) == constant(0) == Axis()
    assert (constant(0).size, constant(7).size) == (0, 7)
    assert fresh(4) != fresh(4)


def test_sizes_of_sums_and_products() -> None:
    assert product(A, 3, B).size == 18
    assert concat(product(A, B), constant(4), fresh(7)).size == 17
    assert product(H, concat(product(2, A), product(B))).size == 35


def test_axes_print_as_they_are_written() -> None:
    batch = Dim(2, rigid=True)
    assert repr(Axis((batch, 3), (A,))) == "(batch[2], 3) + (Dim[2])"
    assert repr(Axis()) == "(0)"
    assert len({Axis((A,)), Axis((A,)), Axis((B,))}) == 2


# Normal form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        pytest.param(Axis((1, A, 1, B)), Axis((A, B)), id="ones are dropped"),
        pytest.param(Axis((1,)), Axis(()), id="an axis of one entry is the empty product"),
        pytest.param(Axis((A, 2, 3, B)), Axis((A, 6, B)), id="ints are merged"),
        pytest.param(Axis((A, 2, 1, 3)), Axis((A, 6)), id="ints are merged over ones"),
        pytest.param(Axis((A,), (A,)), Axis((2, A)), id="equal spans are copies"),
        pytest.param(Axis((3, A, B), (4, A, B)), Axis((7, A, B)), id="copies are added"),
        pytest.param(Axis((A, B), (2, A, B), (A, B)), Axis((4, A, B)), id="copies of three are added"),
        pytest.param(Axis((3,), (4,)), Axis((7,)), id="constants are added"),
        pytest.param(Axis((A,), (B,), (A,)), Axis((A,), (B,), (A,)), id="only neighbours are copies"),
        pytest.param(Axis((A, B), (B, A)), Axis((A, B), (B, A)), id="products do not commute"),
        pytest.param(Axis((H, Axis((A, B)), 2)), Axis((H, A, B, 2)), id="a nested product is its factors"),
        pytest.param(Axis((Axis((A,), (B,)), C)), Axis((A, C), (B, C)), id="a leading sum distributes"),
        pytest.param(
            Axis((Axis((A,), (B,)), Axis((B,), (C,)))),
            Axis((A, Axis((B,), (C,))), (B, Axis((B,), (C,)))),
            id="only the leading sum distributes",
        ),
        pytest.param(Axis((1, Axis((A,), (B,)), C)), Axis((A, C), (B, C)), id="a sum leads after ones"),
        pytest.param(Axis((2, Axis((A,), (B,)))), Axis((2, Axis((A,), (B,)))), id="a sum behind copies stays"),
        pytest.param(Axis((H, Axis((A,), (A,)))), Axis((H, 2, A)), id="nested equal spans are copies"),
        pytest.param(
            Axis((H, Axis((A, C), (B, C)))), Axis((H, Axis((A,), (B,)), C)), id="a common suffix is pulled out"
        ),
        pytest.param(
            Axis((H, Axis((A, B, C), (H, B, C)))),
            Axis((H, Axis((A,), (H,)), B, C)),
            id="a longer common suffix is pulled out in order",
        ),
        pytest.param(
            Axis((H, Axis((A, 4), (B, 6)))), Axis((H, Axis((A, 2), (B, 3)), 2)), id="a common int is pulled out"
        ),
        pytest.param(
            Axis((H, Axis((A, C), (3, C)))), Axis((H, Axis((A,), (3,)), C)), id="a constant may share the suffix"
        ),
        pytest.param(Axis((H, Axis((A, C), (C,)))), Axis((H, Axis((A,), ()), C)), id="the suffix may be all of a span"),
        pytest.param(
            Axis((H, Axis((A,), (B,), (A,), (B,)))), Axis((H, 2, Axis((A,), (B,)))), id="a period is pulled out"
        ),
        pytest.param(
            Axis((H, 3, Axis((A,), (B,), (A,), (B,)))), Axis((H, 6, Axis((A,), (B,)))), id="a period meets an int"
        ),
        pytest.param(Axis((A, Axis())), Axis(), id="a product with nothing is nothing"),
        pytest.param(Axis((A,), (Axis(),), (A,)), Axis((2, A)), id="an empty part is left out"),
        pytest.param(
            Axis((H, Axis((2, A), (B,)))), Axis((H, Axis((2, A), (B,)))), id="a fused projection stays as it is"
        ),
    ],
)
def test_normal_form(written: Axis, normal: Axis) -> None:
    assert written.normal == normal
    assert written.normal.size == written.size


@PROPERTY
@given(axes(batch=True))
def test_normalising_twice_is_normalising_once(drawn: list[Axis]) -> None:
    once = normalise(drawn[0])
    assert normalise(once) == once


@PROPERTY
@given(axes(), st.integers(0, 1000))
def test_the_normal_form_keeps_every_entry_at_its_place(drawn: list[Axis], seed: int) -> None:
    (axis,) = drawn
    kept = random_units(axis, seed=seed)
    assert kept_mask(axis, kept).tolist() == expected_mask(axis, kept)
    assert kept_mask(axis.normal, kept).tolist() == expected_mask(axis, kept)


def test_a_type_that_was_read_early_is_not_stale() -> None:
    a, b, c = Dim(6), Dim(2), Dim(3)
    axis, around = Axis((a, 2)), Axis((4, Axis((a,), (5,))))
    assert axis.normal == Axis((a, 2))
    assert around.normal == Axis((4, Axis((a,), (5,))))
    a.exp = Axis((b, c))
    assert axis.normal == Axis((b, c, 2))
    assert around.normal == Axis((4, Axis((b, c), (5,))))
    c.exp = Axis((3,))
    assert axis.normal == Axis((b, 6))


def test_free_and_batch_dims_are_listed_once_and_in_order() -> None:
    batch, a, b, frozen = Dim(2, rigid=True), Dim(3), Dim(4), Dim(5)
    freeze(Axis((frozen,)), "why")
    axis = Axis((b, batch), (a, b), (frozen, Axis((a,), (b,))))
    assert free_dims(axis) == [b, a]
    assert batch_dims(axis) == [batch]


# Freezing -----------------------------------------------------------------------------------------------------------


def test_freezing_makes_constants_and_keeps_the_first_reason() -> None:
    a, b, batch = Dim(3), Dim(4), Dim(2, rigid=True)
    axis = Axis((batch, a), (b,))
    freeze(axis, "first")
    freeze(axis, "second")
    assert axis.normal == Axis((batch, 3), (4,))
    assert (a.reason, b.reason, batch.reason) == ("first", "first", None)
    freeze(axis, "third", batch=True)
    assert axis.normal == Axis((10,))
    assert batch.reason == "third"


def test_frozen_reasons_are_found_in_what_a_dim_turned_out_to_be() -> None:
    whole, a, b, c = Dim(9), Dim(2), Dim(3), Dim(4)
    whole.exp = Axis((a,), (b,), (c,))
    freeze(Axis((a,)), "one")
    freeze(Axis((5, Axis((c,)))), "two")
    assert list(frozen_reasons(Axis((whole,)))) == [(2, "one"), (4, "two")]
    assert list(frozen_reasons(Axis((5, Axis((c,), (b,)))))) == [(4, "two")]
    assert list(frozen_reasons(Axis((b,), (7,)))) == []


# Unification --------------------------------------------------------------------------------------------------------


def test_equal_types_stay_free() -> None:
    a, b = Dim(3), Dim(4)
    unify(Axis((a, b)), Axis((1, a, b)), "why")
    assert a.exp is None
    assert b.exp is None


def test_what_meets_a_constant_is_frozen_with_the_reason() -> None:
    a, b = Dim(3), Dim(4)
    unify(Axis((a, 2), (b,)), constant(10), "why")
    assert (a.reason, b.reason) == ("why", "why")
    assert Axis((a, 2), (b,)).normal == Axis((10,))


def test_what_meets_a_frozen_axis_takes_its_reason() -> None:
    a, b, c = Dim(6), Dim(6), Dim(6)
    freeze(Axis((a,)), "root")
    unify(Axis((a,)), Axis((b,)), "met")
    unify(Axis((c,)), Axis((b,)), "met again")
    assert (b.reason, c.reason) == ("root", "root")


def test_a_single_dim_is_bound_on_either_side() -> None:
    a, b, c, d = Dim(6), Dim(2), Dim(3), Dim(6)
    unify(Axis((a,)), Axis((b, c)), "why")
    unify(Axis((b, c)), Axis((d,)), "why")
    assert Axis((a,)).normal == Axis((d,)).normal == Axis((b, c))
    assert free_dims(Axis((a,), (d,))) == [b, c]


def test_two_free_dims_become_one() -> None:
    a, b = Dim(6), Dim(6)
    unify(Axis((a,)), Axis((b,)), "why")
    assert Axis((a,)).normal == Axis((b,)).normal
    assert len(free_dims(Axis((a,), (b,)))) == 1


def test_a_dim_that_is_bound_is_read_through() -> None:
    # b is in what a turned out to be: binding the pair again must end.
    a, b, c = Dim(6), Dim(2), Dim(3)
    unify(Axis((a,)), Axis((b, c)), "why")
    unify(Axis((a,)), Axis((b, Axis((c,)))), "why")
    unify(Axis((b, c)), Axis((a,)), "why")
    assert free_dims(Axis((a,))) == [b, c]


def test_a_free_dim_follows_the_batch_and_the_batch_stays() -> None:
    batch, a = Dim(2, rigid=True), Dim(2)
    unify(Axis((batch,)), Axis((a,)), "why")
    assert Axis((a,)).normal == Axis((batch,))
    assert batch.exp is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: constant(6), id="a constant"),
        pytest.param(lambda: Axis((Dim(2),), (Dim(4),)), id="a sum"),
        pytest.param(lambda: Axis((Dim(2), Dim(3))), id="a product"),
    ],
)
def test_a_batch_of_units_that_meets_what_it_cannot_be_is_fixed(other: Callable[[], Axis]) -> None:
    batch, met = Dim(6, rigid=True), other()
    unify(Axis((batch,)), met, "why")
    assert Axis((batch,)).normal == met.normal == Axis((6,))
    assert batch.reason == "why"


def test_sums_are_cut_at_the_smaller_boundary() -> None:
    a, b, c, d = Dim(3), Dim(5), Dim(5), Dim(3)
    left, right = Axis((a,), (b,)), Axis((c,), (d,))
    unify(left, right, "why")
    assert left.normal == right.normal
    # 3, then the 2 that are left of c, then d: b is both of them.
    assert [dim.size for dim in free_dims(left)] == [3, 2, 3]
    assert Axis((c,)).normal == Axis((free_dims(left)[0],), (free_dims(left)[1],))


def test_an_axis_cut_in_two_orders_ends_in_equal_parts() -> None:
    a, b = Dim(2), Dim(4)
    left, right = Axis((a,), (b,)), Axis((b,), (a,))
    unify(left, right, "why")
    (unit,) = free_dims(left)
    assert left.normal == right.normal == Axis((3, unit))
    assert Axis((b,)).normal == Axis((2, unit))


def test_single_units_that_a_cut_leaves_are_constants() -> None:
    a, b, c, d = Dim(3), Dim(5), Dim(4), Dim(4)
    unify(Axis((a,), (b,)), Axis((c,), (d,)), "why")
    assert [dim.size for dim in free_dims(Axis((a,), (b,)))] == [3, 4]
    assert Axis((c,)).normal.spans[1] == ()


@pytest.mark.parametrize(
    ("left", "right", "sizes"),
    [
        pytest.param((4, 3), (2, 2, 3), [2, 2, 3], id="trailing factors of one size are matched"),
        pytest.param((3, 8), (3, 2, 4), [3, 2, 4], id="leading factors of one size are matched"),
        pytest.param((4, 6), (8, 3), [4, 2, 3], id="a trailing factor is refined"),
        pytest.param((8, 3), (4, 6), [4, 2, 3], id="a trailing factor of the other side is refined"),
        pytest.param((4, 9), (2, 3, 6), [2], id="a leading factor is refined and what is left is frozen"),
        pytest.param((2, 3, 6), (4, 9), [2], id="the same from the other side"),
        pytest.param((4, 9), (6, 6), [], id="nothing fits and all is frozen"),
    ],
)
def test_products_are_matched_and_refined(left: tuple[int, ...], right: tuple[int, ...], sizes: list[int]) -> None:
    one, other = (Axis(tuple(Dim(size) for size in side)) for side in (left, right))
    unify(one, other, "why")
    assert one.normal == other.normal
    assert [dim.size for dim in free_dims(one)] == sizes
    reasons = {reason for axis in (one, other) for _, reason in frozen_reasons(axis)}
    assert reasons == ({"why"} if prod(sizes) < one.size else set())


def test_an_int_factor_is_refined() -> None:
    a, b = Dim(4), Dim(8)
    unify(Axis((a, 6)), Axis((b, 3)), "why")
    assert Axis((b,)).normal == Axis((a, 2))
    assert free_dims(Axis((b,))) == [a]


def test_a_nested_sum_is_not_refined() -> None:
    a, b, c, d, e, f = Dim(4), Dim(2), Dim(4), Dim(3), Dim(4), Dim(2)
    unify(Axis((a, Axis((b,), (c,)))), Axis((d, e, f)), "why")
    assert {dim.reason for dim in (a, b, c, d, e, f)} == {"why"}
    whole, last = Dim(6), Dim(2)
    unify(Axis((Dim(4), whole)), Axis((Dim(3), Dim(4), last)), "why")
    assert free_dims(Axis((whole,))) == free_dims(Axis((last,)))


def test_a_fused_projection_couples_its_three_parts() -> None:
    # A fused qkv seen as (3, H, D): all three parts have the same units.
    q, k, v, h, d = Dim(6), Dim(6), Dim(6), Dim(2), Dim(3)
    unify(Axis((q,), (k,), (v,)), Axis((3, h, d)), "why")
    assert Axis((q,)).normal == Axis((k,)).normal == Axis((v,)).normal
    assert [dim.size for dim in free_dims(Axis((q,), (k,), (v,)))] == [2, 3]


def test_sizes_that_differ_are_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"cannot unify \(Dim\[2\]\) with \(3\): 2 and 3 entries \(added at x\)"):
        unify(Axis((Dim(2),)), constant(3), "added at x")


@PROPERTY
@given(axes(count=2, batch=True), st.integers(0, 1000))
def test_unified_axes_keep_the_same_entries(drawn: list[Axis], seed: int) -> None:
    left, right = drawn
    unify(left, right, "why")
    kept = random_units(left, right, seed=seed)
    assert kept_mask(left, kept).tolist() == kept_mask(right, kept).tolist() == expected_mask(left, kept)


@PROPERTY
@given(axes(count=2, batch=True))
def test_unified_axes_mention_the_same_units_entry_by_entry(drawn: list[Axis]) -> None:
    left, right = drawn
    unify(left, right, "why")
    for entry in range(left.size):
        assert Counter(mentions(left, entry)) == Counter(mentions(right, entry))


@PROPERTY
@given(axes(count=3, batch=True), st.integers(0, 1000))
def test_unifying_a_chain_couples_all_of_it(drawn: list[Axis], seed: int) -> None:
    one, two, three = drawn
    unify(one, two, "why")
    unify(two, three, "why")
    kept = random_units(*drawn, seed=seed)
    assert kept_mask(one, kept).tolist() == kept_mask(two, kept).tolist() == kept_mask(three, kept).tolist()


@PROPERTY
@given(axes(count=2, batch=True))
def test_unifying_twice_changes_nothing(drawn: list[Axis]) -> None:
    left, right = drawn
    unify(left, right, "why")
    before = left.normal, right.normal, list(frozen_reasons(left)), list(frozen_reasons(right))
    unify(left, right, "again")
    unify(right, left, "again")
    assert (left.normal, right.normal, list(frozen_reasons(left)), list(frozen_reasons(right))) == before


# Cutting ------------------------------------------------------------------------------------------------------------


def parts_of(axis: Axis, at: int) -> tuple[Axis, Axis]:
    parts = cut(axis, at)
    assert parts is not None
    return parts[0].normal, parts[1].normal


def test_a_cut_between_spans_binds_nothing() -> None:
    a, b = Dim(3), Dim(4)
    assert parts_of(Axis((a,), (b,)), 3) == (Axis((a,)), Axis((b,)))
    assert parts_of(Axis((a,), (b,)), 0) == (Axis(), Axis((a,), (b,)))
    assert parts_of(Axis((a,), (b,)), 7) == (Axis((a,), (b,)), Axis())
    assert a.exp is None
    assert b.exp is None


def test_a_cut_inside_of_a_dim_makes_it_the_sum_of_its_parts() -> None:
    a = Dim(7)
    left, right = parts_of(Axis((a, 2)), 6)
    first, second = free_dims(Axis((a,)))
    assert (first.size, second.size) == (3, 4)
    assert (left, right) == (Axis((first, 2)), Axis((second, 2)))
    assert Axis((a,)).normal == Axis((first,), (second,))


def test_a_cut_of_copies_takes_whole_copies() -> None:
    a = Dim(3)
    assert parts_of(Axis((5, a)), 6) == (Axis((2, a)), Axis((3, a)))
    assert a.exp is None


def test_a_cut_of_copies_cuts_the_units_where_it_falls_into_one() -> None:
    a = Dim(5)
    left, right = parts_of(Axis((3, a)), 7)
    first, second = free_dims(Axis((a,)))
    assert (first.size, second.size) == (2, 3)
    # One copy and the first part of the next; the rest of it and one copy more.
    assert left == Axis((first,), (second,), (first,))
    assert right == Axis((second,), (first,), (second,))


def test_a_cut_inside_of_one_unit_makes_that_unit_constant() -> None:
    a, b = Dim(5), Dim(4)
    left, right = parts_of(Axis((a, b)), 9)
    first, last = free_dims(Axis((a,)))
    (rest,) = free_dims(Axis((b,)))
    assert Axis((a,)).normal == Axis((first,), (), (last,))
    assert (first.size, last.size, rest.size) == (2, 2, 3)
    assert left == Axis((first, Axis((), (rest,))), ())
    assert right == Axis((rest,), (last, Axis((), (rest,))))


def test_a_cut_through_the_batch_is_refused() -> None:
    batch, a = Dim(4, rigid=True), Dim(3)
    assert cut(Axis((batch,)), 2) is None
    assert cut(Axis((batch, a)), 3) is None
    assert cut(Axis((2, batch)), 3) is None
    assert parts_of(Axis((2, batch)), 4) == (Axis((batch,)), Axis((batch,)))
    assert batch.exp is None


def test_constants_are_cut_anywhere() -> None:
    assert parts_of(constant(7), 3) == (Axis((3,)), Axis((4,)))


@PROPERTY
@given(axes(), st.integers(0, 24), st.integers(0, 1000))
def test_the_parts_of_a_cut_joined_are_the_axis(drawn: list[Axis], at: int, seed: int) -> None:
    (axis,) = drawn
    at = min(at, axis.size)
    parts = cut(axis, at)
    assert parts is not None
    assert (parts[0].size, parts[1].size) == (at, axis.size - at)
    kept = random_units(axis, *parts, seed=seed)
    whole = expected_mask(axis, kept)
    assert kept_mask(concat(*parts), kept).tolist() == kept_mask(axis, kept).tolist() == whole
    assert kept_mask(parts[0], kept).tolist() == whole[:at]
    assert kept_mask(parts[1], kept).tolist() == whole[at:]


# Evaluation ---------------------------------------------------------------------------------------------------------


def test_the_mask_of_a_product_is_an_outer_product_and_of_a_sum_a_concatenation() -> None:
    kept = {A: np.array([True, False]), B: np.array([False, True, True])}
    assert kept_mask(Axis((A, B)), kept).tolist() == [False, True, True, False, False, False]
    assert kept_mask(Axis((B,), (A,)), kept).tolist() == [False, True, True, True, False]
    assert kept_mask(Axis((2, A)), kept).tolist() == [True, False, True, False]
    assert kept_mask(Axis((A, 2)), kept).tolist() == [True, True, False, False]
    assert kept_mask(Axis((A, Axis((B,), (1,)))), kept).tolist() == [False, True, True, True] + [False] * 4
    assert kept_mask(Axis(), kept).tolist() == []


def test_dims_that_are_not_named_keep_all_their_units() -> None:
    assert kept_mask(Axis((A, B)), {B: np.array([True, False, True])}).tolist() == [True, False, True] * 2


@PROPERTY
@given(axes(), st.integers(0, 1000))
def test_sizes_and_polynomials_count_the_mask(drawn: list[Axis], seed: int) -> None:
    (axis,) = drawn
    kept = random_units(axis, seed=seed)
    counts = {dim: int(mask.sum()) for dim, mask in kept.items()}
    size = kept_size(axis, counts.__getitem__)
    assert size == int(kept_mask(axis, kept).sum())
    constant_part, terms = size_terms(axis)
    assert size == constant_part + sum(c * prod(counts[dim] for dim in dims) for c, dims in terms)
    assert len({dims for _, dims in terms}) == len(terms)


@PROPERTY
@given(axes())
def test_occurrences_name_every_mention(drawn: list[Axis]) -> None:
    (axis,) = drawn
    found: list[Counter[tuple[Dim, int]]] = [Counter() for _ in range(axis.size)]
    for dim, index in occurrences(axis):
        assert index.shape == (axis.size,)
        for entry in np.flatnonzero(index >= 0):
            found[entry][dim, int(index[entry])] += 1
    assert found == [Counter(mentions(axis, entry)) for entry in range(axis.size)]


def test_occurrences_of_a_fused_projection() -> None:
    fused = Axis((A, Axis((2, B), (C,))))
    found = [(dim, index.tolist()) for dim, index in occurrences(fused)]
    inner = [0, 1, 2, 0, 1, 2, -1, -1, -1, -1]
    assert found == [
        (A, [0] * 10 + [1] * 10),
        (B, inner * 2),
        (C, [-1, -1, -1, -1, -1, -1, 0, 1, 2, 3] * 2),
    ]


def test_a_size_is_multiplied_out() -> None:
    fused = Axis((H, Axis((2, A), (B,))), (6,), (3, H, Axis((A,), (1,))))
    constant_part, terms = size_terms(fused)
    assert constant_part == 6
    found = {frozenset(dims): coefficient for coefficient, dims in terms}
    assert found == {frozenset((H, A)): 5, frozenset((H, B)): 1, frozenset((H,)): 3}


# Shuffled axes ------------------------------------------------------------------------------------------------------

UNORDERED = np.array([3, 1, 0, 2, 5, 4])
F = Dim(6)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        pytest.param(shuffled(Axis((F,)), np.arange(6)), Axis((F,)), id="an order that moves nothing"),
        pytest.param(shuffled(constant(6), UNORDERED), constant(6), id="constants have no order"),
        pytest.param(
            shuffled(shuffled(Axis((F,)), UNORDERED), np.argsort(UNORDERED)), Axis((F,)), id="an order and its inverse"
        ),
        pytest.param(
            shuffled(shuffled(Axis((F,)), UNORDERED), UNORDERED),
            shuffled(Axis((F,)), UNORDERED[UNORDERED]),
            id="two orders are one",
        ),
        pytest.param(shuffled(Axis((A, B)), transposed(2, 6)), Axis((B, A)), id="rows and columns are exchanged"),
        pytest.param(
            shuffled(Axis((A, B, C)), transposed(6, 24)), Axis((C, A, B)), id="two factors are exchanged with one"
        ),
        pytest.param(
            shuffled(Axis((2, B)), transposed(2, 6)), Axis((B, 2)), id="copies of all units become copies of each"
        ),
        pytest.param(
            shuffled(Axis((A,), (B,)), np.array([2, 3, 4, 0, 1])), Axis((B,), (A,)), id="whole parts change places"
        ),
        pytest.param(
            shuffled(Axis((A,), (B,), (C,)), np.array([8, 5, 7, 6, 2, 3, 4, 0, 1])),
            Axis((Shuffled(Axis((C,)), np.array([3, 0, 2, 1])),), (B,), (A,)),
            id="parts that stay together leave the rest",
        ),
        pytest.param(
            shuffled(Axis((A,), (B,), (C,)), np.array([8, 5, 7, 6, 2, 3, 4, 1, 0])),
            shuffled(Axis((A,), (B,), (C,)), np.array([8, 5, 7, 6, 2, 3, 4, 1, 0])),
            id="parts that are shuffled on both sides stay",
        ),
        pytest.param(
            Axis((H, Shuffled(Axis((A, B)), transposed(2, 6)))),
            Axis((H, B, A)),
            id="what is exchanged inside a product",
        ),
        pytest.param(
            Axis((Shuffled(Axis((A,), (B,)), np.array([2, 3, 4, 0, 1])), C)),
            Axis((B, C), (A, C)),
            id="parts that change places lead a product",
        ),
    ],
)
def test_normal_form_of_shuffled_axes(written: Axis, normal: Axis) -> None:
    assert written.normal == normal
    for entry in range(written.size):
        assert Counter(mentions(written, entry)) == Counter(mentions(normal, entry))


def test_shuffled_axes_are_equal_where_axis_and_order_are() -> None:
    one, same, other = (shuffled(Axis((F,)), order) for order in (UNORDERED, UNORDERED.copy(), UNORDERED[::-1]))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != shuffled(Axis((Dim(6),)), UNORDERED)
    assert repr(one) == "(shuffled (Dim[6]))"


def test_free_dims_and_frozen_reasons_are_found_in_shuffled_axes() -> None:
    batch, a, b = Dim(2, rigid=True), Dim(2), Dim(2)
    axis = shuffled(Axis((batch,), (a,), (b,)), UNORDERED)
    assert (free_dims(axis), batch_dims(axis)) == ([a, b], [batch])
    freeze(axis, "why")
    assert list(frozen_reasons(axis)) == [(2, "why"), (2, "why")]
    assert (free_dims(axis), batch_dims(axis)) == ([], [batch])


def test_a_cut_of_a_shuffled_axis_cuts_its_axis_where_the_parts_meet() -> None:
    a = Dim(6)
    axis = shuffled(Axis((a,)), np.array([4, 1, 0, 5, 2, 3]))
    left, right = parts_of(axis, 3)
    # Units 0 and 1 on the left, 2 and 3 on the right, 4 and 5 on one side each: single units are constant.
    first, second = free_dims(Axis((a,)))
    assert Axis((a,)).normal == Axis((first,), (second,), (2,))
    assert (free_dims(left), free_dims(right)) == ([first], [second])
    kept = {first: np.array([True, False]), second: np.array([False, True])}
    assert kept_mask(left, kept).tolist() == [True, False, True]
    assert kept_mask(right, kept).tolist() == [True, False, True]


def test_a_shuffled_axis_that_is_cut_too_often_is_not() -> None:
    order = np.random.default_rng(0).permutation(1000)
    assert cut(shuffled(Axis((Dim(1000),)), order), 500) is None


def test_shuffled_axes_of_one_order_have_equal_axes() -> None:
    a, b = Dim(6), Dim(6)
    unify(shuffled(Axis((a,)), UNORDERED), shuffled(Axis((b,)), UNORDERED), "why")
    assert Axis((a,)).normal == Axis((b,)).normal
    assert len(free_dims(Axis((a,), (b,)))) == 1


def test_shuffled_axes_of_two_orders_are_frozen() -> None:
    a, b = Dim(6), Dim(6)
    unify(shuffled(Axis((a,)), UNORDERED), shuffled(Axis((b,)), UNORDERED[::-1].copy()), "why")
    assert (a.reason, b.reason) == ("why", "why")


def test_a_shuffled_axis_is_bound_to_a_dim_and_not_to_its_own() -> None:
    a, b = Dim(6), Dim(6)
    moved = shuffled(Axis((a,)), UNORDERED)
    unify(Axis((b,)), moved, "why")
    assert Axis((b,)).normal == moved.normal
    assert free_dims(Axis((b,))) == [a]
    unify(Axis((a,)), moved, "met itself")
    assert a.reason == "met itself"


def test_a_shuffled_axis_that_is_a_product_is_one_of_columns() -> None:
    a, b, c = Dim(6), Dim(3), Dim(2)
    unify(shuffled(Axis((a,)), transposed(2, 6)), Axis((b, c)), "why")
    rows, columns = free_dims(Axis((a,)))
    assert Axis((a,)).normal == Axis((rows, columns))
    assert Axis((b,)).normal == Axis((columns,))
    assert Axis((c,)).normal == Axis((rows,))


def test_a_shuffled_axis_that_is_a_product_in_another_order_is_frozen() -> None:
    a, b, c = Dim(6), Dim(3), Dim(2)
    unify(shuffled(Axis((a,)), UNORDERED), Axis((b, c)), "why")
    assert {dim.reason for dim in (a, b, c)} == {"why"}


def test_a_shuffled_axis_meets_a_sum_part_by_part() -> None:
    a, b, c = Dim(6), Dim(4), Dim(2)
    unify(shuffled(Axis((a,)), UNORDERED), Axis((b,), (c,)), "why")
    assert [dim.size for dim in free_dims(Axis((a,)))] == [4, 2]
    assert free_dims(Axis((b,), (c,))) == free_dims(Axis((a,)))


def test_a_sum_whose_rows_and_columns_are_exchanged_meets_a_product() -> None:
    # It is no rows and columns of free units: unification must end all the same.
    a, b, c, d = Dim(4), Dim(2), Dim(2), Dim(3)
    left, right = shuffled(Axis((a,), (b,)), transposed(3, 6)), Axis((c, d))
    unify(left, right, "why")
    kept = random_units(left, right, seed=1)
    assert kept_mask(left, kept).tolist() == kept_mask(right, kept).tolist() == expected_mask(left, kept)


@PROPERTY
@given(axes(batch=True, shuffles=True), st.integers(0, 1000))
def test_the_normal_form_of_shuffled_axes_keeps_every_entry_at_its_place(drawn: list[Axis], seed: int) -> None:
    (axis,) = drawn
    kept = random_units(axis, seed=seed)
    assert kept_mask(axis, kept).tolist() == kept_mask(axis.normal, kept).tolist() == expected_mask(axis, kept)
    assert normalise(axis.normal) == axis.normal


@PROPERTY
@given(axes(shuffles=True), st.integers(0, 1000))
def test_sizes_of_shuffled_axes_count_the_mask(drawn: list[Axis], seed: int) -> None:
    (axis,) = drawn
    kept = random_units(axis, seed=seed)
    counts = {dim: int(mask.sum()) for dim, mask in kept.items()}
    mask = kept_mask(axis, kept)
    constant_part, terms = size_terms(axis)
    assert len(mask) == axis.size == axis.normal.size
    assert int(mask.sum()) == kept_size(axis, counts.__getitem__)
    assert int(mask.sum()) == constant_part + sum(c * prod(counts[dim] for dim in dims) for c, dims in terms)


@PROPERTY
@given(axes(shuffles=True))
def test_occurrences_name_every_mention_in_shuffled_axes(drawn: list[Axis]) -> None:
    (axis,) = drawn
    found: list[Counter[tuple[Dim, int]]] = [Counter() for _ in range(axis.size)]
    for dim, index in occurrences(axis):
        for entry in np.flatnonzero(index >= 0):
            found[entry][dim, int(index[entry])] += 1
    assert found == [Counter(mentions(axis, entry)) for entry in range(axis.size)]


@PROPERTY
@given(axes(count=2, batch=True, shuffles=True), st.integers(0, 1000))
def test_unified_shuffled_axes_keep_the_same_entries(drawn: list[Axis], seed: int) -> None:
    left, right = drawn
    unify(left, right, "why")
    kept = random_units(left, right, seed=seed)
    assert kept_mask(left, kept).tolist() == kept_mask(right, kept).tolist() == expected_mask(left, kept)
    for entry in range(left.size):
        assert Counter(mentions(left, entry)) == Counter(mentions(right, entry))
    before = left.normal, right.normal
    unify(left, right, "again")
    unify(right, left, "again")
    assert (left.normal, right.normal) == before


@PROPERTY
@given(axes(shuffles=True), st.integers(0, 24), st.integers(0, 1000))
def test_the_parts_of_a_cut_of_a_shuffled_axis_joined_are_the_axis(drawn: list[Axis], at: int, seed: int) -> None:
    (axis,) = drawn
    at = min(at, axis.size)
    parts = cut(axis, at)
    kept = random_units(axis, *parts or (), seed=seed)
    whole = expected_mask(axis, kept)
    assert kept_mask(axis, kept).tolist() == whole
    if parts is not None:
        assert kept_mask(parts[0], kept).tolist() == whole[:at]
        assert kept_mask(parts[1], kept).tolist() == whole[at:]
