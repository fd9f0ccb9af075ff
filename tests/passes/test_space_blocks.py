"""Blocks around blocks, and what goes to 0 with them."""

from __future__ import annotations

from mdp_fx.passes.search_space import Block
from mdp_fx.passes.space_blocks import ancestors, common_block, emptied, emptied_by, exclusive_parent, outermost, uses
from tests.passes.spaces import chain_space, nested_space

NESTED = (Block("outer", None, ("d", "e")), Block("around", "outer"), Block("inner", "around", ("d",)))


def test_blocks_around_blocks() -> None:
    space = nested_space()
    assert ancestors(space.blocks, "left") == ("left", "outer")
    assert ancestors(space.blocks, None) == ()
    assert common_block(space.blocks, ["left", "right"]) == "outer"
    assert common_block(space.blocks, ["left", "left"]) == "left"
    assert common_block(space.blocks, ["left", None]) is None
    assert common_block(space.blocks, []) is None
    assert exclusive_parent(space, ("left", "right")) == "outer"


def test_what_a_block_empties_is_0_while_its_parent_is_alive() -> None:
    assert emptied_by(NESTED) == {"d": ("outer", "inner"), "e": ("outer",)}
    assert emptied(NESTED, ()) == set()
    assert emptied(NESTED, {"inner"}) == {"d"}
    assert emptied(NESTED, {"inner", "around"}) == set()
    assert emptied(NESTED, {"inner", "around", "outer"}) == {"d", "e"}
    assert emptied(NESTED, {"inner", "outer"}) == {"d", "e"}


def test_removed_blocks_that_lie_in_no_other_one() -> None:
    assert [block.name for block in outermost(NESTED, ["inner", "outer"])] == ["outer"]
    assert [block.name for block in outermost(NESTED, ["inner", "around"])] == ["around"]
    assert outermost(NESTED, ["inner"]) == NESTED[2:]
    assert outermost(NESTED, ()) == ()


def test_where_dimensions_are_used() -> None:
    assert uses(chain_space()) == {"a": {None, "block"}, "b": {"block"}}
