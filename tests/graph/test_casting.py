"""Networks in other number formats, as copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.graph.casting import DTYPES, cast_network


class Mixed(nn.Module):
    """Weights, counters, complex numbers, and weights that are shared."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))

    def forward(self, index: Tensor, shift: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(index) + shift))


@pytest.mark.parametrize("dtype", DTYPES)
def test_floating_point_numbers_are_cast_and_nothing_else(dtype: str) -> None:
    module = Mixed().double().eval()
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = (torch.tensor([1, 2]), torch.zeros(2, 4), None)
    cast, (index, shift, nothing) = cast_network(module, inputs, dtype)
    wanted = getattr(torch, dtype)
    assert cast.get_buffer("phase").is_complex()
    assert cast.get_buffer("norm.num_batches_tracked").dtype == torch.int64
    assert {p.dtype for p in cast.parameters()} == {wanted}
    assert (index.dtype, shift.dtype, nothing) == (torch.int64, wanted, None)
    assert cast.get_parameter("head.weight") is cast.get_parameter("embedding.weight")
    assert not cast.training
    assert cast(index, shift).dtype == wanted
    for name, value in module.state_dict().items():
        assert value.dtype == kept[name].dtype
        assert torch.equal(value, kept[name])


def test_where_nothing_changes_nothing_is_copied() -> None:
    module, x = nn.Linear(2, 2), torch.zeros(1, 2)
    cast, (same,) = cast_network(module, (x,), "float32")
    assert cast is module
    assert same is x
    activation = nn.ReLU()
    assert cast_network(activation, (x,), "float16")[0] is activation
