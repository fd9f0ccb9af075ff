"""Freezing, unification and cutting of axis types, against entry-by-entry oracles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdp_fx.graph.axes import Axis, Dim, batch_dims, concat, constant, free_dims, shuffled
from mdp_fx.graph.axis_sizes import kept_mask
from mdp_fx.graph.unify import cut, freeze, frozen_reasons, unify
from tests.graph.random_axes import PROPERTY, UNORDERED, axes, expected_mask, mentions, random_units, transposed

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


# Shuffled axes ------------------------------------------------------------------------------------------------------


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
