"""The kinds of importance: what each needs to know, and its formula on one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mdp_fx.errors import InputError, did_you_mean
from mdp_fx.graph.axes import Axis, Dim, free_dims
from mdp_fx.graph.axis_sizes import occurrences
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.importance.layers import FloatArray, Layer, find_layers, find_readers, find_reading_norms

Needs = Literal["nothing", "gradients", "activations"]

NEEDS: dict[str, Needs] = {
    "l2": "nothing",
    "l1": "nothing",
    "bn": "nothing",
    "random": "nothing",
    "taylor": "gradients",
    "taylor-filter": "gradients",
    "taylor-input": "gradients",
    "taylor-squared": "gradients",
    "fisher": "gradients",
    "activation": "activations",
}
"""What each kind is computed of, beside the weights."""

KINDS: tuple[str, ...] = tuple(NEEDS)

JOINT = ("taylor", "taylor-filter", "taylor-input")
"""Kinds by which all layers of a coupled group speak together, see `joined`."""

SMALLEST = 1e-12
"""Share of a layer's largest importance that a unit which must come before masked ones has at least."""


@dataclass(frozen=True)
class Source:
    """What one node's importance is computed of.

    Attributes:
        node: the node's name.
        axis: the type of the axis that counts what is scored.
        dims: the dimensions of that axis whose units are scored here.
        tensors: names of stored tensors, each with the place of that axis in it.
    """

    node: str
    axis: Axis
    dims: frozenset[Dim]
    tensors: tuple[tuple[str, int], ...]


def check_kind(kind: str) -> None:
    """Checks that there is such a kind.

    Raises:
        InputError: there is none.
    """
    if kind not in NEEDS:
        raise InputError(f"unknown importance {kind!r}: use one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")


def find_sources(graph: PruneGraph, kind: str) -> tuple[Source, ...]:
    """What the importance of a network is computed of, in graph order."""
    names = {id(tensor): name for name, tensor, _ in graph.stored()}
    if kind == "taylor-input":
        readers = find_readers(graph)
        return tuple(_source(each.node, each.channels, [(names[id(each.weight)], each.axis)]) for each in readers)
    layers = find_layers(graph)
    if kind in ("taylor", "taylor-squared"):
        return _at_norms(graph, layers, names)

    def tensor(layer: Layer) -> tuple[str, int]:
        return (names[id(layer.scale[0])], 0) if kind == "bn" and layer.scale else (names[id(layer.weight)], layer.axis)

    return tuple(_source(layer.node, layer.out, [tensor(layer)]) for layer in layers)


def _source(node: str, axis: Axis, tensors: Sequence[tuple[str, int]], read: Collection[Dim] = ()) -> Source:
    return Source(node, axis, frozenset(free_dims(axis)).difference(read), tuple(tensors))


def _at_norms(graph: PruneGraph, layers: Sequence[Layer], names: Mapping[int, str]) -> tuple[Source, ...]:
    """Every unit where it is scaled last: at the norms that read it, else behind each layer, else at its filter.

    What comes before a norm with statistics of the batch says nothing: the norm undoes any scale of it, so that the
    sum of gradient times weight is zero.
    """
    norms = find_reading_norms(graph, layers)
    read = {dim for norm in norms for dim in free_dims(norm.channels)}
    found = [_source(norm.node, norm.channels, [(names[id(each)], i) for each, i in norm.scale]) for norm in norms]
    for layer in layers:
        behind = [(names[id(tensor)], 0) for tensor in layer.scale]
        found.append(_source(layer.node, layer.out, behind or [(names[id(layer.weight)], layer.axis)], read))
    order = {node.name: place for place, node in enumerate(graph.module.graph.nodes)}
    return tuple(sorted((source for source in found if source.dims), key=lambda source: order[source.node]))


def of_weights(
    source: Source, kind: str, values: Mapping[str, torch.Tensor], generator: np.random.Generator
) -> FloatArray:
    """Importance of every entry of a source's axis without data, divided by its sum; shape (entries,)."""
    name, axis = source.tensors[0]
    if kind == "random":
        array = generator.random(source.axis.size)
    else:
        filters = (
            values[name].detach().movedim(axis, 0).flatten(1)
            if values[name].ndim > 1
            else values[name].detach()[:, None]
        )
        array = (filters.abs().sum(1) if kind == "l1" else filters.norm(dim=1)).double().cpu().numpy()
    total = float(array.sum())
    return array / total if total > 0 else np.full_like(array, 1 / array.size)


def of_gradients(
    source: Source, kind: str, values: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
) -> FloatArray:
    """What one batch says of every entry of a source's axis, shape (entries,): signed for the kinds in `JOINT`."""
    total = torch.zeros(source.axis.size, dtype=torch.float64, device=values[source.tensors[0][0]].device)
    for name, axis in source.tensors:
        product = gradients[name].detach().double() * values[name].detach().double()
        if kind == "fisher":
            product = product.square()
        total += product if product.ndim == 1 else product.movedim(axis, 0).flatten(1).sum(1)
    if kind == "taylor-squared":
        total = total.square()
    array: FloatArray = total.cpu().numpy()
    return array


def by_unit(source: Source, entries: FloatArray, groups: Mapping[Dim, str]) -> dict[str, FloatArray]:
    """Sums the entries of an axis by the unit of each group that they belong to."""
    totals: dict[str, FloatArray] = {}
    for dim, units in occurrences(source.axis):
        if dim in groups and dim in source.dims:
            there = units >= 0
            summed = np.bincount(units[there], weights=entries[there], minlength=dim.size)
            totals[groups[dim]] = totals.get(groups[dim], np.zeros(dim.size)) + summed
    return totals


def joined(signed: Sequence[tuple[str, FloatArray]]) -> list[FloatArray]:
    """The absolute value of what the layers of each group say together, shared out by what each says alone.

    A unit is worth the absolute sum over its layers: HALP (arXiv 2110.10811, eq. 4), as its and MDP's published code
    have it; the shares tell how much of that goes with a block.

    Args:
        signed: for every layer its group and the signed sums of its units.
    """
    whole: dict[str, FloatArray] = {}
    parts: dict[str, FloatArray] = {}
    for group, values in signed:
        whole[group] = whole.get(group, np.zeros_like(values)) + values
        parts[group] = parts.get(group, np.zeros_like(values)) + np.abs(values)
    # Where all parts are zero the whole is too.
    return [
        np.abs(whole[group])
        * np.divide(np.abs(values), parts[group], out=np.zeros_like(values), where=parts[group] > 0)
        for group, values in signed
    ]
