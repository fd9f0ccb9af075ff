"""Rules of ops that reshape, move, join or repeat axes: groups, literals written again, reasons, parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph.ops.small import (
    UNITS,
    Followed,
    Function,
    assert_followed,
    assert_frozen,
    assert_parity,
    assert_passes,
    assert_written_again,
    conv,
    linear,
    mapped,
    mean,
)
from tests.graph.small import (
    FLOAT64_LIMIT,
    analysed,
    frozen,
    images,
    members,
    net,
    parameter,
    sizes,
    slimmed,
    tokens,
    vectors,
)
from tests.pruning import parity_error


def _shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def _unflattened(x: Tensor) -> Tensor:
    parts: Tensor = x.unflatten(1, (2, 4))  # type: ignore[no-untyped-call]
    return parts


FOLLOWED: Followed = {
    "flatten": (conv(lambda x: torch.flatten(x, 1), out=128), images(), [8], [u for u in UNITS for _ in range(16)]),
    "flatten from the end": (conv(lambda x: mean(x.flatten(-2).unsqueeze(-1))), images(), [8], UNITS),
    "view with -1": (
        conv(lambda x: x.view(x.size(0), -1), out=128),
        images(),
        [8],
        [u for u in UNITS for _ in range(16)],
    ),
    "channels last": (
        conv(lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1), out=128),
        images(),
        [8],
        UNITS * 16,
    ),
    "permute of a tuple": (conv(lambda x: mean(torch.permute(x, (0, 1, 3, 2)))), images(), [8], UNITS),
    "transpose": (conv(lambda x: x.flatten(2).transpose(1, -1).mean(1)), images(), [8], UNITS),
    "swapaxes": (conv(lambda x: torch.swapaxes(x.flatten(2), 1, 2).mean(1)), images(), [8], UNITS),
    "squeeze and unsqueeze": (
        linear(lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1)),
        vectors(),
        [8],
        UNITS,
    ),
    "shuffle": (conv(mapped(_shuffled)), images(), [8], [0, 4, 1, 5, 2, 6, 3, 7]),
    "split into heads": (
        linear(lambda x: x.view(-1, 2, 4).relu().transpose(1, 2).flatten(1)),
        vectors(),
        [2, 4],
        [0, 1] * 4,
    ),
    "unflatten": (linear(lambda x: _unflattened(x).relu().transpose(1, 2).flatten(1)), vectors(), [2, 4], [0, 1] * 4),
    "unflatten of the last axis": (
        linear(lambda x: torch.unflatten(x, -1, (4, -1)).flatten(1)),
        vectors(),
        [2, 4],
        None,
    ),
    "a map of units": (linear(lambda x: x.view(-1, 2, 2, 2).flatten(1)), vectors(), [2, 2, 2], [0] * 4 + [1] * 4),
    "cat": (linear(lambda x: torch.cat([x, x.relu()], 1), out=16), vectors(), [8], UNITS * 2),
    "cat along the last axis": (linear(lambda x: torch.concat((x, x), dim=-1), out=16), tokens(), [8], UNITS * 2),
    "cat of tokens": (linear(lambda x: torch.cat([x, x * 2], 1)), tokens(), [8], UNITS),
    "cat with nothing": (linear(lambda x: torch.cat([x, torch.zeros(0, dtype=x.dtype)], 1)), vectors(), [8], UNITS),
    "side by side": (linear(lambda x: torch.hstack([x, x.relu()]), out=16), vectors(), [8], UNITS * 2),
    "side by side in depth": (
        linear(lambda x: torch.dstack((x, x.relu())).transpose(1, 2).flatten(1), out=16),
        vectors(),
        [8],
        UNITS * 2,
    ),
    "stack": (linear(lambda x: torch.stack([x, x.relu()]).mean(0)), vectors(), [8], UNITS),
    "stack along the last axis": (
        linear(lambda x: torch.stack([x, x.relu()], -1).flatten(1), out=16),
        vectors(),
        [8],
        [u for u in UNITS for _ in range(2)],
    ),
    "repeat": (linear(lambda x: x.repeat(1, 2), out=16), vectors(), [2, 8], UNITS * 2),
    "repeat of tokens": (linear(lambda x: x.repeat(1, 3, 1)), tokens(), [8], UNITS),
    "repeat of a tuple on a new axis": (linear(lambda x: x.repeat((3, 1, 1)).mean(0)), vectors(), [8], UNITS),
    "tile": (linear(lambda x: torch.tile(x, (2,)), out=16), vectors(), [2, 8], UNITS * 2),
    "repeat of every unit": (
        linear(lambda x: x.repeat_interleave(3, 1), out=24),
        vectors(),
        [3, 8],
        [u for u in UNITS for _ in range(3)],
    ),
    "repeat of every token": (linear(lambda x: torch.repeat_interleave(x, 2, dim=1)), tokens(), [8], UNITS),
    "expand of tokens": (linear(lambda x: x[:, :1].expand_as(x) * x), tokens(), [8], UNITS),
    "rolled maps": (conv(lambda x: mean(x * torch.roll(x, (1, 2), (2, 3)))), images(), [8], UNITS),
    "reversed maps": (conv(lambda x: mean(x * x.flip(2, 3))), images(), [8], UNITS),
    "reversed tokens": (linear(lambda x: x * torch.flip(x, [-2])), tokens(), [8], UNITS),
    "moved axis": (linear(lambda x: x.movedim(1, -1).sum(-1)), tokens(), [8], UNITS),
    "moved axes": (conv(lambda x: torch.moveaxis(x, (2, 3), (0, 1)).mean((0, 1))), images(), [8], UNITS),
    "attribute T": (linear(lambda x: (x.T * 2).T), vectors(), [8], UNITS),
    "attribute mT": (linear(lambda x: x.mT.sum(-1)), tokens(), [8], UNITS),
    "t": (linear(lambda x: torch.t(x).abs().t()), vectors(), [8], UNITS),
    "swapdims": (linear(lambda x: x.swapdims(2, 1).sum(-1)), tokens(), [8], UNITS),
    "expand": (conv(lambda x: mean(x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 5))), images(), [8], UNITS),
}


@pytest.mark.parametrize(("model", "x", "groups", "columns"), FOLLOWED.values(), ids=FOLLOWED)
def test_axes_are_followed(model: nn.Module, x: Tensor, groups: list[int], columns: list[int] | None) -> None:
    assert_followed(model, x, groups, columns)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FOLLOWED)
def test_parity(name: str, seed: int) -> None:
    model, x, _, _ = FOLLOWED[name]
    assert_parity(model, x, seed)


def test_a_module_that_joins_axes() -> None:
    assert_passes(nn.Flatten(), 128)


@pytest.mark.parametrize(
    ("name", "kept", "target", "arguments"),
    [
        ("repeat", {"a": [0, 3, 4], "fc": [1]}, "repeat", [([1, 1],)]),
        ("repeat of every unit", {"a": [0, 3], "fc": [0, 1]}, torch.repeat_interleave, [(2, 1)]),
        ("view with -1", {"a": [0, 3]}, torch.reshape, [([-1, 32],)]),
        ("split into heads", {"a": [1], "a#2": [0, 2, 3]}, torch.reshape, [([-1, 1, 3],)]),
        ("unflatten", {"a": [1], "a#2": [0, 2]}, torch.reshape, [([-1, 1, 2],)]),
    ],
)
def test_sizes_are_written_again(
    name: str, kept: dict[str, list[int]], target: object, arguments: list[tuple[Any, ...]]
) -> None:
    model, x, _, _ = FOLLOWED[name]
    assert_written_again(model, x, kept, target, arguments)


@pytest.mark.parametrize(
    ("function", "out", "reason"),
    [
        (lambda x: x.roll(2, 1), 8, "rolled at roll (node roll)"),
        (lambda x: x.repeat_interleave(2).view(-1, 16), 16, "repeated at repeat_interleave (node repeat_interleave)"),
        (lambda x: torch.flip(x, (1,)), 8, "reversed at flip (node flip)"),
        (lambda x: x.view(torch.int32).view(x.dtype), 8, "reshape that cannot be followed at view (node view)"),
        (
            lambda x: x.view(dtype=torch.int16).view(dtype=x.dtype),
            8,
            "reshape that cannot be followed at view (node view)",
        ),
    ],
)
def test_reasons(function: Function, out: int, reason: str) -> None:
    assert_frozen(function, out, reason)


def test_a_module_that_splits_an_axis() -> None:
    model = net(
        lambda net, x: net.fc(net.m(net.a(x)).transpose(1, 2).flatten(1)),
        a=nn.Linear(3, 8),
        m=nn.Unflatten(1, (2, 4)),
        fc=nn.Linear(8, 5),
    )
    assert sizes(analysed(model, vectors())) == [2, 4]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


def test_an_expansion_reads_its_batch_from_the_input() -> None:
    def body(net: Any, x: Tensor) -> Any:
        token = net.token.expand(x.shape[0], -1, -1)
        return net.fc(torch.cat([token, net.a(x)], dim=1))

    model = net(body, token=nn.Parameter(torch.rand(1, 1, 8)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    analysis = analysed(model, tokens())
    assert sizes(analysis) == [8]
    slim = slimmed(analysis, {analysis.groups[0].name: [0, 5]})
    for batch in (1, 2, 5):
        assert slim(tokens()[:1].repeat(batch, 1, 1)).shape == (batch, 8, 5)
    (node,) = slim.graph.find_nodes(op="call_method", target="expand")
    assert [value.target for value in node.all_input_nodes] == ["token", "size"]


def test_sizes_that_agree_by_coincidence_do_not_couple() -> None:
    # 4 x 4 channels and places: a view must not take one for the other.
    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x).flatten(2).transpose(1, 2)
        return net.fc(y.reshape(-1, 16, 2, 2).flatten(1))

    analysis = analysed(net(body, a=nn.Conv2d(3, 4, 1), fc=nn.Linear(64, 5)), images())
    assert sizes(analysis) == [2, 2]
    assert members(analysis, "a")["fc.weight", 1] == [0, 0, 1, 1] * 16


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean((2, 3), keepdim=True).squeeze(),
        lambda x: x.mean((2, 3)).squeeze(1),
        lambda x: torch.squeeze(x.mean((2, 3)), dim=-1),
        lambda x: torch.squeeze(x.mean((2, 3), keepdim=True), (1, 2, 3)),
        lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    ],
    ids=["all axes", "an axis", "an axis by name", "three axes", "one by one"],
)
def test_one_unit_that_is_left_is_not_squeezed(function: Function) -> None:
    slim = slimmed(analysed(conv(function), images()), {"a": [3]})
    assert slim(images()).shape == (2, 5)


def test_entries_rolled_over_all_axes_are_frozen() -> None:
    assert sizes(analysed(linear(lambda x: torch.roll(x, 1, ())), vectors())) == []
    assert sizes(analysed(linear(lambda x: torch.roll(x, 1)), vectors())) == []


@pytest.mark.parametrize(
    ("function", "groups"),
    [
        pytest.param(
            lambda x: torch.reshape(input=x, shape=(-1, 2, 4)).sum(1),
            [2, 4],
            id="reshape",
        ),
        pytest.param(
            lambda x: x.view(-1, 2, 4).swapaxes(axis0=1, axis1=2).sum(2),
            [2, 4],
            id="swapaxes",
        ),
    ],
)
def test_operands_and_axes_given_by_name(function: Function, groups: list[int]) -> None:
    assert sizes(analysed(linear(function, out=4), vectors())) == groups


@pytest.mark.parametrize("name", ["repeat", "repeat_interleave", "expand"])
def test_copies_are_zero_at_units_and_not_along_the_new_axis(name: str) -> None:
    spellings: dict[str, Function] = {
        "repeat": lambda x: x.repeat(1, 8, 1, 1),
        "repeat_interleave": lambda x: x.repeat_interleave(8, 1),
        "expand": lambda x: x.expand(-1, 8, -1, -1),
    }

    def body(net: Any, x: Tensor) -> Any:
        # Zero for the units of `a` that are dropped, and for no other.
        copies = spellings[name]((net.a(x).unsqueeze(-1) * torch.sigmoid(net.v)).unsqueeze(1))
        tied = torch.einsum("bcdl,c,d->bl", copies + copies.transpose(1, 2), net.p, net.p)
        return net.b(tied) + net.c(copies.sum(1).transpose(1, 2)).mean(1)

    layers = {"a": nn.Linear(3, 8), "b": nn.Linear(5, 4), "c": nn.Linear(8, 4)}
    model = net(body, v=parameter(5), p=parameter(8), **layers)
    for seed in range(3):
        assert parity_error(model, (vectors(),), seed) <= FLOAT64_LIMIT


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :0].view_as(x[:, :0]).sum() + x,
        lambda x: torch.unflatten(x[:, :0], 1, (0, 4)).sum() + x,
        lambda x: x[:, :0].flatten().sum() + x,
    ],
)
def test_a_view_of_nothing_is_frozen(function: Function) -> None:
    assert frozen(analysed(linear(function), vectors()))[0][0] == "a"
    assert_parity(linear(function), vectors()) if sizes(analysed(linear(function), vectors())) else None
