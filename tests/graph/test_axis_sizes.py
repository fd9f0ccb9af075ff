"""Masks, sizes and mentions of axis types, against entry-by-entry oracles."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdp_fx.graph.axes import Axis, Dim
from mdp_fx.graph.axis_sizes import kept_mask, kept_size, occurrences, size_terms
from tests.graph.random_axes import PROPERTY, A, B, C, H, axes, mentions, random_units


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
