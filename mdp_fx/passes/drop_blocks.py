"""Removes residual blocks: the other operands of the addition or the concatenation flow on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import fx

from mdp_fx.errors import RecipeError
from mdp_fx.graph.purity import remove_dead_nodes
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.concat_branches import joined_by
from mdp_fx.passes.residual_blocks import Blocks, ResidualBlock
from mdp_fx.passes.space_blocks import outermost


def chosen_blocks(blocks: Blocks, names: Iterable[str]) -> tuple[ResidualBlock, ...]:
    """Looks up blocks by name, without those that go with one around them.

    Raises:
        RecipeError: an unknown block, or all of a set at once of which one must stay.
    """
    by_name = {block.name: block for block in blocks.removable}
    names = tuple(names)
    for name in names:
        if name not in by_name:
            msg = f"the network has no removable block {name!r}: the recipe belongs to another model"
            raise RecipeError(msg)
    removed = {block.name for block in outermost(blocks.removable, names)}
    for together in blocks.exclusive:
        if removed.issuperset(together):
            added = by_name[together[0]].kept is not None
            why = "add to one another" if added else "leave nothing together"
            msg = f"blocks {' and '.join(together)} {why}: one of them must stay"
            raise RecipeError(msg)
    return tuple(by_name[name] for name in names if name in removed)


def drop_blocks(module: fx.GraphModule, blocks: Sequence[ResidualBlock]) -> fx.GraphModule:
    """Returns the network without `blocks` and without what nobody reads any more.

    Args:
        module: the network; its graph is edited.
        blocks: blocks of this network, none inside of another, not all of a set of which one must stay.
    """
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    flows: dict[str, str] = {}
    for block in blocks:
        join = nodes[block.join]
        kept = block.kept if block.kept is not None else _without(join, nodes[block.nodes[-1]])
        if kept is None:
            continue
        while kept in flows:
            kept = flows[kept]
        join.replace_all_uses_with(nodes[kept])
        graph.erase_node(join)
        flows[block.join] = kept
    if remove_dead_nodes(graph) or blocks:
        # A new GraphModule copies only what its graph refers to.
        slim = fx.GraphModule(module, graph, type(module).__name__)
        slim.train(module.training)
        return slim
    return module


def _without(concatenation: fx.Node, operand: fx.Node) -> str | None:
    """Takes an operand out of a concatenation; returns the name of the other one where only one is left."""
    left = [part for part in joined_by(concatenation) if part is not operand]
    if concatenation.args:
        concatenation.args = (left, *concatenation.args[1:])
    else:
        concatenation.kwargs = {**concatenation.kwargs, "tensors": left}
    return left[0].name if len(left) == 1 else None


class DropBlocks(Pass):
    """Drops residual blocks from the slim network."""

    requires = ("blocks", "removed_blocks", "slim")
    ensures = ("slim",)
    rewrites = True

    def call(self, state: Compilation) -> PassResult:
        """Drops those that are still there."""
        assert state.blocks is not None
        assert state.removed_blocks is not None
        assert state.slim is not None
        there = {node.name for node in state.slim.graph.nodes}
        chosen = [b for b in chosen_blocks(state.blocks, state.removed_blocks) if b.nodes[-1] in there]
        before = len(there)
        slim = drop_blocks(state.slim, chosen)
        return PassResult(replace(state, slim=slim), modified=len(slim.graph.nodes) != before)

    def verify(self, state: Compilation) -> None:
        """Nothing of a removed block is left, and the graph is well formed."""
        super().verify(state)
        assert state.blocks is not None
        assert state.removed_blocks is not None
        assert state.slim is not None
        left = {node.name for node in state.slim.graph.nodes}
        for block in chosen_blocks(state.blocks, state.removed_blocks):
            rest = left.intersection(block.nodes)
            assert not rest, f"{sorted(rest)} of the removed block {block.name} are left"
