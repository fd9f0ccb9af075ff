"""Removes residual blocks: the other operand of the addition flows on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import fx

from mdp_fx.errors import RecipeError
from mdp_fx.graph.purity import remove_dead_nodes
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.residual_blocks import Blocks, ResidualBlock


def chosen_blocks(blocks: Blocks, names: Iterable[str]) -> tuple[ResidualBlock, ...]:
    """Looks up blocks by name.

    Raises:
        RecipeError: an unknown block, or all operands of one addition at once.
    """
    by_name = {block.name: block for block in blocks.removable}
    chosen = []
    for name in names:
        if name not in by_name:
            msg = f"the network has no removable block {name!r}: the recipe belongs to another model"
            raise RecipeError(msg)
        chosen.append(by_name[name])
    removed = {block.name for block in chosen}
    gone = {node for block in chosen for node in block.nodes}
    for together in blocks.exclusive:
        # An addition that goes with a block around it needs no operand.
        if removed.issuperset(together) and by_name[together[0]].addition not in gone:
            msg = f"blocks {' and '.join(together)} add to one another: one of them must stay"
            raise RecipeError(msg)
    return tuple(chosen)


def drop_blocks(module: fx.GraphModule, blocks: Sequence[ResidualBlock]) -> fx.GraphModule:
    """Returns the network without `blocks` and without what nobody reads any more.

    Args:
        module: the network; its graph is edited.
        blocks: blocks of this network, not all operands of one addition.
    """
    graph = module.graph
    # An addition inside of a removed block goes with it.
    inside = {name for block in blocks for name in block.nodes}
    nodes = {node.name: node for node in graph.nodes}
    flows: dict[str, str] = {}
    for block in blocks:
        if block.addition in inside:
            continue
        kept = block.kept
        while kept in flows:
            kept = flows[kept]
        nodes[block.addition].replace_all_uses_with(nodes[kept])
        graph.erase_node(nodes[block.addition])
        flows[block.addition] = kept
    if remove_dead_nodes(graph) or blocks:
        # A new GraphModule copies only what its graph refers to.
        slim = fx.GraphModule(module, graph, type(module).__name__)
        slim.train(module.training)
        return slim
    return module


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
        chosen = [b for b in chosen_blocks(state.blocks, state.removed_blocks) if b.addition in there]
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
