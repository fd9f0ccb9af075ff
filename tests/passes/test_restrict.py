"""Restrictions of a search space: exactly the members that satisfy them are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mdp_fx.errors import InputError
from mdp_fx.passes.restrict import restrict, with_removed
from mdp_fx.passes.search_space import (
    Block,
    Dimension,
    ImportanceTerm,
    SearchSpace,
    Selection,
    evaluate,
    importance,
    violations,
)
from mdp_fx.passes.space_blocks import ancestors, emptied, emptied_by, unused
from tests.passes.spaces import branch_space, chain_space, emptying_space, every_selection, nested_space, random_space


def key(selection: Selection) -> tuple[Any, ...]:
    return (*sorted(selection.sizes.items()), frozenset(selection.removed_blocks))


@given(
    seed=st.integers(0, 2**32 - 1),
    make=st.sampled_from([random_space, emptying_space]),
    min_keep=st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_exactly_the_members_that_satisfy_the_restrictions_are_left(
    seed: int, make: Callable[[int], SearchSpace], min_keep: float | None, data: st.DataObject
) -> None:
    space = make(seed)
    names = [b.name for b in space.blocks]
    kept = data.draw(st.lists(st.sampled_from(names), max_size=2)) if names else []
    emptied = emptied_by(space.blocks)
    dim = data.draw(st.sampled_from(space.dimensions))
    size = data.draw(st.sampled_from(space.options(dim.name)))
    fixed = {dim.name: size} if data.draw(st.booleans()) else {}
    assume(not fixed or size or dim.name not in emptied)
    narrow = restrict(space, min_keep=min_keep, fixed=fixed, keep_blocks=kept)

    staying = {around for name in kept for around in ancestors(space.blocks, name)}
    held = {**space.fixed, **fixed}

    def wanted(selection: Selection) -> bool:
        floors = all(
            selection.sizes[d.name] >= (min_keep or 0.0) * d.dense - 1e-6
            or d.name in held
            or (selection.sizes[d.name] == 0 and d.name in emptied)
            for d in space.dimensions
        )
        taken = any(block in selection.removed_blocks for name in fixed for block in emptied.get(name, ()))
        sizes = all(selection.sizes[name] == size for name, size in fixed.items())
        return floors and sizes and not taken and staying.isdisjoint(selection.removed_blocks)

    expected = [selection for selection in every_selection(space) if wanted(selection)]
    found = list(every_selection(narrow))
    assert sorted(map(repr, map(key, found))) == sorted(map(repr, map(key, expected)))
    for selection in found:
        assert violations(space, selection) == []
        assert evaluate(narrow, selection) == evaluate(space, selection)
        assert importance(narrow, selection) == importance(space, selection)


@given(seed=st.integers(0, 2**32 - 1), make=st.sampled_from([random_space, emptying_space]))
@settings(max_examples=30, deadline=None)
def test_without_restrictions_nothing_changes(seed: int, make: Callable[[int], SearchSpace]) -> None:
    space = replace(make(seed), budgets={"latency": 2.0})
    assert restrict(space) == space
    once = restrict(space, min_keep=0.4, keep_blocks=[b.name for b in space.blocks[:1]])
    assert restrict(once, min_keep=0.4) == once


def wide(*sizes: int) -> SearchSpace:
    dim = Dimension("d", sizes)
    return SearchSpace((dim,), (), (), (ImportanceTerm("l", "d", None, tuple(map(float, sizes))),), {})


@pytest.mark.parametrize(
    ("share", "left"),
    [(None, (3, 7, 30)), (0.1, (3, 7, 30)), (0.11, (7, 30)), (0.5, (30,)), (1.0, (30,))],
)
def test_a_floor_is_a_share_of_the_dense_size(share: float | None, left: tuple[int, ...]) -> None:
    # 0.1 * 30 is a little more than 3 as a float.
    narrow = restrict(wide(3, 7, 30), min_keep=share)
    assert narrow.dimensions[0].sizes == left
    assert narrow.importance[0].values == tuple(map(float, left))


def test_a_floor_leaves_alone_what_is_held() -> None:
    narrow = restrict(wide(3, 7, 30), min_keep=0.5, fixed={"d": 7})
    assert narrow.options("d") == (7,)
    assert restrict(replace(wide(3, 7, 30), fixed={"d": 3}), min_keep=0.5).options("d") == (3,)


def test_a_branch_keeps_its_0_under_a_floor_until_its_block_is_kept() -> None:
    narrow = restrict(branch_space(), min_keep=0.75)
    assert [d.sizes for d in narrow.dimensions] == [(0, 4), (0, 4)]
    narrow = restrict(branch_space(), min_keep=0.5, keep_blocks=["a"])
    assert [d.sizes for d in narrow.dimensions] == [(2, 4), (0, 2, 4)]
    assert narrow.blocks == (Block("b", None, ("b",)),)
    # One of a and b has to stay: a does.
    assert narrow.exclusive == ()
    assert narrow.importance[0] == ImportanceTerm("a", "a", None, (1.0, 2.0))


def test_a_held_branch_stays() -> None:
    narrow = restrict(branch_space(), fixed={"a": 2})
    assert narrow.blocks == (Block("b", None, ("b",)),)
    assert narrow.options("a") == (2,)


def test_a_kept_block_keeps_the_blocks_around_it() -> None:
    narrow = restrict(nested_space(), keep_blocks=["left"])
    assert narrow.blocks == (Block("right"),)
    assert narrow.exclusive == ()
    assert [t.block for t in narrow.importance] == [None, "right"]
    outer = restrict(nested_space(), keep_blocks=["outer"])
    assert outer.blocks == (Block("left"), Block("right"))
    assert outer.exclusive == (("left", "right"),)


@pytest.mark.parametrize(
    ("restrictions", "message"),
    [
        ({"fixed": {"bb": 1}}, "unknown dimension 'bb' is to be held at 1; did you mean 'b'?"),
        ({"fixed": {"zzz": 1}}, "unknown dimension 'zzz' is to be held at 1; the search space has a, b$"),
        ({"fixed": {"a": 3}}, "dimension 'a' cannot be held at 3; its sizes are 1, 2$"),
        ({"keep_blocks": ["zzz"]}, "unknown block 'zzz' is to stay; the search space has block$"),
        ({"keep_blocks": ["blok"]}, "unknown block 'blok' is to stay; did you mean 'block'?"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(restrictions: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        restrict(chain_space(), **restrictions)


def test_contradictions_and_long_lists() -> None:
    with pytest.raises(InputError, match="dimension 'a' cannot be held at 2; the search space holds it at 1"):
        restrict(replace(chain_space(), fixed={"a": 1}), fixed={"a": 2})
    with pytest.raises(InputError, match="dimension 'a' cannot be held at 0: it is that where its block is removed"):
        restrict(branch_space(), fixed={"a": 0})
    with pytest.raises(InputError, match=r"its sizes are 1, 2, 3, \.\.\., 18, 19, 20"):
        restrict(wide(*range(1, 21)), fixed={"d": 21})
    with pytest.raises(InputError, match="unknown block 'b' is to stay; the search space has none"):
        restrict(wide(1, 2), keep_blocks=["b"])


def chosen(space: SearchSpace, selection: Selection) -> tuple[Any, ...]:
    """What is decided on dimensions that something uses."""
    idle = unused(space, set(selection.removed_blocks))
    used = {name: size for name, size in selection.sizes.items() if name not in idle}
    return (*sorted(used.items()), frozenset(selection.removed_blocks))


@given(seed=st.integers(0, 2**32 - 1), make=st.sampled_from([random_space, emptying_space]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_what_was_removed_for_good_stays_removed_and_nothing_grows(
    seed: int, make: Callable[[int], SearchSpace], data: st.DataObject
) -> None:
    space = make(seed)
    members = list(every_selection(space))
    now = data.draw(st.sampled_from(members))
    gone = now.removed_blocks
    at_most = {name: size for name, size in now.sizes.items() if size}
    idle = unused(space, set(gone))

    def settled(selection: Selection) -> bool:
        # In a network, nothing outside of a block uses what a block inside of it would empty.
        lost = unused(space, selection.removed_blocks)
        return all(not selection.sizes[name] or name in lost for name in emptied(space.blocks, gone))

    def wanted(selection: Selection) -> bool:
        # What nothing uses any more has no size to speak of.
        smaller = all(selection.sizes[name] <= size for name, size in at_most.items() if name not in idle)
        return smaller and set(gone) <= set(selection.removed_blocks)

    narrow = restrict(space, at_most=at_most, removed=gone)
    found = [(each, with_removed(space, each, gone)) for each in every_selection(narrow)]
    found = [pair for pair in found if settled(pair[1])]
    expected = {chosen(space, each) for each in members if wanted(each) and settled(each)}
    assert {chosen(space, whole) for _, whole in found} == expected
    for each, whole in found:
        assert violations(space, whole) == []
        assert evaluate(narrow, each) == pytest.approx(evaluate(space, whole))
        assert importance(narrow, each) == pytest.approx(importance(space, whole))


def test_a_table_ends_where_a_dimension_does() -> None:
    narrow = restrict(chain_space(), at_most={"a": 1})
    assert {d.name: d.sizes for d in narrow.dimensions}["a"] == (1,)
    selection = Selection({"a": 1, "b": 2})
    assert evaluate(narrow, selection) == evaluate(chain_space(), selection)


def test_the_last_of_an_exclusive_set_has_to_stay() -> None:
    narrow = restrict(nested_space(), removed=["left"])
    assert [block.name for block in narrow.blocks] == ["outer", "right"]
    assert narrow.exclusive == (("right",),)
    assert violations(narrow, Selection(narrow.dense().sizes, ("right",)))
    assert not violations(narrow, Selection(narrow.dense().sizes, ("outer", "right")))
