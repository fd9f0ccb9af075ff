"""Who reads a stored tensor: by identity, whatever the name and the kind of node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdp_fx.graph.readers import readers_of
from mdp_fx.graph.trace import trace
from tests.graph.small import images, net


def body(m: Any, x: Tensor) -> Any:
    x = m.norm(m.layer(x))
    return m.again(x) * m.layer.bias.reshape(-1, 1, 1) + torch.ones(3)[0]


def test_readers_are_found_by_identity() -> None:
    layer = nn.Conv2d(3, 3, 1)
    module = trace(net(body, layer=layer, norm=nn.BatchNorm2d(3), again=layer), (images(),)).module
    readers = {name: [node.name for node in readers_of(module)[id(t)]] for name, t in module.named_parameters()}
    assert readers["layer.weight"] == ["layer", "layer_1"]
    assert readers["layer.bias"] == ["layer", "layer_1", "layer_bias"]
    assert readers["norm.weight"] == ["norm"]
    buffers = {name: [node.name for node in readers_of(module)[id(t)]] for name, t in module.named_buffers()}
    assert buffers["norm.running_mean"] == ["norm"]
