"""The dense network with masks: it computes what the slim network of any structure computes, and can be trained.

A hard mask zeroes every parameter entry that mentions a dropped unit, as slicing removes it; its gradient is zero too.
A soft mask (SMCP, arXiv 2211.02206) zeroes what is read of a dropped unit only: entries of weights that sum over it.
Their gradient passes straight through, so that they go on learning, and the unit is computed as before. Units that
something other than a weight sums over, as attention does over queries and keys, are masked everywhere all the same.
SMCP also scales the weights of batch norms as masks change; that is left out: their statistics follow by themselves.

A removed block is a gate on the operand of its addition. Norms take their statistics over the units that are kept.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from mdp_fx.graph.axes import BoolArray, Dim, TensorType, batch_dims, free_dims
from mdp_fx.graph.axis_sizes import kept_mask
from mdp_fx.graph.ops.op import Normalisation, tensor_types
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import attribute, called_module
from mdp_fx.passes.importance import find_readers
from mdp_fx.passes.residual_blocks import Blocks
from mdp_fx.passes.slice_channels import slice_channels


def straight_through(x: Tensor, masked: Tensor) -> Tensor:
    """The value of `masked` with the gradient of `x`."""
    return x + (masked - x).detach()


class Mask(nn.Module):
    """Zeroes the masked entries of a tensor.

    Its buffers are one vector for each axis that is masked, True where entries stay.

    Args:
        axes: sizes of the masked axes, by their place.
        rank: number of axes of the tensor.
        soft: whether gradients pass straight through.
    """

    def __init__(self, axes: Mapping[int, int], rank: int, *, soft: bool) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.rank = rank
        self.soft = soft
        for axis, size in axes.items():
            self.register_buffer(f"axis_{axis}", torch.ones(size, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes what is masked."""
        masked = x
        for axis in self.axes:
            kept: Tensor = getattr(self, f"axis_{axis}")
            masked = masked * kept.view(-1, *[1] * (self.rank - axis - 1))
        return straight_through(x, masked) if self.soft else masked

    def set(self, axis: int, kept: BoolArray) -> None:
        """Says which entries of an axis stay."""
        buffer: Tensor = getattr(self, f"axis_{axis}")
        buffer.copy_(torch.from_numpy(kept))


class MaskedLayer(nn.Module):
    """A layer that runs with masked parameters.

    Args:
        layer: the layer; it keeps its parameters.
        masks: by parameter name.
    """

    def __init__(self, layer: nn.Module, masks: Mapping[str, Mask]) -> None:
        super().__init__()
        self.layer = layer
        self.names = tuple(masks)
        self.masks = nn.ModuleList(masks.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer."""
        own = dict(self.layer.named_parameters())
        masked = {name: mask(own[name]) for name, mask in zip(self.names, self.masks, strict=True)}
        return functional_call(self.layer, masked, args, kwargs)


class MaskedNorm(nn.Module):
    """A norm whose statistics see the kept units only.

    Its buffers say which entries of the operand count, and which of the result stay, True for yes; each has the
    operand's shape with 1 for axes along which nothing is masked.

    Args:
        norm: what it computes.
        shape: of the buffers.
    """

    def __init__(self, norm: Normalisation, shape: Iterable[int]) -> None:
        super().__init__()
        self.places, self.groups = norm.places, norm.groups
        self.centred, self.eps = norm.centred, norm.eps
        self.counted: Tensor
        self.kept: Tensor
        self.register_buffer("counted", torch.ones(*shape, dtype=torch.bool))
        self.register_buffer("kept", self.counted.clone())

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Normalises, scales and shifts."""
        # Half-precision sums overflow: norms are computed in float32 at least.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mask = self.counted
        if self.groups is not None:
            wide, mask = (torch.unflatten(value, 1, (self.groups, -1)) for value in (wide, mask))
        mask = mask.expand(wide.shape)
        count = mask.sum(self.places, keepdim=True).clamp(min=1)
        if self.centred:
            wide = wide - torch.where(mask, wide, 0.0).sum(self.places, keepdim=True) / count
        square = torch.where(mask, wide.square(), 0.0).sum(self.places, keepdim=True) / count
        result = torch.where(self.kept, (wide * torch.rsqrt(square + self.eps)).reshape(x.shape), 0.0)
        for value, combine in ((weight, torch.mul), (bias, torch.add)):
            if value is not None:
                each = value if self.groups is None else value.view(-1, *[1] * (x.ndim - 2))
                result = combine(result, each)
        return result.to(x.dtype)


class Gate(nn.Module):
    """Passes a block's output on, or zeros where the block is removed.

    Args:
        soft: whether gradients pass straight through.
    """

    def __init__(self, *, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.open: Tensor
        self.register_buffer("open", torch.ones((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """`x`, or zeros."""
        gated = torch.where(self.open, x, 0.0)
        return straight_through(x, gated) if self.soft else gated


@dataclass(frozen=True)
class MaskedNetwork:
    """A dense network with masks, all of them open at first.

    Attributes:
        module: the network; it has parameters and buffers of its own.
        paths: where it stores each parameter and buffer of the typed network, by name.
        everywhere: the dimensions that are masked wherever they are mentioned: with hard masks all of them.
    """

    module: fx.GraphModule
    paths: dict[str, str]
    everywhere: frozenset[Dim]
    _masks: tuple[tuple[Mask, str, TensorType, frozenset[int]], ...]
    _norms: tuple[tuple[MaskedNorm, TensorType], ...]
    _gates: tuple[tuple[str, Gate], ...]

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer that stands for one of the typed network."""
        found: Tensor = attribute(self.module, self.paths[name])
        return found

    @torch.no_grad()
    def set(self, masks: Mapping[Dim, BoolArray], removed: Collection[str]) -> None:
        """Masks.

        Args:
            masks: units that each dimension keeps; dimensions that are missing keep all.
            removed: names of the removed blocks.
        """
        everywhere = {dim: mask for dim, mask in masks.items() if dim in self.everywhere}
        for mask, _, types, reading in self._masks:
            for axis in mask.axes:
                mask.set(axis, kept_mask(types[axis], masks if axis in reading else everywhere))
        for norm, types in self._norms:
            norm.counted.copy_(_outer(types, masks, norm.counted.shape))
            norm.kept.copy_(_outer(types, everywhere, norm.kept.shape))
        for name, gate in self._gates:
            gate.open.fill_(name not in removed)

    @torch.no_grad()
    def zero(self) -> None:
        """Sets the masked entries of all parameters to zero."""
        for mask, name, _, _ in self._masks:
            tensor = self.tensor(name)
            tensor.copy_(mask(tensor))


def masked_network(graph: PruneGraph, blocks: Blocks, *, soft: bool) -> MaskedNetwork:
    """A copy of the typed dense network that can be masked.

    Args:
        graph: the typed network; left unchanged.
        blocks: its blocks.
        soft: whether what is masked goes on learning.
    """
    module = slice_channels(graph, {})
    everywhere = summed_by_others(graph) if soft else _all_dims(graph)
    builder = _Builder(graph, module, everywhere, soft=soft)
    norms = builder.mask_norms()
    gates = builder.gate(blocks)
    builder.mask_layers()
    builder.mask_read_tensors()
    module.graph.lint()
    module.recompile()
    return MaskedNetwork(module, builder.paths(), everywhere, tuple(builder.masks.values()), norms, gates)


def summed_by_others(graph: PruneGraph) -> frozenset[Dim]:
    """The dimensions over which something sums that is no stored weight: it would see units that only readers mask."""
    reading: dict[str, set[Dim]] = {}
    for reader in find_readers(graph):
        reading.setdefault(reader.node, set()).update(free_dims(reader.channels))
    found: set[Dim] = set()
    for node in graph.module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or node.target is operator.getitem:
            continue  # What is picked out of a value is summed by nobody.
        after = _mentions(graph, node)
        for source in node.all_input_nodes:
            before = _mentions(graph, source) if source.op != "get_attr" else {}
            less = {dim for dim, count in before.items() if count > after.get(dim, 0)}
            found |= less - reading.get(node.name, set())
    return frozenset(found)


def _mentions(graph: PruneGraph, node: fx.Node) -> dict[Dim, int]:
    """How many axes of a node's value mention each dimension; of one of its tensors, where there are several."""
    found: dict[Dim, int] = {}
    for types in tensor_types(graph.types.get(node.name)):
        for dim in {dim for axis in types for dim in free_dims(axis)}:
            found[dim] = max(found.get(dim, 0), sum(dim in free_dims(axis) for axis in types))
    return found


def _all_dims(graph: PruneGraph) -> frozenset[Dim]:
    return frozenset(dim for _, _, types in graph.stored() for axis in types for dim in free_dims(axis))


def _reading_axes(graph: PruneGraph) -> dict[int, frozenset[int]]:
    """By identity of a weight, the places of the axes that it sums over."""
    found: dict[int, set[int]] = {}
    for reader in find_readers(graph):
        found.setdefault(id(reader.weight), set()).add(reader.axis)
    return {key: frozenset(places) for key, places in found.items()}


def _outer(types: TensorType, masks: Mapping[Dim, BoolArray], shape: torch.Size) -> Tensor:
    result = np.ones((), dtype=bool)
    for axis, size in zip(types, shape, strict=True):
        kept = kept_mask(axis, masks) if size > 1 else np.ones(1, dtype=bool)
        result = np.logical_and.outer(result, kept)
    return torch.from_numpy(np.asarray(result))


class _Builder:
    """Puts masks into a copy of a typed network."""

    def __init__(self, graph: PruneGraph, module: fx.GraphModule, everywhere: frozenset[Dim], *, soft: bool) -> None:
        self._graph = graph
        self._module = module
        self._reading = _reading_axes(graph)
        self._everywhere = everywhere
        self._soft = soft
        self._nodes = {node.name: node for node in module.graph.nodes}
        self._typed = {
            name: (tensor, graph.tensors[id(tensor)])
            for name, tensor in graph.module.named_parameters(remove_duplicate=False)
            if id(tensor) in graph.tensors
        }
        self._wrapped: dict[str, str] = {}
        self.masks: dict[int, tuple[Mask, str, TensorType, frozenset[int]]] = {}

    def _mask(self, name: str) -> Mask | None:
        """The mask of a parameter, one for all its names; None where it needs none."""
        if name not in self._typed:
            return None
        tensor, types = self._typed[name]
        if id(tensor) not in self.masks:
            reading = self._reading.get(id(tensor), frozenset())
            axes = {
                i: axis.size
                for i, axis in enumerate(types)
                if (free_dims(axis) if i in reading else self._everywhere.intersection(free_dims(axis)))
            }
            if not axes:
                return None
            self.masks[id(tensor)] = (Mask(axes, len(types), soft=self._soft), name, types, reading)
        return self.masks[id(tensor)][0]

    def mask_norms(self) -> tuple[tuple[MaskedNorm, TensorType], ...]:
        """Puts masked norms in the place of norms over prunable units."""
        found: list[tuple[MaskedNorm, TensorType]] = []
        for name, norm in self._graph.norms.items():
            types = self._graph.types[norm.operand]
            assert isinstance(types, tuple)
            if not any(free_dims(axis) for axis in types):
                continue
            sizes = [
                1 if batch_dims(axis) or not (free_dims(axis) or (i == 1 and norm.groups is not None)) else axis.size
                for i, axis in enumerate(types)
            ]
            masked = MaskedNorm(norm, sizes)
            target = f"masked_norm_{name}"
            self._module.add_submodule(target, masked)
            node = self._nodes[name]
            operands = [self._nodes[norm.operand], *(self._read(node, each) for each in (norm.weight, norm.bias))]
            node.op, node.target, node.args, node.kwargs = "call_module", target, tuple(operands), {}
            found.append((masked, types))
        return tuple(found)

    def _read(self, before: fx.Node, name: str | None) -> fx.Node | None:
        """The node of that name, or one that reads the stored tensor of that name."""
        if name is None or name in self._nodes:
            return None if name is None else self._nodes[name]
        with self._module.graph.inserting_before(before):
            return self._module.graph.get_attr(name)

    def gate(self, blocks: Blocks) -> tuple[tuple[str, Gate], ...]:
        """Puts a gate behind every block that an addition reads."""
        gates: list[tuple[str, Gate]] = []
        for number, block in enumerate(blocks.removable):
            if block.kept is None:
                continue  # A branch of a concatenation goes with its units.
            gate = Gate(soft=self._soft)
            target = f"gate_{number}"
            self._module.add_submodule(target, gate)
            operand, join = self._nodes[block.nodes[-1]], self._nodes[block.join]
            with self._module.graph.inserting_after(operand):
                gated = self._module.graph.call_module(target, (operand,))
            join.replace_input_with(operand, gated)
            gates.append((block.name, gate))
        return tuple(gates)

    def mask_layers(self) -> None:
        """Wraps the layers that are called."""
        made: dict[int, MaskedLayer | None] = {}
        for node in self._module.graph.find_nodes(op="call_module"):
            target = str(node.target)
            if target in self._wrapped:
                continue
            layer = called_module(self._module, node)
            if isinstance(layer, MaskedLayer):
                continue
            if id(layer) not in made:
                masks = {name: self._mask(f"{target}.{name}") for name, _ in layer.named_parameters()}
                there = {name: mask for name, mask in masks.items() if mask is not None}
                made[id(layer)] = MaskedLayer(layer, there) if there else None
            wrapper = made[id(layer)]
            if wrapper is not None:
                self._module.add_submodule(target, wrapper)
                self._wrapped[target] = f"{target}.layer"

    def mask_read_tensors(self) -> None:
        """Puts masks behind the parameters that are read, and finds those of wrapped layers where they are now."""
        for node in self._module.graph.find_nodes(op="get_attr"):
            name = str(node.target)
            node.target = self._path(name)
            mask = self._mask(name)
            if mask is None:
                continue
            target = f"mask_of_{name.replace('.', '_')}"
            self._module.add_submodule(target, mask)
            users = tuple(node.users)
            with self._module.graph.inserting_after(node):
                masked = self._module.graph.call_module(target, (node,))
            for user in users:
                user.replace_input_with(node, masked)

    def _path(self, name: str) -> str:
        for target, inner in self._wrapped.items():
            if name.startswith(f"{target}."):
                return inner + name[len(target) :]
        return name

    def paths(self) -> dict[str, str]:
        """Where each parameter and buffer of the typed network is stored now."""
        stored = {name for name, _ in self._module.named_parameters(remove_duplicate=False)}
        stored |= {name for name, _ in self._module.named_buffers(remove_duplicate=False)}
        named = self._graph.module
        names = [
            name for each in (named.named_parameters, named.named_buffers) for name, _ in each(remove_duplicate=False)
        ]
        return {name: self._path(name) for name in names if self._path(name) in stored}
