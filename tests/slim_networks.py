"""Small networks for the tests of saving and exporting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.recipe import Recipe

RECIPE = Recipe(
    kept={"conv": [0, 1]},
    removed_blocks=[],
    group_sizes={"conv": 4},
    method="mdp",
    target="onnxruntime:cpu",
    budgets={"latency": 0.5},
    predicted={"latency": 0.5},
    certificate={},
    importance="l2",
    step=8,
    input_shapes=[[1, 3, 8, 8]],
    input_dtypes=["float32"],
    fingerprint="00",
)


class TwoInputs(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3, padding=1)
        self.extra = nn.Linear(5, 4)

    def forward(self, image: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        merged = self.image(image) + self.extra(extra)[:, :, None, None]
        return merged.mean((2, 3)), F.relu(merged)


class Tied(nn.Module):
    """One parameter under two names, a module used twice, a frozen parameter, a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.first.bias.requires_grad_(False)
        self.register_buffer("offset", torch.arange(6.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.norm(self.first(x)))) + self.offset


class Functional(nn.Module):
    """Parameters used by functions, and every kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.block = nn.Module()
        self.block.gamma = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding=(1, 1)) * self.block.gamma
        y = torch.cat([y[:, :2], y[..., 2:, 1:-1, slice(None)].new_ones(y.shape[0], 1, 8, 8)], dim=1)
        y = y.to(torch.float64).contiguous(memory_format=torch.channels_last).flatten(2)
        return torch.add(y.mean(-1), torch.tensor([[1.0, 2.0, 3.0]]), alpha=2).max(dim=1, keepdim=True).values


class FixedBatch(nn.Module):
    """Takes batches of two only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) * torch.tensor([[1.0], [2.0]])


def small_net() -> fx.GraphModule:
    """A traced network of three layers in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return fx.symbolic_trace(net.eval())
