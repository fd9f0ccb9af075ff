"""Peak memory of one network alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mdp_fx.errors import TargetError
from mdp_fx.latency.peak_memory import peak_memory
from mdp_fx.latency.targets import get_target
from tests.latency.memory_networks import MIB, Failing, Large


def test_weights_and_what_a_run_needs_count_and_what_the_parent_holds_does_not() -> None:
    held = np.ones(64 * MIB)  # 512 MiB
    found = peak_memory(get_target("torch:cpu", 1), Large().eval(), (torch.ones(1),))
    # weights, the repeated ones, and their sum with 1; some more for the runtime's own
    assert (32 + 64 + 64) * MIB <= found <= 300 * MIB
    assert held[0] == 1


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(TargetError, match=r"^its process failed: ModelError: .* in float32: no such layer here$"):
        peak_memory(get_target("torch:cpu", 1), Failing(), (torch.ones(1),))


def test_a_network_that_cannot_be_handed_over_says_so() -> None:
    network = nn.ReLU()
    network.register_forward_hook(lambda *_: None)
    with pytest.raises(TargetError, match="it cannot be handed to another process: "):
        peak_memory(get_target("torch:cpu", 1), network, (torch.ones(1),))
