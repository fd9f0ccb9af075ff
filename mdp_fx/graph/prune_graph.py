"""The typed graph: a traced network whose tensor axes carry types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mdp_fx.graph import ops
from mdp_fx.graph.axes import Axis, Dim, TensorType, constant, is_batch
from mdp_fx.graph.eval_flag import TAKEN
from mdp_fx.graph.ops.op import Emission, Inference, Normalisation, Types, tensor_types
from mdp_fx.graph.ops.registry import infer_node
from mdp_fx.graph.trace import FrontEnd, Traced
from mdp_fx.graph.tracer import SHAPE
from mdp_fx.graph.unify import freeze

__all__ = ["PruneGraph", "infer_types", "ops"]


@dataclass(frozen=True)
class PruneGraph:
    """A traced network with the types of everything in it. Analysis reads it, nothing edits it.

    Attributes:
        module: the traced network.
        example_inputs: the inputs it was traced with.
        batch: the rigid dimension of the batch, None where the network fixes it.
        types: types of every node's value, by node name.
        tensors: types of parameters and buffers, by identity; `stored` pairs them with names.
        emissions: how nodes that carry sizes are written again, by node name.
        scales: the stored scale and shift of every node that normalises, by node name.
        norms: nodes that normalise prunable units together, by node name: their statistics see the kept units only.
        pointers: for stored tensors that hold positions, by identity, the axis that they point into.
        baked_in: what the example inputs decided for good: a fixed batch, tensors that the forward made by itself.
        front_end: what made the graph, and `why` the reason for that front end.
    """

    module: fx.GraphModule
    example_inputs: tuple[Any, ...]
    batch: Dim | None
    types: dict[str, Types]
    tensors: dict[int, TensorType]
    emissions: dict[str, Emission]
    scales: dict[str, tuple[torch.Tensor, ...]]
    norms: dict[str, Normalisation]
    pointers: dict[int, Axis]
    baked_in: tuple[str, ...] = ()
    front_end: FrontEnd = "symbolic"
    why: str = ""

    @property
    def batch_source(self) -> str | None:
        """The first node whose axis 0 is the batch: an input, or what is taken out of one."""
        for node in self.module.graph.nodes:
            types = self.types.get(node.name)
            if isinstance(types, tuple) and types and isinstance(types[0], Axis) and is_batch(types[0]):
                return str(node.name)
        return None

    def stored(self) -> Iterator[tuple[str, torch.Tensor, TensorType]]:
        """Every typed parameter and buffer once: its first name, the tensor, its type."""
        seen: set[int] = set()
        for named in (self.module.named_parameters(), self.module.named_buffers()):
            for name, tensor in named:
                if id(tensor) in self.tensors and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield name, tensor, self.tensors[id(tensor)]


def infer_types(traced: Traced) -> PruneGraph:
    """Types every axis of every tensor in a traced network."""
    batch = Dim(traced.batch, rigid=True) if traced.batch is not None and traced.batch > 1 else None
    batch_axis = Axis((batch,)) if batch is not None else None

    def of_input(shape: torch.Size) -> TensorType:
        return tuple(
            batch_axis if i == 0 and batch_axis is not None and size == batch_axis.size else constant(size)
            for i, size in enumerate(shape)
        )

    inputs = {
        node.name: _map_shapes(of_input, node.meta[SHAPE])
        for node in traced.module.graph.nodes
        if node.op == "placeholder"
    }
    state = infer(traced.module, inputs)
    for node in traced.module.graph.find_nodes(op="output"):
        for leaf in node.all_input_nodes:
            for tensor in tensor_types(state.types[leaf.name]):
                for axis in tensor:
                    freeze(axis, "output of the network")
    alive = batch if batch is not None and batch.exp is None else None
    return PruneGraph(
        traced.module,
        traced.example_inputs,
        alive,
        state.types,
        state.tensors,
        state.emissions,
        state.scales,
        state.norms,
        state.pointers,
        tuple(_baked_in(traced, alive)),
        traced.front_end,
        traced.why + (f"; its batch cannot be open: {traced.fixed}" if traced.fixed else ""),
    )


def _baked_in(traced: Traced, batch: Dim | None) -> Iterator[str]:
    if batch is None:
        yield "the batch size: another one may fail"
    if traced.state:
        yield f"what the forward keeps for its next call, as in the first one ({', '.join(traced.state)})"
    taken = (node.meta[TAKEN] for node in traced.module.graph.nodes if TAKEN in node.meta)
    for line in dict.fromkeys((*traced.training_reads, *taken)):
        yield f"self.training as it is in eval mode ({line})"
    for node in traced.module.graph.find_nodes(op="get_attr"):
        if node.target in traced.constants:
            shape = "x".join(map(str, node.meta[SHAPE])) or "scalar"
            what = "is no parameter or buffer" if node.target in traced.unregistered else "the forward makes"
            yield f"a tensor that {what} ({shape}, read by {', '.join(user.name for user in node.users)})"


def infer(module: fx.GraphModule, inputs: dict[str, Types], *, zero_inputs: bool = False) -> Inference:
    """Types a graph whose placeholders have the given types, in one walk; visiting a node twice changes nothing.

    Args:
        module: the graph.
        inputs: types of its placeholders, by name.
        zero_inputs: whether the inputs count as zero at dropped units: a part of a network that was typed as a whole.
    """
    state = Inference(module)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            state.types[node.name] = inputs[node.name]
            if zero_inputs:
                state.zeros[node.name] = inputs[node.name]
        elif node.op != "output":
            infer_node(node, state)
    return state


def _map_shapes(function: Any, shapes: Any) -> Types:
    if isinstance(shapes, torch.Size):
        return function(shapes)
    if isinstance(shapes, dict):
        return {key: _map_shapes(function, part) for key, part in shapes.items()}
    if isinstance(shapes, list | tuple):
        return [_map_shapes(function, part) for part in shapes]
    return None
