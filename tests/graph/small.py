"""Networks of a few layers with a forward that is given, and what is found in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from mdp_fx.passes.channel_groups import find_frozen
from mdp_fx.passes.choices import Analysis
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import randomise

Body = Callable[["Net", Tensor], Any]
Layers = Mapping[str, nn.Module | Tensor]

FLOAT64_LIMIT = 1e-9


class Net(nn.Module):
    """Named layers and parameters under a given forward."""

    def __init__(self, body: Body, layers: Layers) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def net(body: Body, **layers: nn.Module | Tensor) -> nn.Module:
    """A network in eval mode with random norms."""
    torch.manual_seed(0)
    return randomise(Net(body, layers)).eval()


def images(channels: int = 3, side: int = 4, rank: int = 2) -> Tensor:
    return torch.randn(2, channels, *[side] * rank, generator=torch.Generator().manual_seed(1))


def vectors(features: int = 3) -> Tensor:
    return torch.randn(2, features, generator=torch.Generator().manual_seed(1))


def tokens(features: int = 3, count: int = 7) -> Tensor:
    return torch.randn(2, count, features, generator=torch.Generator().manual_seed(1))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape, generator=torch.Generator().manual_seed(2)))


def sizes(analysis: Analysis) -> list[int]:
    """Sizes of all groups, sorted."""
    return sorted(group.size for group in analysis.groups)


def members(analysis: Analysis, group: str) -> dict[tuple[str, int], list[int]]:
    """Units of one group by (tensor, axis)."""
    (found,) = (g for g in analysis.groups if g.name == group)
    return {(member.tensor, member.axis): member.units.tolist() for member in found.members}


def frozen(analysis: Analysis) -> list[tuple[str, int, str]]:
    """Frozen out axes with their reasons, but for the output's."""
    rows = [(row.where, row.size, row.reason) for row in find_frozen(analysis.graph)]
    return [row for row in rows if row[2] != "output of the network"]


def analysed(model: nn.Module, x: Tensor) -> Analysis:
    return analyse(model, (x,))


def slimmed(analysis: Analysis, kept: Mapping[str, Sequence[int]]) -> fx.GraphModule:
    return rewrite(analysis, kept, ())


def calls(module: fx.GraphModule, target: object) -> list[tuple[Any, ...]]:
    """Arguments of the calls of one function, method or module, without the operand; nodes are left out of them."""
    found = []
    for node in module.graph.nodes:
        if node.target == target:
            literals = tuple(value for value in node.args[1:] if not isinstance(value, fx.Node))
            found.append(literals + tuple(node.kwargs.values()))
    return found
