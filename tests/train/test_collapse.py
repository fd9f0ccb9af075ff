"""The layer that collapsed is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from mdp_fx.train.collapse import find_collapse
from tests.cli.tiny import make_network

INPUTS = (torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def traced() -> fx.GraphModule:
    return fx.symbolic_trace(make_network())


def test_a_sound_network_has_not_collapsed() -> None:
    network = traced().train()
    network.get_submodule("stem.1").eval()
    modes = [part.training for part in network.modules()]
    assert find_collapse(network, INPUTS) is None
    assert [part.training for part in network.modules()] == modes, "a norm that was frozen stays so"


@pytest.mark.parametrize("layer", ["stem.1", "head"])
def test_a_layer_without_spread_is_named(layer: str) -> None:
    network = traced()
    with torch.no_grad():
        network.get_submodule(layer).weight.zero_()
        network.get_submodule(layer).bias.fill_(1.5)
    found = find_collapse(network, INPUTS)
    assert found is not None
    assert found.layer == layer
    assert found.dead == found.units
    assert str(found).startswith(f"{layer} has collapsed: {found.units} of its {found.units} units give the same")


def test_dead_units_after_a_shift_are_the_activation_s() -> None:
    network = traced()
    with torch.no_grad():
        network.get_submodule("stem.1").bias.fill_(-1000.0)
    found = find_collapse(network, INPUTS)
    assert found is not None
    assert found.layer == "stem.2"


def test_a_layer_with_some_dead_units_has_not_collapsed() -> None:
    network = traced()
    with torch.no_grad():
        network.get_submodule("stem.1").weight[:28].zero_()
    assert find_collapse(network, INPUTS) is None


def test_values_that_are_not_finite_are_told() -> None:
    network = traced()
    with torch.no_grad():
        network.get_submodule("block.0").weight[0, 0, 0, 0] = float("nan")
    found = find_collapse(network, INPUTS)
    assert found is not None
    assert str(found) == "block.0 gives values that are not finite"


def test_one_example_says_nothing() -> None:
    assert find_collapse(traced(), (INPUTS[0][:1],)) is None


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_network_that_is_no_graph_is_not_looked_into() -> None:
    assert find_collapse(Nothing(), INPUTS) is None


class Tokens(nn.Module):
    """A transformer's beginning: patches, and a token that is the same for every example."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1)
        return self.head(self.mix(tokens).mean(1))


def test_a_token_of_all_examples_is_no_collapse() -> None:
    network = fx.symbolic_trace(Tokens())
    assert find_collapse(network, INPUTS) is None
    with torch.no_grad():
        network.get_submodule("mix").weight.zero_()
    found = find_collapse(network, INPUTS)
    assert found is not None
    assert found.layer == "mix"
