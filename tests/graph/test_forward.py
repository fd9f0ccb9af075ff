"""A network is run once, as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import InputError
from mdp_fx.graph.forward import run_once


class Doubling(nn.Module):
    """Writes to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def test_the_inputs_and_the_mode_stay() -> None:
    network, x = nn.Sequential(nn.Dropout(), Doubling()), torch.ones(2, 3)
    assert run_once(network, (x,)).tolist() == [[2.0] * 3] * 2  # no dropout
    assert x.tolist() == [[1.0] * 3] * 2
    assert network.training


@pytest.mark.parametrize(
    ("setting", "advice"), [("data.input", "; set the shape with data.input"), (None, "")], ids=["set", "given"]
)
def test_a_rejected_input_is_one_line(setting: str | None, advice: str) -> None:
    with pytest.raises(InputError) as caught:
        run_once(nn.Bilinear(3, 4, 5), (torch.ones(2, 3), torch.ones(2, 7)), "the teacher", setting)
    assert str(caught.value).startswith("the teacher rejects an input of shape 2x3, 2x7: ")
    assert str(caught.value).endswith(advice)
    assert "\n" not in str(caught.value)
