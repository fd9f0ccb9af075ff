"""Every part comes back to its own mode."""

from __future__ import annotations

import pytest
from torch import nn

from mdp_fx.graph.modes import eval_mode


def breaking(network: nn.Module) -> None:
    with eval_mode(network):
        assert not any(part.training for part in network.modules())
        network.train()
        raise ValueError("inside")


def test_every_part_comes_back_to_its_own_mode_even_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    network[1].eval()
    with pytest.raises(ValueError, match="inside"):
        breaking(network)
    assert [part.training for part in network.modules()] == [True, True, False]
