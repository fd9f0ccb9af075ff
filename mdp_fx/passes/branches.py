"""Branches of a graph: all that feeds one operand of one node, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from mdp_fx.graph.axes import Dim
from mdp_fx.graph.purity import is_pure
from mdp_fx.graph.tracer import ALIASES, called_module


@dataclass(frozen=True, eq=False)
class Branch:
    """One operand of a node that joins several, with all that feeds nothing else.

    Attributes:
        join: the node that reads it.
        operand: what that node reads of it.
        region: all that goes with it, `operand` among it.
        kept: what flows on in the place of `join` without it; None where `join` is left with its other operands.
        empties: dimensions of which no unit is left without it.
        reason: why it cannot be removed, None where it can.
    """

    join: fx.Node
    operand: fx.Node
    region: frozenset[fx.Node]
    kept: fx.Node | None
    empties: tuple[Dim, ...] = ()
    reason: str | None = None


class Flow:
    """What flows where in a network.

    Attributes:
        module: the network.
        order: its nodes, in order, each with its place.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.order = {node: i for i, node in enumerate(module.graph.nodes)}
        self._reads_input: set[fx.Node] = set()
        for node in self.order:
            if node.op == "placeholder" or any(source in self._reads_input for source in node.all_input_nodes):
                self._reads_input.add(node)
        self._written = _written_to(self.order)

    def region(self, operand: fx.Node, join: fx.Node) -> frozenset[fx.Node]:
        """`operand` and all before it whose every use ends in `join` through it; nothing without parameters."""
        region = _feeds_only(operand, join)
        return region if any(self._has_parameters(node) for node in region) else frozenset()

    def why_not(
        self, join: fx.Node, operand: fx.Node, rest: Sequence[fx.Node], region: frozenset[fx.Node]
    ) -> str | None:
        """Why a region must stay whatever flows on in its place, None where nothing is against its removal.

        Args:
            join: the node that reads it.
            operand: what that node reads of it.
            rest: the node's other operands.
            region: what would be removed.
        """
        if self._reads_input.isdisjoint(rest):
            return "without it nothing that depends on the input would be left"
        if operand not in self._reads_input:
            return "it does not depend on the input"
        # What flows on would share its memory.
        changed = next((node.name for node in (join, *rest) if node.name in self._written), None)
        if changed is not None:
            return f"{changed} is written to in place"
        impure = next((node.name for node in region if not is_pure(node)), None)
        return f"it writes in place at {impure}" if impure is not None else None

    def _has_parameters(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return next(called_module(self.module, node).parameters(), None) is not None
        return node.op == "get_attr"


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
    # Other views of the same memory.
    for name, node in by_name.items():
        if not written.isdisjoint(node.meta.get(ALIASES, ())):
            written.add(name)
    return written


def _feeds_only(operand: fx.Node, join: fx.Node) -> frozenset[fx.Node]:
    if set(operand.users) != {join}:
        return frozenset()
    region: set[fx.Node] = set()
    pending = [operand]
    while pending:
        node = pending.pop()
        if node in region or node.op == "placeholder" or (node is not operand and not region.issuperset(node.users)):
            continue
        region.add(node)
        pending.extend(node.all_input_nodes)
    return frozenset(region)
