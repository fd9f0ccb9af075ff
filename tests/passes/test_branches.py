"""Branches of a graph: what feeds one operand alone, and who reads which stored tensor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.graph.trace import trace
from mdp_fx.passes.branches import Flow
from tests.zoo import image


class Net(nn.Module):
    """A layer that is called twice, once with its weight alone, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.layer = nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return F.relu(x) + self.norm(self.layer(x)) + F.conv2d(x, self.layer.weight).mean()


def traced() -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    torch.manual_seed(0)
    module = trace(Net().eval(), (image(side=4),)).module
    return module, {node.name: node for node in module.graph.nodes}


def test_the_region_of_an_operand() -> None:
    module, nodes = traced()
    flow = Flow(module)
    assert {node.name for node in flow.region(nodes["norm"], nodes["add"])} == {"layer", "norm"}
    assert flow.region(nodes["relu"], nodes["add"]) == frozenset()
    assert flow.region(nodes["stem"], nodes["add"]) == frozenset()
    assert flow.why_not(nodes["add"], nodes["norm"], (nodes["relu"],), frozenset((nodes["norm"],))) is None
