"""Pruning in steps without training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx.errors import DataError, InputError
from tests.detectors.tiny import detector, images

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 32), (32, 32)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 16, 16, generator=draw), torch.randint(0, 4, (4,), generator=draw)) for _ in range(count)
    ]


def pruned(model: nn.Module, steps: int) -> mdp_fx.PruneResult:
    return mdp_fx.prune_in_steps(
        model, IMAGES, batches(), steps=steps, macs="40%", target="torch:cpu", threads=1, step=4
    )


def test_the_recipe_of_many_steps_is_one_of_the_dense_network() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = pruned(model, 3)
    assert 0.3 < result.report.macs.share <= 0.4
    assert torch.equal(mdp_fx.apply(model, result.recipe, IMAGES)(IMAGES), result.module(IMAGES))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_step_chooses_what_prune_chooses() -> None:
    model = network()
    at_once = mdp_fx.prune(model, IMAGES, data=batches(), macs="40%", target="torch:cpu", threads=1, step=4)
    assert pruned(model, 1).recipe.kept == at_once.recipe.kept


def test_data_without_batches_and_detectors_are_refused() -> None:
    with pytest.raises(DataError, match="the data has no batches"):
        mdp_fx.prune_in_steps(network(), IMAGES, [], steps=2)
    with pytest.raises(InputError, match="is a detector, which is pruned in one step"):
        mdp_fx.prune_in_steps(detector("ssd"), images(), [], steps=2)
    wrong = [(IMAGES, torch.tensor([9, 9]))]
    with pytest.raises(DataError, match=r"labels 9\.\.9 lie outside of the network's 4 classes"):
        mdp_fx.prune_in_steps(network(), IMAGES, wrong, steps=2, macs="50%", target="torch:cpu", threads=1)
