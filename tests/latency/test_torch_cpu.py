"""PyTorch on the CPU: what it does with networks whose forward is the user's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.latency.targets import get_target


class WritesItsInput(nn.Module):
    """Normalises in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(1.5).add_(1)


class Asserts(nn.Module):
    """Checks what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32, "only float32"
        return x


def test_a_forward_that_writes_its_input_leaves_the_given_one_alone() -> None:
    given = torch.ones(1, 4)
    runner = get_target("torch:cpu", 1).prepare(WritesItsInput(), (given,))
    runner()
    assert given.tolist() == [[1.0] * 4]


def test_whatever_a_forward_raises_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^the network does not run on torch:cpu in bfloat16: only float32$"):
        get_target("torch:cpu", 1, "bfloat16").prepare(Asserts(), (torch.ones(1, 4),))
