"""More networks and functions that tests name on the command line."""

from __future__ import annotations

import sys

from torch import Tensor, nn
from torch.nn import functional

from tests.cli.tiny import make_network

TINY = "tests.cli.tiny:make_network"
FROZEN = "tests.cli.tiny:make_frozen"
SHAPE = ("--input", "3x16x16")
TORCH = ("--target", "torch:cpu", "--threads", "1")


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
