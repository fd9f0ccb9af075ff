"""What importance is asked of: layers that make filters, and layers and norms that read prunable channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from mdp_fx.graph.axes import Axis, free_dims
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import SHAPE, called_module

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A node that makes filters: its weight, and the scale and shift that follow it.

    Attributes:
        node: the node's name.
        out: the type of the axis that counts its filters.
        weight: the weight, and `axis` the one of its axes that counts filters.
        norm: name of the node of the norm that alone follows it and scales its filters, None where none does.
        scale: scale and shift of that norm; empty where there is none.
    """

    node: str
    out: Axis
    weight: torch.Tensor
    axis: int
    norm: str | None
    scale: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ReadingNorm:
    """A norm that reads prunable channels from elsewhere than the one layer before it: a sum, a concatenation.

    Attributes:
        node: the node's name.
        channels: the type of the axis of its scale and shift that counts them.
        scale: the scale and shift, each with the place of that axis in it.
    """

    node: str
    channels: Axis
    scale: tuple[tuple[torch.Tensor, int], ...]


@dataclass(frozen=True)
class Reader:
    """A node that sums over prunable channels: its weight, and the axis of it that counts them, with its type."""

    node: str
    channels: Axis
    weight: torch.Tensor
    axis: int


@dataclass(frozen=True)
class LayerImportance:
    """Importance that one layer gives to the units of one group; `values` has shape (units,)."""

    layer: str
    group: str
    values: FloatArray


def find_layers(graph: PruneGraph) -> tuple[Layer, ...]:
    """The filter-producing layers with a prunable output, in graph order."""
    layers: list[Layer] = []
    for node, types, weights in _weighted(graph):
        for weight in weights:
            found = _filter_axis(graph.tensors[id(weight)], types)
            if found is not None:
                out, axis = found
                layers.append(Layer(node.name, out, weight, axis, *_norm_after(graph, node, out)))
                break
    return tuple(layers)


def find_reading_norms(graph: PruneGraph, layers: Sequence[Layer]) -> tuple[ReadingNorm, ...]:
    """The norms with a scale of prunable channels that are none of the layers' own, in graph order."""
    own = {layer.norm for layer in layers}
    norms: list[ReadingNorm] = []
    for node in graph.module.graph.nodes:
        if node.name in own:
            continue
        found: dict[Axis, list[tuple[torch.Tensor, int]]] = {}
        for parameter in graph.scales.get(node.name, ()):
            if not isinstance(parameter, torch.nn.Parameter):
                continue  # What is not learned has no gradient to score by.
            for i, axis in enumerate(graph.tensors[id(parameter)]):
                if free_dims(axis):
                    found.setdefault(axis.normal, []).append((parameter, i))
        norms += [ReadingNorm(node.name, axis, tuple(scale)) for axis, scale in found.items()]
    return tuple(norms)


def find_readers(graph: PruneGraph) -> tuple[Reader, ...]:
    """The layers whose weight sums over prunable channels, in graph order."""
    readers: list[Reader] = []
    for node, types, weights in _weighted(graph):
        for weight in weights:
            typed = graph.tensors[id(weight)]
            made = _filter_axis(typed, types)
            for i, axis in enumerate(typed):
                if free_dims(axis) and (made is None or i != made[1]):
                    readers.append(Reader(node.name, axis, weight, i))
    return tuple(readers)


def _weighted(graph: PruneGraph) -> Iterator[tuple[fx.Node, tuple[Axis, ...], list[torch.Tensor]]]:
    """Nodes with typed weights of two axes or more, and the type of their value."""
    for node in graph.module.graph.nodes:
        types = graph.types.get(node.name)
        if not isinstance(types, tuple) or not isinstance(node.meta.get(SHAPE), torch.Size):
            continue
        weights = [each for each in _parameters(graph, node) if each.ndim >= 2 and id(each) in graph.tensors]
        if weights:
            yield node, types, weights


def _parameters(graph: PruneGraph, node: fx.Node) -> list[torch.Tensor]:
    if node.op == "call_module":
        return list(called_module(graph.module, node).parameters(recurse=False))
    if node.op == "call_function":
        stored = dict(graph.module.named_parameters())
        targets = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        return [stored[target] for target in targets if target in stored]
    return []


def _filter_axis(weight: tuple[Axis, ...], out: tuple[Axis, ...]) -> tuple[Axis, int] | None:
    """The weight's axis that the node's value has too, and is prunable."""
    for i, mine in enumerate(weight):
        for axis in out:
            if mine.normal == axis.normal and free_dims(axis):
                return axis, i
    return None


def _norm_after(graph: PruneGraph, node: fx.Node, out: Axis) -> tuple[str | None, tuple[torch.Tensor, ...]]:
    """The norm that alone follows a layer and scales its filters one by one: its node's name, scale and shift."""
    if len(node.users) != 1:
        return None, ()
    (user,) = node.users
    scale = tuple(
        parameter
        for parameter in graph.scales.get(user.name, ())
        if isinstance(parameter, torch.nn.Parameter) and graph.tensors[id(parameter)][0].normal == out.normal
    )
    return (user.name, scale) if scale else (None, ())
