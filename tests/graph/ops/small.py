"""Networks around one function, what must be found in them, and a node as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from mdp_fx.graph.ops.op import Inference, Op, Types
from tests.graph.small import (
    FLOAT64_LIMIT,
    Body,
    Layers,
    analysed,
    calls,
    frozen,
    images,
    members,
    net,
    sizes,
    slimmed,
    vectors,
)
from tests.pruning import parity_error

Function = Callable[[Tensor], Tensor]


def linear(function: Function, features: int = 8, out: int = 8) -> nn.Module:
    """Vectors of 3, a hidden layer, a function, a head that reads `out` features."""
    return net(lambda net, x: net.fc(function(net.a(x))), a=nn.Linear(3, features), fc=nn.Linear(out, 5))


def conv(function: Function, channels: int = 8, out: int = 8) -> nn.Module:
    """Images of 3 x 4 x 4, a hidden map, a function, a head that reads `out` features."""
    return net(lambda net, x: net.fc(function(net.a(x))), a=nn.Conv2d(3, channels, 1), fc=nn.Linear(out, 5))


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def mapped(function: Function) -> Function:
    """A function of maps, then the mean of every channel."""
    return lambda x: mean(function(x))


UNITS = list(range(8))

Followed = dict[str, tuple[nn.Module, Tensor, list[int], list[int] | None]]
"""A network and its input, sizes of the groups, units of the first group that the head's columns mention."""


def assert_followed(model: nn.Module, x: Tensor, groups: list[int], columns: list[int] | None) -> None:
    """Nothing is frozen, and the groups are those given."""
    analysis = analysed(model, x)
    assert sizes(analysis) == groups
    assert frozen(analysis) == []
    if columns is not None:
        assert columns in [
            member.units.tolist() for g in analysis.groups for member in g.members if member.tensor == "fc.weight"
        ]


def assert_parity(model: nn.Module, x: Tensor, seed: int = 0) -> None:
    """The slim network gives what the dense one gives with the dropped units zeroed."""
    assert parity_error(model, (x,), seed) <= FLOAT64_LIMIT


def assert_passes(module: nn.Module, out: int) -> None:
    """A module that gives `out` entries passes the units of the convolution before it."""
    model = net(lambda net, x: net.fc(net.m(net.a(x))), a=nn.Conv2d(3, 8, 1), m=module, fc=nn.Linear(out, 5))
    analysis = analysed(model, images())
    assert sizes(analysis) == [8]
    assert members(analysis, "a")["fc.weight", 1] == [unit for unit in range(8) for _ in range(out // 8)]
    assert_parity(model, images())


def assert_written_again(
    model: nn.Module, x: Tensor, kept: dict[str, list[int]], target: object, arguments: list[tuple[Any, ...]]
) -> None:
    """Calls of `target` have these literals in the slim network, which takes any batch."""
    slim = slimmed(analysed(model, x), kept)
    assert calls(slim, target) == arguments
    for batch in (1, 2, 5):
        assert slim(x[:1].repeat(batch, *[1] * (x.ndim - 1))).shape[0] == batch


def assert_frozen(function: Function, out: int, reason: str) -> None:
    """The hidden layer before a function is frozen for one reason."""
    analysis = analysed(linear(function, out=out), vectors())
    assert frozen(analysis) == [("a", 8, reason)]
    assert analysis.groups == ()


def op_of(make: Any, names: str, **types: Types) -> Op:
    """An Op on the last node of a graph that `make` builds; inputs have the given types."""
    graph = fx.Graph()
    node = make(graph, {name: graph.placeholder(name) for name in types})
    root = nn.Module()
    root.add_module("layer", nn.Linear(4, 3))
    node.meta["shape"] = torch.Size((2, 3))
    return Op(node, Inference(fx.GraphModule(root, graph), dict(types)), tuple(names.split()))


@dataclass(frozen=True)
class Case:
    """A small network with the groups and frozen axes that it must have.

    Attributes:
        body: its forward.
        layers: makes its layers.
        x: its input.
        groups: sizes of its channel groups, sorted.
        frozen: frozen out axes with their reasons.
    """

    body: Body
    layers: Callable[[], Layers]
    x: Tensor
    groups: list[int]
    frozen: list[tuple[str, int, str]] = field(default_factory=list)
