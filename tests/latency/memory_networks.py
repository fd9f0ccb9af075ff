"""Networks whose memory is known, importable in another process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIB = 2**20


class Large(nn.Module):
    """Holds 32 MiB of weights, and needs 64 MiB for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8 * MIB))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight.repeat(2) + 1).sum() + x


class Failing(nn.Module):
    """Cannot run in another process."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such layer here")
