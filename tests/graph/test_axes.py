"""Axis types: their sizes and their normal form, against entry-by-entry oracles."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdp_fx.graph.axes import (
    Axis,
    Dim,
    Shuffled,
    batch_dims,
    concat,
    constant,
    free_dims,
    fresh,
    normalise,
    product,
    shuffled,
)
from mdp_fx.graph.axis_sizes import kept_mask
from mdp_fx.graph.unify import freeze
from tests.graph.random_axes import (
    PROPERTY,
    UNORDERED,
    A,
    B,
    C,
    H,
    axes,
    expected_mask,
    mentions,
    random_units,
    transposed,
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


# Shuffled axes ------------------------------------------------------------------------------------------------------

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


@PROPERTY
@given(axes(batch=True, shuffles=True), st.integers(0, 1000))
def test_the_normal_form_of_shuffled_axes_keeps_every_entry_at_its_place(drawn: list[Axis], seed: int) -> None:
    (axis,) = drawn
    kept = random_units(axis, seed=seed)
    assert kept_mask(axis, kept).tolist() == kept_mask(axis.normal, kept).tolist() == expected_mask(axis, kept)
    assert normalise(axis.normal) == axis.normal
