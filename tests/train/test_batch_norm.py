"""Batch-norm statistics taken anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import DataError
from mdp_fx.train.batch_norm import recalibrate_batch_norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(3 * torch.randn(4, 3, 5, 5) + 1, torch.zeros(4)) for _ in range(count)]


def test_statistics_are_the_average_over_the_batches() -> None:
    model, data = network().train(), batches(5)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean.fill_(7.0)  # type: ignore[union-attr]
    assert recalibrate_batch_norm(model, data, 3) == 3
    maps = [model[0](x) for x, _ in data[:3]]
    mean = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
    variance = torch.stack([each.var((0, 2, 3)) for each in maps]).mean(0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, variance, rtol=1e-4)
    assert norm.momentum == 0.1
    assert all(module.training for module in model.modules())


def test_nothing_is_lost_where_it_fails() -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def breaking() -> object:
        yield batches(1)[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        recalibrate_batch_norm(model, breaking(), 5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the loader has no batches"):
        recalibrate_batch_norm(model, [], 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_network_without_batch_norm_reads_nothing() -> None:
    assert recalibrate_batch_norm(nn.Linear(2, 2), iter([]), 3) == 0
