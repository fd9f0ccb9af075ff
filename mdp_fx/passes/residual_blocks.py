"""Residual blocks: regions that may be dropped so that the other operands of what reads them flow on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mdp_fx.graph.axes import Dim
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import DTYPE, SHAPE
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.branches import Branch, Flow
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.concat_branches import find_concat_branches
from mdp_fx.passes.space_blocks import emptied

ADDITIONS: tuple[Callable[..., Any] | str, ...] = (operator.add, torch.add, "add")


@dataclass(frozen=True)
class ResidualBlock:
    """One operand of an addition or of a concatenation, with all that feeds nothing else.

    Attributes:
        name: the common module path of its nodes, made unique by a suffix; for a branch of a concatenation that is
            only a part of what is there, the channel group that it empties.
        join: name of the node that adds it, or concatenates it.
        kept: name of the node that flows on when the block is removed; None for a branch of a concatenation.
        nodes: names of the nodes that go with it, in graph order; the last one is the operand.
        parent: the smallest block around it, or None.
        reason: why it cannot be removed, None where it can.
        empties: names of the channel groups that lose all their units with a branch of a concatenation.
    """

    name: str
    join: str
    kept: str | None
    nodes: tuple[str, ...]
    parent: str | None
    reason: str | None = None
    empties: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network.

    Attributes:
        removable: blocks that may be removed.
        exclusive: names of blocks of which at least one must stay: all operands of one addition, or all that gives
            some axis its entries.
        kept: blocks that were looked at and must stay, with the reason.
    """

    removable: tuple[ResidualBlock, ...]
    exclusive: tuple[tuple[str, ...], ...]
    kept: tuple[ResidualBlock, ...]

    def emptied(self, removed: Iterable[str]) -> frozenset[str]:
        """Names of the channel groups that lose all their units when blocks are removed."""
        return emptied(self.removable, set(removed))


def find_residual_blocks(graph: PruneGraph, groups: Sequence[ChannelGroup]) -> Blocks:
    """Finds the blocks of a network by the structure of its graph and by its types, nested ones too."""
    flow = Flow(graph.module)
    branches, exclusive = find_concat_branches(graph, groups, flow)
    names = {group.dim: group.name for group in groups}
    return _name_blocks([*_find_added_branches(flow), *branches], exclusive, names, flow)


def _find_added_branches(flow: Flow) -> Iterator[Branch]:
    for node in flow.order:
        if not _is_addition(node):
            continue
        for operand, other in (node.args, node.args[::-1]):
            assert isinstance(operand, fx.Node)
            assert isinstance(other, fx.Node)
            region = flow.region(operand, node)
            if region:
                reason = flow.why_not(node, operand, (other,), region) or _why_no_sum(node, other)
                yield Branch(node, operand, region, other, reason=reason)


def _is_addition(node: fx.Node) -> bool:
    return (
        node.target in ADDITIONS
        and len(node.args) == 2
        and not node.kwargs
        and all(isinstance(operand, fx.Node) for operand in node.args)
        and node.args[0] is not node.args[1]
    )


def _why_no_sum(addition: fx.Node, other: fx.Node) -> str | None:
    """Why the other operand alone is not what a sum would be."""
    if other.meta[SHAPE] != addition.meta[SHAPE]:
        return "the other operand has another shape"
    return "the other operand has another number type" if other.meta[DTYPE] != addition.meta[DTYPE] else None


def _name_blocks(
    branches: Sequence[Branch], exclusive: Iterable[frozenset[Branch]], groups: Mapping[Dim, str], flow: Flow
) -> Blocks:
    order = flow.order
    branches = sorted(branches, key=lambda branch: (min(order[node] for node in branch.region), -len(branch.region)))
    used: dict[str, int] = {}
    names: dict[Branch, str] = {}
    for branch in branches:
        name = _own_name(branch, groups, order) or branch.join.name
        used[name] = used.get(name, 0) + 1
        names[branch] = name + (f"#{used[name]}" if used[name] > 1 else "")
    blocks: list[ResidualBlock] = []
    for branch in branches:
        around = [outer for outer in branches if outer.reason is None and branch.region < outer.region]
        blocks.append(
            ResidualBlock(
                names[branch],
                branch.join.name,
                branch.kept.name if branch.kept is not None else None,
                tuple(node.name for node in sorted(branch.region, key=order.__getitem__)),
                names[min(around, key=lambda outer: len(outer.region))] if around else None,
                branch.reason,
                tuple(groups[dim] for dim in branch.empties) if branch.reason is None else (),
            )
        )
    together: dict[fx.Node, list[Branch]] = {}
    for branch in branches:
        if branch.reason is None and branch.kept is not None:
            together.setdefault(branch.join, []).append(branch)
    sets = [
        *(members for members in together.values() if len(members) > 1),
        *(sorted(members, key=branches.index) for members in exclusive),
    ]
    return Blocks(
        tuple(block for block in blocks if block.reason is None),
        tuple(tuple(names[branch] for branch in members) for members in sets),
        tuple(block for block in blocks if block.reason is not None),
    )


def _own_name(branch: Branch, groups: Mapping[Dim, str], nodes: Iterable[fx.Node]) -> str:
    path = _common_path(branch.region)
    if branch.kept is None and len(branch.empties) == 1:
        there = {node for node in nodes if f"{node.target}.".startswith(f"{path}.")}
        return path if path and there <= branch.region else groups.get(branch.empties[0], path)
    return path


def _common_path(region: frozenset[fx.Node]) -> str:
    paths = [str(node.target).split(".") for node in region if node.op in ("call_module", "get_attr")]
    depth = 0
    while all(len(path) > depth and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return ".".join(paths[0][:depth])


class FindResidualBlocks(Pass):
    """Finds what may be dropped so that the other operands of an addition or a concatenation flow on."""

    requires = ("graph", "groups")
    ensures = ("blocks",)

    def call(self, state: Compilation) -> PassResult:
        """Reads the structure of the graph, and the types at concatenations."""
        assert state.graph is not None
        assert state.groups is not None
        return PassResult(replace(state, blocks=find_residual_blocks(state.graph, state.groups)))

    def verify(self, state: Compilation) -> None:
        """Two blocks are nested or apart, and nobody outside of a block reads what it holds."""
        assert state.graph is not None
        assert state.blocks is not None
        nodes = {node.name: node for node in state.graph.module.graph.nodes}
        for block in state.blocks.removable:
            inside = set(block.nodes)
            for name in block.nodes:
                outside = {user.name for user in nodes[name].users} - inside - {block.join}
                assert not outside, f"{name} of block {block.name} is read by {sorted(outside)}"
            for other in state.blocks.removable:
                shared = inside.intersection(other.nodes)
                assert shared in (set(), inside, set(other.nodes)), f"blocks {block.name} and {other.name} overlap"
