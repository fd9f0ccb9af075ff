"""Constant subgraphs that write in place or standardise weights are stored; all others stay trainable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.trace import trace
from mdp_fx.passes.normalize import normalize
from mdp_fx.passes.normalize.constants import constant_nodes, fold_constants
from tests.graph.small import images, net, parameter, tokens
from tests.passes.normalize.bench import left_alone, normalized, targets
from tests.pruning import parity_error

Spelling = Callable[[Any, Tensor], Any]


def by_batch_norm(m: Any, x: Tensor) -> Tensor:
    rows = m.conv.weight.reshape(1, len(m.conv.weight), -1)
    weight = F.batch_norm(rows, None, None, (m.gain * 0.3).view(-1), None, training=True, momentum=0.0, eps=1e-5)
    return F.conv2d(x, weight.reshape_as(m.conv.weight), m.conv.bias)


def by_moments(m: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(m.conv.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return F.conv2d(x, (m.conv.weight - mean) / (variance + 1e-5).sqrt() * m.gain, m.conv.bias)


def by_norm(m: Any, x: Tensor) -> Tensor:
    length = m.conv.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return F.conv2d(x, m.conv.weight * (m.gain / length), m.conv.bias)


def by_methods(m: Any, x: Tensor) -> Tensor:
    weight = m.conv.weight - m.conv.weight.mean(dim=(1, 2, 3), keepdim=True)
    return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), m.conv.bias)


def standardised(spelling: Spelling) -> nn.Module:
    return net(
        lambda m, x: m.last(spelling(m, x)),
        conv=nn.Conv2d(3, 6, 3),
        gain=parameter(6, 1, 1, 1),
        last=nn.Conv2d(6, 2, 1),
    )


@pytest.mark.parametrize("spelling", [by_batch_norm, by_moments, by_norm, by_methods])
def test_a_standardised_weight_is_stored(spelling: Spelling) -> None:
    model = standardised(spelling)
    module = normalized(model, images())
    assert targets(module) == ["conv.weight_folded", "conv.bias", "conv2d", "last"]
    assert {name: tuple(tensor.shape) for name, tensor in module.named_parameters()} == {
        "conv.weight_folded": (6, 3, 3, 3),
        "conv.bias": (6,),
        "last.weight": (2, 6, 1, 1),
        "last.bias": (2,),
    }
    assert parity_error(model, (images(),), seed=2) <= 1e-9


def test_a_weight_that_is_frozen_stays_frozen() -> None:
    model = standardised(by_batch_norm)
    model.conv.requires_grad_(False)  # type: ignore[union-attr,operator]
    model.gain.requires_grad_(False)  # type: ignore[union-attr,operator]
    module = normalized(model, images())
    assert not module.get_parameter("conv.weight_folded").requires_grad


def test_a_shared_source_stays_for_its_other_readers() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return by_moments(m, x) + F.conv2d(x, m.conv.weight)

    module = normalized(net(body, conv=nn.Conv2d(3, 6, 3), gain=parameter(6, 1, 1, 1)), images())
    assert sorted(name for name, _ in module.named_parameters()) == ["conv.bias", "conv.weight", "conv.weight_folded"]


def part_zeroed(m: Any, x: Tensor) -> Tensor:
    bias = m.linear.bias.clone()
    bias[2:4].zero_()
    return F.linear(x, m.linear.weight, bias)


def items_set(m: Any, x: Tensor) -> Tensor:
    bias = m.linear.bias * 2
    bias[:3] = 0.5
    bias[3] = bias[4]
    return F.linear(x, m.linear.weight, bias)


@pytest.mark.parametrize("spelling", [part_zeroed, items_set])
def test_a_constant_that_is_written_to_is_stored(spelling: Spelling) -> None:
    module = normalized(net(spelling, linear=nn.Linear(3, 6)), tokens())
    assert targets(module) == ["linear.bias_folded", "linear.weight", "linear"]
    assert isinstance(module.get_parameter("linear.bias_folded"), nn.Parameter)


def window_mask(m: Any, x: Tensor) -> Tensor:
    mask = x.new_zeros((7, 7))
    mask[:3, 3:] = 1
    mask[3:, :3] = 2
    return x + mask.masked_fill(mask != 0, -100.0).unsqueeze(0).sum(-1, keepdim=True)


def test_a_mask_made_by_the_forward_is_a_buffer() -> None:
    module = normalized(net(window_mask), tokens())
    assert targets(module) == ["sum_1_folded", "add"]
    assert not list(module.parameters())
    assert module.get_buffer("sum_1_folded").shape == (1, 7, 1)


def test_what_is_made_as_large_as_the_batch_is_not_constant() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        start = x.new_zeros((x.shape[0], 1, 3))
        start[:, :, 0] = 1
        return torch.cat([start, m.linear(x)], 1)

    module = trace(net(body, linear=nn.Linear(3, 3)), (tokens(),)).module
    normalize(module)
    assert "new_zeros" in targets(module)
    assert not constant_nodes(module.graph)


def read_before_the_write(m: Any, x: Tensor) -> Tensor:
    bias = m.linear.bias.clone()
    y = F.linear(x, m.linear.weight, bias)
    bias[:2] = 0
    return y + bias


def stored_tensor_written(m: Any, x: Tensor) -> Tensor:
    m.scale[:, :2].zero_()
    return x * m.scale


def written_by_an_input(m: Any, x: Tensor) -> Tensor:
    bias = m.linear.bias.clone()
    bias[:3].copy_(x[0, 0])
    return F.linear(x, m.linear.weight, bias)


def plain_arithmetic(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.linear.weight * 0.5, m.linear.bias.exp().clamp(max=3))


def larger_than_its_sources(m: Any, x: Tensor) -> Tensor:
    return x @ m.linear.weight.t() + m.linear.bias.softmax(0).expand(7, 6)


def as_many_as_examples(m: Any, x: Tensor) -> Tensor:
    weight = (m.linear.weight / m.linear.weight.norm())[:1].expand(x.shape[0], -1)
    return x * weight.unsqueeze(1)


def dropped_out(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.drop(m.linear.weight / m.linear.weight.norm()), m.linear.bias)


def indexed_table(m: Any, x: Tensor) -> Tensor:
    return x + m.linear.weight[torch.tensor([0, 1, 1, 0, 2, 2, 1])]


@pytest.mark.parametrize(
    "spelling",
    [
        read_before_the_write,
        stored_tensor_written,
        written_by_an_input,
        plain_arithmetic,
        larger_than_its_sources,
        dropped_out,
        indexed_table,
    ],
)
def test_other_constants_are_left_alone(spelling: Spelling) -> None:
    model = net(spelling, linear=nn.Linear(3, 6), drop=nn.Dropout(0.5))
    model.register_buffer("scale", torch.ones(1, 7, 3))
    left_alone(model, tokens(), step=fold_constants)


def test_what_is_repeated_for_every_example_is_folded_before() -> None:
    module = normalized(net(as_many_as_examples, linear=nn.Linear(3, 6)), tokens())
    assert module.get_parameter("linear.weight_folded").shape == (1, 3)
    assert "expand" in targets(module)


def test_names_are_free() -> None:
    model = standardised(by_moments)
    model.conv.weight_folded = nn.Parameter(torch.ones(1))  # type: ignore[union-attr]
    body = model.body
    model.body = lambda m, x: body(m, x) * m.conv.weight_folded  # type: ignore[operator]
    module = normalized(model, images())
    assert "conv.weight_folded_1" in targets(module)


def test_what_the_input_is_written_to_is_not_constant() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        out = torch.ones(2 * 6 * 16)
        out.view_as(m.conv(x)).copy_(m.conv(x))
        return F.group_norm(m.last(out.view(2, 6, 4, 4)), 1)

    model = net(body, conv=nn.Conv2d(3, 6, 1), last=nn.Conv2d(6, 2, 1))
    module = trace(model, (images(),)).module
    assert [node.name for node in constant_nodes(module.graph)] == []
    assert not fold_constants(module)
