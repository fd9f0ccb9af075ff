"""Residual blocks: regions that may be dropped so that the other operand of an addition flows on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mdp_fx.graph.purity import is_pure
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE
from mdp_fx.passes.base import Compilation, Pass, PassResult

ADDITIONS: tuple[Callable[..., Any] | str, ...] = (operator.add, torch.add, "add")


@dataclass(frozen=True)
class ResidualBlock:
    """One operand of an addition, with all that feeds nothing else.

    Attributes:
        name: the common module path of its nodes, made unique by a suffix.
        addition: name of the node that adds it.
        kept: name of the node that flows on when the block is removed.
        nodes: names of the nodes that go with it, in graph order.
        parent: the smallest block around it, or None.
        reason: why it cannot be removed, None where it can.
    """

    name: str
    addition: str
    kept: str
    nodes: tuple[str, ...]
    parent: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network.

    Attributes:
        removable: blocks that may be removed.
        exclusive: names of blocks that add to one another, of which at least one must stay.
        kept: blocks that were looked at and must stay, with the reason.
    """

    removable: tuple[ResidualBlock, ...]
    exclusive: tuple[tuple[str, ...], ...]
    kept: tuple[ResidualBlock, ...]


@dataclass(frozen=True)
class _Candidate:
    addition: fx.Node
    kept: fx.Node
    region: frozenset[fx.Node]
    reason: str | None


def find_residual_blocks(module: fx.GraphModule) -> Blocks:
    """Finds residual blocks by the structure of the graph alone, nested ones too."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    reads_input: set[fx.Node] = set()
    for node in order:
        if node.op == "placeholder" or any(source in reads_input for source in node.all_input_nodes):
            reads_input.add(node)
    written = _written_to(order)
    candidates: list[_Candidate] = []
    for node in order:
        if not _is_addition(node):
            continue
        for branch, other in (node.args, node.args[::-1]):
            assert isinstance(branch, fx.Node)
            assert isinstance(other, fx.Node)
            region = _feeds_only(branch, node)
            if any(_has_parameters(module, part) for part in region):
                reason = _why_not(node, branch, other, region, reads_input, written)
                candidates.append(_Candidate(node, other, region, reason))
    return _name_blocks(candidates, order)


def _written_to(nodes: Iterable[fx.Node]) -> set[str]:
    """Names of the nodes whose memory is written to by a node that stayed in place."""
    by_name = {node.name: node for node in nodes}
    written: set[str] = set()
    writers = [node for node in by_name.values() if node.op not in ("placeholder", "output") and not is_pure(node)]
    pending = [source.name for node in writers for source in node.all_input_nodes]
    while pending:
        name = pending.pop()
        if name not in written:
            written.add(name)
            pending.extend(by_name[name].meta.get(ALIASES, ()))
    return written


def _is_addition(node: fx.Node) -> bool:
    return (
        node.target in ADDITIONS
        and len(node.args) == 2
        and not node.kwargs
        and all(isinstance(operand, fx.Node) for operand in node.args)
        and node.args[0] is not node.args[1]
    )


def _feeds_only(branch: fx.Node, addition: fx.Node) -> frozenset[fx.Node]:
    """`branch` and all before it whose every use ends in `addition` through `branch`."""
    if set(branch.users) != {addition}:
        return frozenset()
    region: set[fx.Node] = set()
    pending = [branch]
    while pending:
        node = pending.pop()
        if node in region or node.op == "placeholder" or (node is not branch and not region.issuperset(node.users)):
            continue
        region.add(node)
        pending.extend(node.all_input_nodes)
    return frozenset(region)


def _has_parameters(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return next(module.get_submodule(str(node.target)).parameters(), None) is not None
    return node.op == "get_attr"


def _why_not(
    addition: fx.Node,
    branch: fx.Node,
    other: fx.Node,
    region: frozenset[fx.Node],
    reads_input: set[fx.Node],
    written: set[str],
) -> str | None:
    if other not in reads_input:
        return "without it nothing that depends on the input would be left"
    if branch not in reads_input:
        return "it does not depend on the input"
    if other.meta[SHAPE] != addition.meta[SHAPE]:
        return "the other operand has another shape"
    if other.meta[DTYPE] != addition.meta[DTYPE]:
        return "the other operand has another number type"
    if addition.name in written:
        return "the sum is written to in place"
    impure = next((node.name for node in region if not is_pure(node)), None)
    return f"it writes in place at {impure}" if impure is not None else None


def _name_blocks(candidates: list[_Candidate], order: dict[fx.Node, int]) -> Blocks:
    candidates.sort(key=lambda candidate: (min(order[node] for node in candidate.region), -len(candidate.region)))
    used: dict[str, int] = {}
    names: list[str] = []
    for candidate in candidates:
        name = _common_path(candidate.region) or candidate.addition.name
        used[name] = used.get(name, 0) + 1
        names.append(name + (f"#{used[name]}" if used[name] > 1 else ""))
    blocks: list[ResidualBlock] = []
    for name, candidate in zip(names, candidates, strict=True):
        around = [
            (len(outer.region), outer_name)
            for outer_name, outer in zip(names, candidates, strict=True)
            if outer is not candidate and outer.reason is None and candidate.region < outer.region
        ]
        blocks.append(
            ResidualBlock(
                name,
                candidate.addition.name,
                candidate.kept.name,
                tuple(node.name for node in sorted(candidate.region, key=order.__getitem__)),
                min(around)[1] if around else None,
                candidate.reason,
            )
        )
    removable = tuple(block for block in blocks if block.reason is None)
    together: dict[str, list[str]] = {}
    for block in removable:
        together.setdefault(block.addition, []).append(block.name)
    exclusive = tuple(tuple(names) for names in together.values() if len(names) > 1)
    return Blocks(removable, exclusive, tuple(block for block in blocks if block.reason is not None))


def _common_path(region: frozenset[fx.Node]) -> str:
    paths = [str(node.target).split(".") for node in region if node.op in ("call_module", "get_attr")]
    depth = 0
    while all(len(path) > depth and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return ".".join(paths[0][:depth])


class FindResidualBlocks(Pass):
    """Finds what may be dropped so that the other operand of an addition flows on."""

    requires = ("graph",)
    ensures = ("blocks",)

    def call(self, state: Compilation) -> PassResult:
        """Reads the structure of the graph."""
        assert state.graph is not None
        return PassResult(replace(state, blocks=find_residual_blocks(state.graph.module)))

    def verify(self, state: Compilation) -> None:
        """Two blocks are nested or apart, and nobody outside of a block reads what it holds."""
        assert state.graph is not None
        assert state.blocks is not None
        nodes = {node.name: node for node in state.graph.module.graph.nodes}
        for block in state.blocks.removable:
            inside = set(block.nodes)
            for name in block.nodes:
                outside = {user.name for user in nodes[name].users} - inside - {block.addition}
                assert not outside, f"{name} of block {block.name} is read by {sorted(outside)}"
            for other in state.blocks.removable:
                shared = inside.intersection(other.nodes)
                assert shared in (set(), inside, set(other.nodes)), f"blocks {block.name} and {other.name} overlap"
