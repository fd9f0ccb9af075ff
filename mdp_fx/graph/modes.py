"""The mode, train or eval, that every part of a network is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network in eval mode, and leaves every part of it in the mode it was in."""
    modes = [(part, part.training) for part in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
