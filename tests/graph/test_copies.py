"""Copies of networks are what copy.deepcopy gives: nothing shared that may change, everything shared that was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from mdp_fx.graph.copies import copy_network, copy_stored
from tests.graph.small import images, vectors


class Odd(nn.Module):
    """Attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.again = self.layer
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.layer.weight
        self.settings = {"sizes": [1, 2], "act": torch.relu}
        self.names = {"a", "b"}
        self.shape = (1, (2, 3))
        self.inner = [nn.Linear(2, 2)]
        self.register_buffer("scale", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.get_buffer("scale")
        return self.settings["act"](self.again(x) + self.tied(x)) * scale


MAKES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "odd": (Odd, vectors()),
    "recurrent": (lambda: nn.LSTM(3, 5, batch_first=True), torch.randn(2, 7, 3)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), images()),
    "graph": (lambda: fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), vectors()),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_copy_computes_the_same_and_shares_nothing(name: str) -> None:
    make, x = MAKES[name]
    model = make().eval()
    copied = copy_network(model, {})
    assert type(copied) is type(model) or isinstance(copied, fx.GraphModule)
    assert list(copied.state_dict()) == list(model.state_dict())
    expected, found = model(x), copied(x)
    torch.testing.assert_close(found, expected)
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert all(id(tensor) not in own for tensor in (*copied.parameters(), *copied.buffers()))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(x), expected)


def test_what_was_shared_stays_shared_and_what_may_change_is_not() -> None:
    model = Odd()
    copied = copy_network(model, {})
    assert isinstance(copied, Odd)
    assert copied.again is copied.layer
    assert copied.tied.weight is copied.layer.weight
    assert copied.settings is not model.settings
    assert copied.settings["sizes"] is not model.settings["sizes"]
    assert copied.names == model.names
    assert copied.names is not model.names
    assert copied.inner[0] is not model.inner[0]
    assert copied._non_persistent_buffers_set == {"scale"}
    assert copied._non_persistent_buffers_set is not model._non_persistent_buffers_set


def test_hooks_and_modes_are_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout()).eval()
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    copied = copy_network(model, {})
    torch.testing.assert_close(copied(vectors()), model(vectors()))
    assert not copied.training
    copied.register_forward_hook(lambda module, args, out: out * 0)
    assert not model._forward_hooks


def test_what_the_memo_names_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other = nn.Parameter(torch.zeros(4, 3))
    copied = copy_network(model, {id(model[0].weight): other})
    assert copied[0].weight is other  # type: ignore[index]


def test_what_a_graph_names_is_copied_by_name() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    graph = copy.deepcopy(model.graph)
    stored = copy_stored(model, graph, {})
    assert list(stored) == ["0", "1"]
    again = fx.GraphModule(stored, graph)
    torch.testing.assert_close(again(vectors()), model(vectors()))
    assert again.get_parameter("0.weight") is not model.get_parameter("0.weight")
