"""The verifier: graph lint, types against recorded shapes, and the zeroed dense network that a slim one must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from mdp_fx.graph.axes import Axis, BoolArray, Dim, kept_mask
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import SHAPE


def check_types(graph: PruneGraph) -> None:
    """Checks that the graph is well formed and that every type has the shape of its tensor.

    Raises:
        AssertionError: with the graph ten nodes around the fault.
    """
    graph.module.graph.lint()
    for node in graph.module.graph.nodes:
        if node.op == "output":
            continue
        fault = _mismatch(graph.types[node.name], node.meta[SHAPE])
        if fault is not None:
            msg = f"{node.name}: {fault}\n{_around(graph.module.graph, node)}"
            raise AssertionError(msg)
    for name, tensor, types in graph.stored():
        fault = _mismatch(types, tensor.shape)
        if fault is not None:
            msg = f"{name}: {fault}"
            raise AssertionError(msg)


def _mismatch(types: Any, shapes: Any) -> str | None:
    if isinstance(shapes, torch.Size):
        if types is None:
            return None
        sizes = [axis.normal.size for axis in types if isinstance(axis, Axis)]
        return None if sizes == list(shapes) else f"type {types!r} for shape {tuple(shapes)}"
    if isinstance(shapes, dict):
        return next(filter(None, (_mismatch(types[key], part) for key, part in shapes.items())), None)
    if isinstance(shapes, list | tuple):
        return next(filter(None, (_mismatch(t, s) for t, s in zip(types, shapes, strict=True))), None)
    return None


def _around(graph: fx.Graph, fault: fx.Node) -> str:
    nodes = list(graph.nodes)
    at = nodes.index(fault)
    return "\n".join(
        ("> " if node is fault else "  ") + node.format_node() for node in nodes[max(0, at - 10) : at + 11]
    )


def zeroed_copy(graph: PruneGraph, masks: Mapping[Dim, BoolArray]) -> fx.GraphModule:
    """The dense network with every parameter entry that mentions a dropped unit set to zero.

    It reads the same types as the rewriter and shares none of its code.
    """
    module: fx.GraphModule = copy.deepcopy(graph.module)
    parameters = dict(module.named_parameters())
    for name, _, types in graph.stored():
        if name not in parameters:
            continue
        for i, axis in enumerate(types):
            dropped = ~kept_mask(axis, masks)
            if dropped.any():
                index = torch.from_numpy(np.flatnonzero(dropped)).to(parameters[name].device)
                parameters[name].data.index_fill_(i, index, 0)
    return module


class WithoutBlocks(fx.Interpreter):
    """Runs a dense network in which additions pass one operand on, as if blocks were removed.

    Args:
        module: the dense network.
        flows: by addition, the name of the operand that flows on.
    """

    def __init__(self, module: fx.GraphModule, flows: Mapping[str, str]) -> None:
        super().__init__(module)
        self._flows = flows

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, or passes the remaining operand on."""
        if n.name in self._flows:
            operand = next(source for source in n.all_input_nodes if source.name == self._flows[n.name])
            # What is written to the sum must not reach the operand.
            return self.env[operand].clone()
        return super().run_node(n)
