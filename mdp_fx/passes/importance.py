"""Importance: what every unit of every channel group is worth, layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import DataError, InputError, first_line
from mdp_fx.graph.axes import Axis, free_dims
from mdp_fx.graph.axis_sizes import occurrences
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import SHAPE, called_module
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.slice_channels import dense_network

Kind = Literal["l2", "l1", "bn", "taylor", "random"]
KINDS: tuple[str, ...] = get_args(Kind)
FloatArray: TypeAlias = npt.NDArray[np.float64]
Loss: TypeAlias = Callable[[Any, Any], torch.Tensor]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A node that makes filters: its weight, and the scale and shift that follow it.

    Attributes:
        node: the node's name.
        out: the type of the axis that counts its filters.
        weight: the weight, and `axis` the one of its axes that counts filters.
        scale: one-dimensional parameters of the norm that alone follows it; empty where none does.
    """

    node: str
    out: Axis
    weight: torch.Tensor
    axis: int
    scale: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class LayerImportance:
    """Importance that one layer gives to the units of one group; `values` has shape (units,)."""

    layer: str
    group: str
    values: FloatArray


def find_layers(graph: PruneGraph) -> tuple[Layer, ...]:
    """The filter-producing layers with a prunable output, in graph order."""
    layers: list[Layer] = []
    for node in graph.module.graph.nodes:
        types = graph.types.get(node.name)
        if not isinstance(types, tuple) or not isinstance(node.meta.get(SHAPE), torch.Size):
            continue
        for weight in _parameters(graph, node):
            if weight.ndim < 2 or id(weight) not in graph.tensors:
                continue
            found = _filter_axis(graph.tensors[id(weight)], types)
            if found is not None:
                out, axis = found
                layers.append(Layer(node.name, out, weight, axis, _scale_after(graph, node, out)))
                break
    return tuple(layers)


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


def _scale_after(graph: PruneGraph, node: fx.Node, out: Axis) -> tuple[torch.Tensor, ...]:
    if len(node.users) != 1:
        return ()
    (user,) = node.users
    return tuple(
        parameter
        for parameter in graph.scales.get(user.name, ())
        if isinstance(parameter, torch.nn.Parameter) and graph.tensors[id(parameter)][0].normal == out.normal
    )


def score(
    graph: PruneGraph,
    groups: Sequence[ChannelGroup],
    kind: str,
    *,
    model: nn.Module | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    batches: int = 50,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[LayerImportance, ...]:
    """Scores the units of every group.

    "taylor" is HALP's (arXiv 2110.10811, eq. 4): per filter the squared sum of gradient times weight over the scale and
    shift that follow it, or over the filter where none follows; the mean over batches. "l2", "l1" and "bn" are filter
    norms and absolute scales, divided by their sum over the layer: every layer is worth the same, and a channel of a
    narrow layer is worth more than one of a wide layer.

    Args:
        graph: the typed network.
        groups: its channel groups.
        kind: what to score by.
        model: the network that shares the graph's parameters, for taylor.
        data: batches of (inputs, targets), for taylor.
        loss: of (outputs, targets); cross-entropy by default.
        seed: for "random".
        batches: at most this many batches are read.
        progress: called with (done, total, text).

    Raises:
        InputError: an unknown kind, or taylor without data.
        DataError: batches that the network or the loss rejects.
    """
    layers = find_layers(graph)
    if kind == "taylor":
        if model is None or data is None:
            msg = "taylor importance needs data: pass --data package.module:make_loader or --data imagefolder:PATH"
            raise InputError(msg)
        scores = _taylor(layers, _holder(layers, model, graph), data, loss or cross_entropy, batches, progress)
    elif kind in KINDS:
        generator = np.random.default_rng(seed)
        scores = [_without_data(layer, kind, generator) for layer in layers]
    else:
        msg = f"unknown importance {kind!r}: use one of {', '.join(KINDS)}"
        raise InputError(msg)
    names = {group.dim: group.name for group in groups}
    result: list[LayerImportance] = []
    for layer, values in zip(layers, scores, strict=True):
        totals: dict[str, FloatArray] = {}
        for dim, units in occurrences(layer.out):
            if dim not in names:
                continue
            mentioned = units >= 0
            summed = np.bincount(units[mentioned], weights=values[mentioned], minlength=dim.size)
            totals[names[dim]] = totals.get(names[dim], np.zeros(dim.size)) + summed
        result.extend(LayerImportance(layer.node, group, total) for group, total in totals.items())
    return tuple(result)


def _without_data(layer: Layer, kind: str, generator: np.random.Generator) -> FloatArray:
    if kind == "random":
        values = torch.from_numpy(generator.random(layer.out.size))
    elif kind == "bn" and layer.scale:
        values = layer.scale[0].detach().abs()
    else:
        filters = layer.weight.detach().movedim(layer.axis, 0).flatten(1)
        values = filters.abs().sum(1) if kind == "l1" else filters.norm(dim=1)
    array: FloatArray = values.double().cpu().numpy()
    total = float(array.sum())
    return array / total if total > 0 else np.full_like(array, 1 / array.size)


def _holder(layers: Sequence[Layer], model: nn.Module, graph: PruneGraph) -> nn.Module:
    """The model where it holds the layers' parameters; else the graph with its batch open: it has parts of them."""
    held = {id(parameter) for parameter in model.parameters()}
    if all(id(tensor) in held for layer in layers for tensor in layer.scale or (layer.weight,)):
        return model
    return dense_network(graph)


def _taylor(
    layers: Sequence[Layer],
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    batches: int,
    progress: Callable[[int, int, str], None] | None,
) -> list[FloatArray]:
    sources = [layer.scale or (layer.weight,) for layer in layers]
    wanted = list({id(tensor): tensor for group in sources for tensor in group}.values())
    before = [(module, module.training) for module in model.modules()]
    required = [tensor.requires_grad for tensor in wanted]
    sums = [np.zeros(layer.out.size) for layer in layers]
    done = 0
    model.eval()
    try:
        for tensor in wanted:
            tensor.requires_grad_(True)
        for batch in _batches(data):
            gradients = _gradients(model, batch, loss, wanted)
            for layer, group, total in zip(layers, sources, sums, strict=True):
                total += _squared_products(layer, group, gradients)
            done += 1
            if progress is not None:
                progress(done, batches, "batches of gradients")
            if done == batches:
                break
    finally:
        for tensor, flag in zip(wanted, required, strict=True):
            tensor.requires_grad_(flag)
        for module, training in before:
            module.training = training
    if not done:
        msg = "the data has no batches: the loader must yield (inputs, targets)"
        raise DataError(msg)
    return [total / done for total in sums]


def _batches(data: Iterable[Any]) -> Iterator[Any]:
    """Batches of the user's loader, whose faults are told as such."""
    try:
        yield from data
    except GeneratorExit:
        raise
    except Exception as error:
        msg = f"the data loader failed with {type(error).__name__}: {first_line(error)}"
        raise DataError(msg) from error


def _gradients(model: nn.Module, batch: Any, loss: Loss, wanted: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        msg = f"a batch of data must be (inputs, targets), got {type(batch).__name__}"
        raise DataError(msg)
    inputs, targets = batch
    device = wanted[0].device if wanted else torch.device("cpu")
    inputs, targets = pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, (inputs, targets))
    try:
        with torch.enable_grad():
            outputs = model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)
            value = loss(outputs, targets)
            found = torch.autograd.grad(value, wanted, allow_unused=True)
    except DataError:
        raise
    except Exception as error:
        msg = f"a batch of data does not fit the network or the loss: {type(error).__name__}: {first_line(error)}"
        raise DataError(msg) from error
    if not torch.isfinite(value):
        msg = f"the loss on a batch of data is {float(value.detach())}: check the data's scaling and the weights"
        raise DataError(msg)
    return {id(w): torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)}


def _squared_products(layer: Layer, group: Sequence[torch.Tensor], gradients: Mapping[int, torch.Tensor]) -> FloatArray:
    total = torch.zeros(layer.out.size, dtype=torch.float64)
    for tensor in group:
        product = (gradients[id(tensor)] * tensor.detach()).double().cpu()
        total += product if tensor.ndim == 1 else product.movedim(layer.axis, 0).flatten(1).sum(1)
    squared: FloatArray = total.square().numpy()
    return squared


def cross_entropy(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the first tensor of a network's output; labels must lie inside of its classes."""
    if not isinstance(targets, torch.Tensor):
        msg = f"the targets of a batch must be a tensor of labels for cross-entropy, not a {type(targets).__name__}"
        raise DataError(msg)
    logits = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
    if (
        targets.dtype == torch.int64
        and targets.numel()
        and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]
    ):
        msg = (
            f"labels {int(targets.min())}..{int(targets.max())} lie outside of the network's {logits.shape[1]} classes"
        )
        raise DataError(msg)
    return F.cross_entropy(logits, targets)
