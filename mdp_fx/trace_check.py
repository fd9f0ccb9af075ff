"""Whether a graph is the network that it was made of: both are run, and what they give is compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import ParityError, first_line
from mdp_fx.exporters.parity import compare
from mdp_fx.graph.forward import copied_tensors
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.trace import shadow_of
from mdp_fx.graph.tracer import plain_output
from mdp_fx.passes.slice_channels import dense_network


def difference(model: nn.Module, graph: PruneGraph, inputs: tuple[Any, ...]) -> str | None:
    """What the graph of a model does otherwise than the model, in words.

    Returns:
        None where that is nothing, where the model does not take the inputs, or where it is not the same twice.
    """
    try:
        expected = _run(shadow_of(model), inputs)
    except Exception:  # noqa: BLE001 - the user's own forward: what it does not take, the graph need not take
        return None
    try:
        fault = _unlike(expected, _run(fx.Interpreter(dense_network(graph)).run, inputs))
    except Exception as error:  # noqa: BLE001 - it fails where the model does not, in whatever way
        fault = f"it fails: {first_line(error)}"
    if fault is None or _unlike(expected, _run(shadow_of(model), inputs)) is not None:
        return None
    layer = _first_layer(model, graph, inputs)
    return fault if layer is None else f"from {layer} on {fault}"


def resized(inputs: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
    """The inputs with another number of examples."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        several = leaf[torch.arange(rows) % len(leaf)]
        if leaf.is_floating_point():
            # Examples that differ show their order.
            several = several * torch.linspace(1, 2, rows).to(leaf).reshape(-1, *[1] * (leaf.ndim - 1))
        return several

    resized_inputs: tuple[Any, ...] = pytree.tree_map(resize, inputs)
    return resized_inputs


def _run(network: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """What a network gives; it may write to its inputs, so it gets copies."""
    with torch.no_grad():
        return plain_output(network(*copied_tensors(inputs)))


def _unlike(expected: Any, found: Any) -> str | None:
    """How two outputs differ, None where they do not."""
    try:
        compare(expected, found, "the graph")
    except ParityError as error:
        return str(error)
    numbers = [[leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, int)] for value in (expected, found)]
    return None if numbers[0] == numbers[1] else f"it gives {numbers[1]} instead of {numbers[0]}"


def _first_layer(model: nn.Module, graph: PruneGraph, inputs: tuple[Any, ...]) -> str | None:
    """The first layer that fails in the graph or gives something else than in the model; None where none does."""
    given: dict[str, list[Any]] = {}
    watched = shadow_of(model)
    for path, layer in watched.named_modules():
        layer.register_forward_hook(
            lambda _layer, _inputs, output, path=path: given.setdefault(path, []).append(copied_tensors(output))
        )
    _run(watched, inputs)
    reader = _Reader(dense_network(graph), given)
    with contextlib.suppress(Exception):
        _run(reader.run, inputs)
    return reader.first


class _Reader(fx.Interpreter):
    """Runs a graph, and notes the first layer that does not give what it gave in the model.

    Attributes:
        first: its name.
    """

    def __init__(self, network: fx.GraphModule, given: dict[str, list[Any]]) -> None:
        super().__init__(network)
        self._given = given
        self.first: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        try:
            value = super().run_node(n)
        except Exception:
            self.first = self.first or str(n.target if n.op == "call_module" else n.name)
            raise
        expected = self._given.get(str(n.target)) if n.op == "call_module" else None
        if expected and self.first is None and _unlike(expected.pop(0), value) is not None:
            self.first = str(n.target)
        return value
