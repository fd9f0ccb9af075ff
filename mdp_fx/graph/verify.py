"""The verifier: graph lint, types against recorded shapes, and the zeroed dense network that a slim one must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from mdp_fx.graph.axes import Axis, BoolArray, Dim, batch_dims
from mdp_fx.graph.axis_sizes import kept_mask, size_terms
from mdp_fx.graph.ops.op import Normalisation
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import SHAPE, attribute, called_module


def check_types(graph: PruneGraph) -> None:
    """Checks that the graph is well formed, that every type has the shape of its tensor, and modules one size each.

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
    _check_modules(graph)


def _check_modules(graph: PruneGraph) -> None:
    """Calls of a module that stores tensors must agree on its sizes; one without gets a copy for each size."""
    known: dict[tuple[int, str], list[object]] = {}
    for node in graph.module.graph.find_nodes(op="call_module"):
        layer = called_module(graph.module, node)
        if node.name not in graph.emissions or not {*layer.parameters(), *layer.buffers()}:
            continue
        for name, axes in graph.emissions[node.name].attributes.items():
            # One size may be written in several ways.
            sizes = [_size_law(axis) for axis in ((axes,) if isinstance(axes, Axis) else axes)]
            if known.setdefault((id(layer), name), sizes) != sizes:
                msg = f"{node.name}: {name} of {node.target} follows {axes!r}, and something else elsewhere"
                raise AssertionError(f"{msg}\n{_around(graph.module.graph, node)}")


def _size_law(axis: Axis) -> object:
    """How the size of an axis follows from those of its Dims."""
    constant, terms = size_terms(axis)
    return constant, {dims: count for count, dims in terms}


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


class Reference(fx.Interpreter):
    """The dense network with all that was dropped set to zero, built without the rewriter.

    Additions pass one operand on where the other side's block was removed. Norms over prunable units take their
    statistics over the kept units: that is what a norm of the sliced units is.

    Args:
        graph: the typed dense network.
        masks: units that each dimension keeps.
        flows: by addition, the name of the operand that flows on.
    """

    def __init__(self, graph: PruneGraph, masks: Mapping[Dim, BoolArray], flows: Mapping[str, str]) -> None:
        super().__init__(zeroed_copy(graph, masks))
        self._graph = graph
        self._masks = masks
        self._flows = flows

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, or passes the remaining operand on."""
        if n.name in self._flows:
            operand = next(source for source in n.all_input_nodes if source.name == self._flows[n.name])
            # What is written to the sum must not reach the operand.
            return self.env[operand].clone()
        norm = self._graph.norms.get(n.name)
        if norm is not None and any(self._dropped(axis) for axis in self._graph.types[norm.operand]):
            return self._normalise(norm)
        return super().run_node(n)

    def _dropped(self, axis: Axis) -> bool:
        return not kept_mask(axis, self._masks).all()

    def _normalise(self, norm: Normalisation) -> torch.Tensor:
        x = self._operand(norm.operand)
        mask = torch.ones((), dtype=torch.bool)
        for axis in self._graph.types[norm.operand]:
            # The batch, which is all kept, may be another one now.
            kept = np.ones(1, dtype=bool) if batch_dims(axis) else kept_mask(axis, self._masks)
            mask = mask.unsqueeze(-1) & torch.from_numpy(kept)
        shape = x.shape
        if norm.groups is not None:
            x, mask = (torch.unflatten(value, 1, (norm.groups, -1)) for value in (x, mask))
        mask = mask.expand(x.shape)
        count = mask.sum(norm.places, keepdim=True).clamp(min=1)
        if norm.centred:
            x = x - (x * mask).sum(norm.places, keepdim=True) / count
        square = (x.square() * mask).sum(norm.places, keepdim=True) / count
        result = (x / (square + norm.eps).sqrt() * mask).reshape(shape)
        for name, combine in ((norm.weight, torch.mul), (norm.bias, torch.add)):
            if name is not None:
                scale = self._operand(name)
                result = combine(result, scale if norm.groups is None else scale.view(-1, *[1] * (len(shape) - 2)))
        return result

    def _operand(self, name: str) -> torch.Tensor:
        """The value of a node, or a stored tensor."""
        known = {node.name: value for node, value in self.env.items()}
        found: torch.Tensor = known[name] if name in known else attribute(self.module, name)
        return found
