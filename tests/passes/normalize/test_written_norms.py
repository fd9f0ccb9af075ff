"""Layer norms that are written out become calls of `layer_norm`, with the same values; others are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.normalize.written_norms import name_layer_norms
from mdp_fx.pipeline import analyse
from tests.graph.ops.small import Function
from tests.graph.small import FLOAT64_LIMIT, frozen, images, net, parameter, sizes
from tests.passes.normalize.bench import left_alone, normalized, targets
from tests.pruning import parity_error


def network(function: Function) -> nn.Module:
    def body(net: Any, x: Tensor) -> Any:
        return net.fc((function(net.a(x)) * net.w[:, None, None] + net.b[:, None, None]).mean((2, 3)))

    return net(body, a=nn.Conv2d(3, 8, 1), w=parameter(8), b=parameter(8), fc=nn.Linear(8, 5))


def by_moments(x: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return (x - u) / torch.sqrt(s + 1e-6)


def by_products(x: Tensor) -> Tensor:
    d = x - torch.mean(x, dim=1, keepdim=True)
    return d * torch.rsqrt((d * d).mean((1,), keepdim=True) + 1e-5)


def by_powers(x: Tensor) -> Tensor:
    d = torch.sub(x, x.mean(-3, True))
    return torch.mul((1e-5 + torch.mean(d**2, 1, True)) ** -0.5, d)


def by_a_power(x: Tensor) -> Tensor:
    d = x - x.mean(1, keepdim=True)
    return d / (d.square().mean(1, keepdim=True) + 1e-5) ** 0.5


def by_variance(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def by_corrected_variance(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (torch.var(x, dim=1, correction=0, keepdim=True) + 1e-6).sqrt()


def by_both(x: Tensor) -> Tensor:
    s, u = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - u) * torch.rsqrt(s + 1e-6)


def by_both_over_several(x: Tensor) -> Tensor:
    s, u = torch.var_mean(x, (3, 1), unbiased=False, keepdim=True)
    return (x - u) * torch.rsqrt(s + 1e-6)


SPELLINGS = [
    by_moments,
    by_products,
    by_powers,
    by_a_power,
    by_variance,
    by_corrected_variance,
    by_both,
    by_both_over_several,
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_become_a_layer_norm(spelling: Function) -> None:
    module = normalized(network(spelling), images(), step=name_layer_norms)
    assert targets(module)[:4] == ["a", "permute", "layer_norm", "permute"]
    assert not {"sqrt", "rsqrt", "var", "var_mean"} & set(targets(module))


@pytest.mark.parametrize("front_end", ["symbolic", "export"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_channels_that_are_normalised_together_are_prunable(spelling: Function, front_end: Any) -> None:
    analysis = analyse(network(spelling), (images(),), front_end=front_end)
    assert sizes(analysis) == [8]
    assert frozen(analysis) == []
    assert parity_error(network(spelling), (images(),), 1, front_end=front_end) <= FLOAT64_LIMIT


def test_a_norm_of_the_last_axes_needs_no_moving() -> None:
    def function(x: Tensor) -> Tensor:
        d = x - x.mean((2, 3), keepdim=True)
        return d / ((d**2).mean((-1, -2), keepdim=True) + 1e-5).sqrt()

    module = normalized(network(function), images(), step=name_layer_norms)
    assert targets(module)[:2] == ["a", "layer_norm"]


def test_what_others_read_stays() -> None:
    module = normalized(network(lambda x: by_both(x) + x.mean(1, keepdim=True)), images(), step=name_layer_norms)
    assert "mean" in targets(module)
    assert "layer_norm" in targets(module)


def unbiased(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt()


def another_axis(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()


def another_tensor(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (F.relu(x).var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def another_mean(x: Tensor) -> Tensor:
    return (x - F.relu(x).mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def not_centred(x: Tensor) -> Tensor:
    return x / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def squares(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


def cubes(x: Tensor) -> Tensor:
    d = x - x.mean(1, keepdim=True)
    return d / (d.pow(3).mean(1, keepdim=True).abs() + 1e-6).sqrt()


def upside_down(x: Tensor) -> Tensor:
    return (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt() / (x - x.mean(1, keepdim=True))


def multiplied(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def scaled_difference(x: Tensor) -> Tensor:
    d = torch.sub(x, x.mean(1, keepdim=True), alpha=2)
    return d / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def written_between(x: Tensor) -> Tensor:
    s, u = torch.var_mean(x, 1, unbiased=False, keepdim=True)
    d = x - u
    x[:, :2] = 0.0
    return d * torch.rsqrt(s + 1e-6) + x


@pytest.mark.parametrize(
    "function",
    [
        unbiased,
        another_axis,
        another_tensor,
        another_mean,
        not_centred,
        squares,
        cubes,
        upside_down,
        multiplied,
        scaled_difference,
        written_between,
    ],
)
def test_what_is_no_layer_norm_is_left_alone(function: Function) -> None:
    left_alone(network(function), images(), step=name_layer_norms)


def test_a_norm_over_the_examples_is_left_alone() -> None:
    def function(x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-6).sqrt()

    left_alone(network(function), images(), step=name_layer_norms)
