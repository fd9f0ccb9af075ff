"""More networks and functions that tests name on the command line."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.cli.tiny import make_network

TINY = "tests.cli.tiny:make_network"
FROZEN = "tests.cli.tiny:make_frozen"
SHAPE = ("--input", "3x16x16")
TORCH = ("--target", "torch:cpu", "--threads", "1")
BRIEF = ("--time-limit", "1")
"""Of `bench`, where what is measured does not matter: on a busy machine it takes 20 s else."""


def talkative() -> nn.Module:
    """A network whose code prints."""
    sys.stdout.write("hello from foreign code\n")
    return make_network()


def smooth_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss other than the default."""
    return functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def make_failing() -> None:
    """A loader that cannot be made."""
    raise OSError("no such disk")


class _Mapped(nn.Module):
    """A network that only torch.export can follow, or that nothing can."""

    def __init__(self, *, decides: bool = False) -> None:
        super().__init__()
        self.decides = decides
        self.network = make_network()

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.sum() > 0:
            return self.network(-x)
        return self.network(torch.vmap(torch.relu)(x))


def make_mapped() -> nn.Module:
    """A network that only torch.export can follow."""
    return _Mapped().eval()


def make_deciding() -> nn.Module:
    """A network that no front end can follow."""
    return _Mapped(decides=True).eval()
