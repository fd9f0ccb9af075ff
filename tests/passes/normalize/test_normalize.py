"""Normalisation as a whole: exact numerics, and a second run that finds nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.graph.purity import remove_dead_nodes
from mdp_fx.graph.trace import trace
from mdp_fx.passes.normalize import normalize
from tests.passes.normalize.bench import Bench, impure, normalized, outputs, same, traced_as_written
from tests.pruning import tensors
from tests.zoo import ZOO, Specimen


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_zoo_networks_are_pure_afterwards_and_compute_the_same(specimen: Specimen) -> None:
    model, inputs = specimen.make().eval(), specimen.inputs()
    module = trace(model, inputs).module
    normalize(module)
    assert impure(module) == []
    assert normalize(module) is False
    with torch.no_grad():
        assert same(tensors(module(*inputs)), tensors(model(*inputs)))


def test_pure_nodes_that_nobody_reads_are_dead() -> None:
    def unread(net: Bench, x: Tensor) -> Any:
        net.relu(net.other(x))
        return net.conv(x)

    module, x, expected = traced_as_written(unread)
    assert normalize(module) is True
    assert [node.name for node in module.graph.nodes] == ["x", "conv", "output"]
    module.recompile()
    assert same(outputs(module, x), expected)
    assert not remove_dead_nodes(module.graph)


class Branches(nn.Module):
    """Attention whose result nobody reads, and a fused projection behind a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.qkv = nn.Linear(12, 36)

    def forward(self, x: Tensor) -> Tensor:
        self.attention(x, x, x)
        x = x.unflatten(2, (3, 4)).transpose(2, 3).flatten(2)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        q *= 0.5
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def test_all_steps_together_leave_only_what_is_read() -> None:
    module = normalized(Branches(), torch.randn(2, 5, 12))
    assert sorted({name.rpartition(".")[0] for name in module.state_dict()}) == ["", "qkv.k", "qkv.q", "qkv.v"]
    assert impure(module) == []
