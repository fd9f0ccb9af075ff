"""Learning rates and optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdp_fx.errors import InputError
from mdp_fx.train.config import TuneConfig
from mdp_fx.train.optimization import make_optimizer, rate_factor


def test_cosine_after_a_warm_up() -> None:
    factor = rate_factor(TuneConfig(epochs=10, warmup=2, final_rate=0.1), 10)
    assert [factor(step) for step in (0, 9, 19)] == pytest.approx([0.05, 0.5, 1.0])
    assert factor(20) == 1.0
    assert factor(60) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
    assert all(factor(step) > factor(step + 1) for step in range(20, 100))


def test_linear_falls_evenly() -> None:
    factor = rate_factor(TuneConfig(epochs=4, schedule="linear"), 5)
    assert [factor(step) for step in (0, 5, 10, 20)] == pytest.approx([1.0, 0.75, 0.5, 0.0])


def test_points_are_joined_by_lines() -> None:
    factor = rate_factor(TuneConfig(epochs=4, schedule="points", points=((0, 0.0), (2, 1.0), (3, 0.2))), 10)
    assert [factor(step) for step in (0, 10, 20, 25, 35)] == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_have_a_decay_of_their_own(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = make_optimizer(network, TuneConfig(optimizer=name, weight_decay=0.3, norm_weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {n: decays[id(p)] for n, p in network.named_parameters()} == {
        "0.weight": 0.3,
        "0.bias": 0.1,
        "1.weight": 0.1,
        "1.bias": 0.1,
    }


def test_a_frozen_network_is_told() -> None:
    network = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameters"):
        make_optimizer(network, TuneConfig())


def test_frozen_parts_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = make_optimizer(network, TuneConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    assert isinstance(optimizer, torch.optim.SGD)
