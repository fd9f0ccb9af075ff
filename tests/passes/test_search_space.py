"""The search space as data: evaluation by hand, and what is no member of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdp_fx.errors import InputError
from mdp_fx.passes.search_space import (
    Block,
    CostAxis,
    CostTerm,
    SearchSpace,
    Selection,
    SizeTerm,
    Unit,
    amount,
    evaluate,
    importance,
    interpolation_weights,
    normalise,
    violations,
)
from tests.passes.spaces import (
    branch_space,
    chain_space,
    emptying_space,
    every_selection,
    nested_space,
    random_space,
    true_costs,
    true_worth,
)


def test_evaluation_by_hand() -> None:
    space = chain_space()
    assert evaluate(space, space.dense()) == {"latency": 1 + 6 + 8}
    assert importance(space, space.dense()) == 9.0
    gone = Selection({"a": 1, "b": 2}, ("block",))
    assert evaluate(space, gone) == {"latency": 1 + 2}
    assert importance(space, gone) == 3.0


@pytest.mark.parametrize("make", [random_space, emptying_space])
@pytest.mark.parametrize("seed", range(40))
def test_evaluation_and_membership_are_those_of_the_oracle(make: Callable[[int], SearchSpace], seed: int) -> None:
    space = make(seed)
    members = list(every_selection(space))
    for member in members[:: 1 + len(members) // 50]:
        assert evaluate(space, member) == pytest.approx(true_costs(space, member))
        assert importance(space, member) == pytest.approx(true_worth(space, member))
    known = {(tuple(m.sizes.values()), m.removed_blocks) for m in members}
    sizes = list(itertools.product(*(d.sizes for d in space.dimensions)))
    names = [b.name for b in space.blocks]
    removed = [gone for count in range(len(names) + 1) for gone in itertools.combinations(names, count)]
    rng = np.random.default_rng(seed)
    for _ in range(60):
        some, gone = sizes[rng.integers(len(sizes))], removed[rng.integers(len(removed))]
        found = violations(space, Selection(dict(zip((d.name for d in space.dimensions), some, strict=True)), gone))
        assert (found == []) == ((some, gone) in known)


def test_table_is_multilinear_between_its_points() -> None:
    out = CostAxis("out", 1, (SizeTerm(2, ("a", "b")), SizeTerm(1, ("b",))), (0, 8, 20))
    inp = CostAxis("in", 0, (SizeTerm(1, ("a",)),), (0, 4))
    term = CostTerm("t", None, (out, inp), np.array([[0.0, 4.0], [8.0, 12.0], [20.0, 100.0]]))
    # Size of the first axis 1 + 2 * 2 * 1 + 1 = 6, of the second 2: a quarter short of the row at 8, half way across.
    assert term.cost({"a": 2, "b": 1}) == pytest.approx(0.25 * 2 + 0.75 * 10)
    assert out.dims == ("a", "b")


def test_interpolation_weights() -> None:
    assert interpolation_weights((2, 4, 8), (2, 3, 8)).tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert interpolation_weights((5,), (5,)).tolist() == [[1]]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ((), None),
        (("left",), None),
        (("outer", "left", "right"), None),
        (("left", "right"), "all of the blocks left, right removed"),
        (("outer",), "block 'left' kept inside the removed block 'outer'"),
        (("other",), "unknown block 'other' removed"),
    ],
)
def test_violations_of_blocks(removed: tuple[str, ...], message: str | None) -> None:
    found = violations(nested_space(), Selection({"d": 4, "e": 4}, removed))
    assert found == [] if message is None else message in found


def test_violations_of_sizes() -> None:
    space = replace(nested_space(), fixed={"e": 1})
    assert violations(space, Selection({"d": 2, "e": 1})) == ["dimension 'd' may not have size 2"]
    assert violations(space, Selection({"d": 1, "e": 4})) == ["dimension 'e' may not have size 4"]
    assert violations(space, Selection({"d": 1})) == ["the sizes do not name every dimension once"]


@pytest.mark.parametrize(
    ("sizes", "removed", "found"),
    [
        ((4, 4), (), []),
        ((0, 2), ("a",), []),
        ((0, 4), (), ["dimension 'a' has size 0; the block that empties it is kept"]),
        ((2, 4), ("a",), ["dimension 'a' has size 2; the block that empties it is removed"]),
        ((0, 0), ("a", "b"), ["all of the blocks a, b removed"]),
    ],
)
def test_what_a_block_empties_is_0_without_it_and_only_then(
    sizes: tuple[int, int], removed: tuple[str, ...], found: list[str]
) -> None:
    selection = Selection(dict(zip("ab", sizes, strict=True)), removed)
    assert violations(branch_space(), selection) == found


def test_normalise_empties_what_a_block_takes_along() -> None:
    space = branch_space()
    assert normalise(space, Selection({"a": 4, "b": 2}, ("a",))) == Selection({"a": 0, "b": 2}, ("a",))
    assert evaluate(space, Selection({"a": 0, "b": 2}, ("a",))) == {"latency": 1 + 3 + 2}
    assert importance(space, Selection({"a": 0, "b": 2}, ("a",))) == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (Block("a", None, ("x",)), Block("b"))}, "block 'a' empties an unknown dimension 'x'"),
        ({"fixed": {"b": 4}}, "block 'b' empties dimension 'b', which must be free and have 0 as the first"),
        (
            {"blocks": (Block("a", None, ("a",)), Block("b", None, ("a",)))},
            "block 'a' empties dimension 'a', and so does 'b' beside it",
        ),
    ],
)
def test_what_cannot_be_emptied_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(branch_space(), **change)
    with pytest.raises(
        InputError, match="block 'block' empties dimension 'a', which must be free and have 0 as the first"
    ):
        replace(chain_space(), blocks=(Block("block", None, ("a",)),))


def test_normalise_restores_what_is_not_used_and_lists_inner_blocks() -> None:
    space = nested_space()
    selection = normalise(space, Selection({"d": 1, "e": 1}, ("outer",)))
    # d is used in a removed block only; e also outside.
    assert selection == Selection({"d": 4, "e": 1}, ("outer", "left", "right"))
    assert normalise(space, selection) == selection
    assert normalise(replace(space, fixed={"d": 1}), selection).sizes["d"] == 1


def test_table_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        chain_space().costs["latency"].terms[0].table[0] = 1.0


@given(seed=st.integers(0, 2**32 - 1), make=st.sampled_from([random_space, emptying_space]))
@settings(max_examples=60, deadline=None)
def test_a_normalised_selection_is_the_same_decision(seed: int, make: Callable[[int], SearchSpace]) -> None:
    space = make(seed)
    for selection in every_selection(space):
        same = normalise(space, selection)
        assert violations(space, same) == []
        assert evaluate(space, same) == evaluate(space, selection)
        assert importance(space, same) == importance(space, selection)


def test_shares_are_of_the_network_as_it_is() -> None:
    space = replace(chain_space(), fixed={"a": 1})
    assert space.dense().sizes == {"a": 1, "b": 2}
    assert space.unpruned().sizes == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (77768.0, "us", "77.77 ms"),
        (1234567.0, "params", "1,234,567 params"),
        (3.5 * 2**20, "bytes", "3.5 MiB"),
        (2**30 * 2.0, "bytes", "2,048 MiB"),
        (2**10, "bytes", "0.0009766 MiB"),
    ],
)
def test_costs_for_people(value: float, unit: Unit, text: str) -> None:
    assert amount(value, unit) == text
