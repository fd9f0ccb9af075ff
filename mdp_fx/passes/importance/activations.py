"""Watching what layers put out while a network runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from mdp_fx.graph.axes import Axis
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import SHAPE
from mdp_fx.passes.importance.layers import find_layers


class Observer(nn.Module):
    """Passes its input on, and keeps the mean of its absolute value along one axis.

    Attributes:
        axis: the axis that is not averaged over.
        in_training: only calls with gradients count: what is evaluated in between is not trained on.
    """

    def __init__(self, axis: int, *, in_training: bool = False) -> None:
        super().__init__()
        self.axis, self.in_training = axis, in_training
        self._sum: torch.Tensor | None = None
        self._calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x`."""
        if torch.is_grad_enabled() or not self.in_training:
            with torch.no_grad():
                mean = x.detach().abs().double().movedim(self.axis, 0).flatten(1).mean(1)
            self._sum = mean if self._sum is None else self._sum + mean
            self._calls += 1
        return x

    def take(self) -> torch.Tensor | None:
        """The mean over the calls since the last time, shape (entries of that axis,), float64; None without any."""
        mean = None if self._sum is None else self._sum / self._calls
        self._sum, self._calls = None, 0
        return mean


def taken(observers: Mapping[str, Observer]) -> dict[str, torch.Tensor]:
    """What the observers saw since the last time, those that saw anything."""
    found = {node: each.take() for node, each in observers.items()}
    return {node: mean for node, mean in found.items() if mean is not None}


def observe(graph: PruneGraph, module: fx.GraphModule, *, in_training: bool = False) -> dict[str, Observer]:
    """Puts an observer behind every layer, the norm and the functions of one operand that alone follow it.

    Args:
        graph: the typed network.
        module: a network with the same nodes, edited in place.
        in_training: of the observers.

    Returns:
        The observers by the name of the layer's node.
    """
    layers = find_layers(graph)
    weighted = {layer.node for layer in layers}
    typed = {node.name: node for node in graph.module.graph.nodes}
    nodes = {node.name: node for node in module.graph.nodes}
    observers: dict[str, Observer] = {}
    for layer in layers:
        last, axis = _seen(graph, typed[layer.node], layer.out, weighted)
        observers[layer.node] = Observer(axis, in_training=in_training)
        target = f"observer_{layer.node}"
        module.add_submodule(target, observers[layer.node])
        users = tuple(nodes[last.name].users)
        with module.graph.inserting_after(nodes[last.name]):
            seen = module.graph.call_module(target, (nodes[last.name],))
        for user in users:
            user.replace_input_with(nodes[last.name], seen)
    module.graph.lint()
    module.recompile()
    return observers


def _seen(graph: PruneGraph, node: fx.Node, out: Axis, weighted: set[str]) -> tuple[fx.Node, int]:
    """The node whose value a layer is judged by, and the axis of it that counts the layer's filters."""
    axis = _place(graph, node, out)
    assert axis is not None
    while len(node.users) == 1:
        (user,) = node.users
        follows = user.op != "output" and user.name not in weighted and user.meta.get(SHAPE) == node.meta[SHAPE]
        place = _place(graph, user, out) if follows else None
        if place is None or [source for source in user.all_input_nodes if source.op != "get_attr"] != [node]:
            break
        node, axis = user, place
    return node, axis


def _place(graph: PruneGraph, node: fx.Node, out: Axis) -> int | None:
    types = graph.types.get(node.name)
    axes = types if isinstance(types, tuple) else ()
    return next((i for i, axis in enumerate(axes) if isinstance(axis, Axis) and axis.normal == out.normal), None)
