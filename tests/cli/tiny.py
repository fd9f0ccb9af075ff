"""A network and loaders that the command line reaches by package.module:name."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """One residual block, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.block(x) + x)
        return self.head(x.mean((2, 3)))


def make_network() -> nn.Module:
    """The network with fixed random weights."""
    torch.manual_seed(0)
    return Tiny().eval()


def make_frozen() -> nn.Module:
    """A network in which nothing can be pruned."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))


def make_loader() -> Iterator[tuple[Tensor, Tensor]]:
    """Two batches of noise."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        yield torch.randn(4, 3, 16, 16, generator=generator), torch.randint(0, 4, (4,), generator=generator)


def make_bad_labels() -> Iterator[tuple[Tensor, Tensor]]:
    """Labels outside of the network's classes."""
    yield torch.randn(2, 3, 16, 16), torch.tensor([1, 9])


def make_breaking() -> Iterator[tuple[Tensor, Tensor]]:
    """A loader that fails after two batches."""
    yield from make_loader()
    raise OSError("disk gone")
