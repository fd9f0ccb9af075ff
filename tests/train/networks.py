"""Networks and a short training loop for the tests of pruning in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.train.pruning import Pruner, PruneStep
from tests.zoo import Head, Residual, conv_bn

CLASSES = 5


class Small(nn.Module):
    """A stem and two residual blocks, with a dropout that only training sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.one = Residual(16, 24)
        self.two = Residual(16, 24)
        self.drop = nn.Dropout(0.1)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(self.two(self.one(F.relu(self.stem(x))))))


def small(seed: int = 0) -> nn.Module:
    """The network with fixed weights."""
    torch.manual_seed(seed)
    return Small().eval()


def images(count: int = 256) -> Tensor:
    """Example inputs for a target that only predicts."""
    return torch.randn(1, 3, 8, 8).expand(count, -1, -1, -1)


PREDICTED: dict[str, Any] = {"target": "titan-v", "fill": "analytic", "step": 2}
"""A target that runs nothing: the same decision every time."""


def optimizer_of(pruner: Pruner) -> torch.optim.Optimizer:
    """What the loop trains with."""
    return torch.optim.SGD(pruner.module.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def batch(number: int) -> tuple[Tensor, Tensor]:
    """A batch by its number."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(6, 3, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (6,), generator=generator)


def train(pruner: Pruner, optimizer: torch.optim.Optimizer, iterations: int) -> list[PruneStep]:
    """Trains for so many iterations, on the batches that come after those the pruner has seen."""
    taken = []
    pruner.module.train()
    for _ in range(iterations):
        x, y = batch(pruner.iteration)
        torch.manual_seed(pruner.iteration)
        F.cross_entropy(pruner.module(x), y).backward()  # type: ignore[no-untyped-call]
        pruner.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        step = pruner.step()
        if step is not None:
            taken.append(step)
    return taken
