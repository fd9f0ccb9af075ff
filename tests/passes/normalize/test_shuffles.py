"""Channel shuffles become gathers with a stored permutation; what moves other axes is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.normalize.shuffles import gather_orders, gather_shuffles
from tests.graph.small import calls, images, net, tokens
from tests.passes.normalize.bench import left_alone, normalized, targets

Spelling = Callable[[Any, Tensor], Any]


def by_transpose(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def by_permute(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return torch.reshape(x, (b, 3, c // 3, h, w)).permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


def by_flatten(m: Any, x: Tensor) -> Tensor:
    return torch.unflatten(x, 1, (3, -1)).swapaxes(1, 2).clone().flatten(1, 2)


def by_layer(m: Any, x: Tensor) -> Tensor:
    return m.shuffle(x)


def by_function(m: Any, x: Tensor) -> Tensor:
    return F.channel_shuffle(x, 3)


def by_function_with_a_name(m: Any, x: Tensor) -> Tensor:
    return torch.channel_shuffle(x, groups=3)


def shuffled(m: Any, spelling: Spelling, x: Tensor) -> Tensor:
    return m.last(spelling(m, m.first(x)))


def network(spelling: Spelling) -> nn.Module:
    return net(
        lambda m, x: shuffled(m, spelling, x),
        first=nn.Conv2d(3, 12, 1),
        last=nn.Conv2d(12, 4, 1),
        shuffle=nn.ChannelShuffle(3),
    )


@pytest.mark.parametrize(
    "spelling", [by_transpose, by_permute, by_flatten, by_layer, by_function, by_function_with_a_name]
)
def test_all_spellings_become_a_gather(spelling: Spelling) -> None:
    module = normalized(network(spelling), images(), step=gather_shuffles)
    assert targets(module) == ["first", "shuffle_index_0", "index_select", "last"]
    index = module.get_buffer("shuffle_index_0")
    assert index.dtype is torch.int64
    assert index.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_any_axis_but_the_first_may_be_shuffled() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(y.reshape(*y.shape[:2], 2, 3).transpose(-1, -2).flatten(2))

    module = normalized(net(body, first=nn.Linear(3, 6), last=nn.Linear(6, 2)), tokens(), step=gather_shuffles)
    (call,) = module.graph.find_nodes(op="call_function", target=torch.index_select)
    assert call.args[1] == 2


def test_every_shuffle_has_an_index_of_its_own() -> None:
    module = normalized(network(lambda m, x: by_flatten(m, by_transpose(m, x))), images(), step=gather_shuffles)
    assert targets(module).count("index_select") == 2
    assert [name for name, _ in module.named_buffers()] == ["shuffle_index_0", "shuffle_index_0_1"]


def pixel_shuffle(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


def windows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, 2, 2, w).transpose(1, 2).reshape(b * 2, c, 2, w).view(b, c, h, w)


def split_read(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    parts = x.view(b, 3, c // 3, h, w)
    return parts.transpose(1, 2).reshape(b, c, h, w) + parts.sum((1, 2)).unsqueeze(1)


def swap_read(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    swapped = x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous()
    return swapped.view(b, c, h, w) + swapped.sum((1, 2)).unsqueeze(1)


def other_axes_swapped(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(2, 3).reshape(b, c, h, w)


def examples(m: Any, x: Tensor) -> Tensor:
    return torch.cat([x, x]).unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)[::2]


def heads(m: Any, x: Tensor) -> Tensor:
    return x.flatten(2).unflatten(1, (3, -1)).transpose(2, 3).flatten(2)


def one_group(m: Any, x: Tensor) -> Tensor:
    return F.channel_shuffle(x, 1)


@pytest.mark.parametrize(
    "spelling",
    [pixel_shuffle, windows, split_read, swap_read, other_axes_swapped, examples, heads, one_group],
)
def test_other_moves_are_left_alone(spelling: Spelling) -> None:
    model = net(lambda m, x: spelling(m, m.first(x)), first=nn.Conv2d(3, 12, 1))
    left_alone(model, images(), step=gather_shuffles)


def test_a_write_between_split_and_merge_is_not_passed() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        flat = y.view(-1)
        parts = y.unflatten(1, (3, 4)).transpose(1, 2).contiguous()
        y.mul_(2)
        return parts.flatten(1, 2) + flat.view(y.shape)

    left_alone(net(body, first=nn.Conv2d(3, 12, 1)), images(), step=gather_shuffles)


ORDER = [5, 4, 0, 1, 2, 3]


def gathered(function: Spelling, **more: Any) -> nn.Module:
    return net(
        lambda m, x: m.last(function(m, m.first(x))),
        first=nn.Linear(3, 6),
        last=nn.Linear(6, 2),
        order=nn.Buffer(torch.tensor(ORDER)),
        **more,
    )


@pytest.mark.parametrize(
    ("function", "dim"),
    [
        (lambda m, x: x[:, :, ORDER], 2),
        (lambda m, x: x[..., [number - 6 for number in ORDER]], 2),
        (lambda m, x: x[:, :, torch.tensor(ORDER)], 2),
        (lambda m, x: x[..., m.order], 2),
        (lambda m, x: x[:, :, m.order - 6], 2),
        (lambda m, x: x.index_select(-1, m.order.clone()), 2),
        (lambda m, x: torch.index_select(input=x, dim=2, index=m.order.flip(0).flip(0)), 2),
        (lambda m, x: x[:, [2, 0, 1, 3, 6, 5, 4]], 1),
    ],
)
def test_all_entries_in_a_constant_order_become_a_gather(function: Spelling, dim: int) -> None:
    module = normalized(gathered(function), tokens(), step=gather_orders)
    (call,) = module.graph.find_nodes(op="call_function", target=torch.index_select)
    assert call.args[1] == dim
    order = module.get_buffer(str(call.args[2].target))
    assert order.tolist() == (ORDER if dim == 2 else [2, 0, 1, 3, 6, 5, 4])


def test_an_order_that_is_stored_is_not_stored_again() -> None:
    module = normalized(gathered(lambda m, x: x[..., m.order] + x[..., m.order.clone()]), tokens(), step=gather_orders)
    assert [name for name, _ in module.named_buffers()] == ["order"]
    assert calls(module, torch.index_select) == [(2,), (2,)]


def _written_to(m: Any, x: Tensor) -> Any:
    order = torch.tensor(ORDER) + m.order * 0
    order[:2] = order[:2].flip(0) * (x.sum() * 0).long()
    return x[..., order]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x[..., m.order[:3]].repeat(1, 1, 2),
        lambda m, x: x[..., [0, 0, 1, 2, 3, 4]],
        lambda m, x: x[..., [True] * 6],
        lambda m, x: x[..., x[0, 0].argsort()],
        lambda m, x: x[:, m.order[:2], m.order[:2]].repeat(1, 3),
        lambda m, x: x[:, None, :, ORDER],
        lambda m, x: x[..., torch.argsort(torch.rand_like(m.order.double()))],
        _written_to,
    ],
)
def test_other_entries_are_left_alone(function: Spelling) -> None:
    left_alone(gathered(function), tokens(), step=gather_orders)
