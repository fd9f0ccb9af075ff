"""Rules of ops that move, join, cut or reshape axes: groups, literals written again, reasons, parity."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.small import (
    FLOAT64_LIMIT,
    analysed,
    calls,
    frozen,
    images,
    members,
    net,
    sizes,
    slimmed,
    tokens,
    vectors,
)
from tests.pruning import parity_error

Function = Callable[[Tensor], Tensor]


def linear(function: Function, features: int = 8, out: int = 8) -> nn.Module:
    """Vectors of 3, a hidden layer, a function, a head that reads `out` features."""
    return net(lambda net, x: net.fc(function(net.a(x))), a=nn.Linear(3, features), fc=nn.Linear(out, 5))


def conv(function: Function, channels: int = 8, out: int = 8) -> nn.Module:
    """Images of 3 x 4 x 4, a hidden map, a function, a head that reads `out` features."""
    return net(lambda net, x: net.fc(function(net.a(x))), a=nn.Conv2d(3, channels, 1), fc=nn.Linear(out, 5))


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def mapped(function: Function) -> Function:
    """A function of maps, then the mean of every channel."""
    return lambda x: mean(function(x))


def _shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def _response_norm(x: Tensor, places: tuple[int, int] = (2, 3), channels: int = 1) -> Tensor:
    """Channels scaled by their norm over all places, over the mean of these norms."""
    norms: Tensor = x.norm(p=2, dim=places, keepdim=True)
    scaled: Tensor = x * (norms / (norms.mean(channels, keepdim=True) + 1e-6))
    return x + scaled


def _unflattened(x: Tensor) -> Tensor:
    parts: Tensor = x.unflatten(1, (2, 4))  # type: ignore[no-untyped-call]
    return parts


def _grown(x: Tensor) -> Tensor:
    return torch.cat([x, F.relu(x), x[:, 2:5]], 1)


UNITS = list(range(8))
ORDER = [3, 1, 0, 2, 7, 6, 5, 4]
PERMUTATION = torch.tensor(ORDER)

# function, features the head reads, sizes of the groups, units of the first group that the head's columns mention.
FOLLOWED: dict[str, tuple[nn.Module, Tensor, list[int], list[int] | None]] = {
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
    "another order": (linear(lambda x: x.index_select(1, PERMUTATION)), vectors(), [8], ORDER),
    "another order and back": (
        linear(lambda x: torch.index_select(x.index_select(1, PERMUTATION), 1, PERMUTATION.argsort())),
        vectors(),
        [8],
        UNITS,
    ),
    "parts of another order": (
        linear(lambda x: torch.cat(torch.split(x.index_select(1, PERMUTATION), [3, 5], 1)[::-1], 1)),
        vectors(),
        # Two of three units that stay together; single ones that are cut off are constant.
        [2, 4],
        None,
    ),
    "the same order twice": (
        linear(lambda x: x.index_select(1, PERMUTATION) + x.index_select(1, PERMUTATION)),
        vectors(),
        [8],
        ORDER,
    ),
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
    "stack": (linear(lambda x: torch.stack([x, x.relu()]).mean(0)), vectors(), [8], UNITS),
    "stack along the last axis": (
        linear(lambda x: torch.stack([x, x.relu()], -1).flatten(1), out=16),
        vectors(),
        [8],
        [u for u in UNITS for _ in range(2)],
    ),
    "chunk": (linear(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), vectors(), [4, 4], [-1] * 4 + [0, 1, 2, 3]),
    "uneven chunk": (linear(lambda x: torch.cat(torch.chunk(x, 3, -1)[:2], 1), out=6), vectors(), [2, 3, 3], None),
    "split in equal parts": (
        linear(lambda x: operator.mul(*torch.split(x, 4, 1)), out=4),
        vectors(),
        [4],
        [0, 1, 2, 3],
    ),
    "split": (linear(lambda x: torch.split(x, [3, 5], 1)[1], out=5), vectors(), [3, 5], None),
    "split of copies": (
        linear(lambda x: torch.cat(torch.split(torch.cat([x] * 3, 1), [12, 12], 1)[::-1], 1), out=24),
        vectors(),
        [4, 4],
        None,
    ),
    "slice": (linear(lambda x: x[:, 2:6], out=4), vectors(), [2, 2, 4], None),
    "slice from the end": (linear(lambda x: x[:, -3:], out=3), vectors(), [3, 5], None),
    "slice after an ellipsis": (linear(lambda x: x[..., :5], out=5), tokens(), [3, 5], [0, 1, 2, 3, 4]),
    "slice with a new axis": (linear(lambda x: x[:, None, :5].squeeze(1), out=5), vectors(), [3, 5], [0, 1, 2, 3, 4]),
    "strided maps": (conv(lambda x: mean(x[:, :, ::2, 1:])), images(), [8], UNITS),
    "one token": (linear(lambda x: x[:, 0]), tokens(), [8], UNITS),
    "slices joined and grown": (conv(mapped(_grown), out=19), images(), [2, 3, 3], None),
    "padded units": (linear(lambda x: F.pad(x, (2, 3)), out=13), vectors(), [2, 3, 8], None),
    "padded channels": (conv(lambda x: mean(F.pad(x, (1, 1, 0, 0, 0, 4), value=1.0)), out=12), images(), [4, 8], None),
    "one padded channel": (linear(lambda x: F.pad(x, (1, 0)), out=9), vectors(), [8], [-1, *UNITS]),
    "padded maps": (conv(lambda x: mean(F.pad(x, (1, 1, 1, 1), mode="reflect"))), images(), [8], UNITS),
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
    "gated linear unit": (linear(F.glu, out=4), vectors(), [4], [0, 1, 2, 3]),
    "gated linear unit of maps": (conv(lambda x: mean(F.glu(x, dim=1)), out=4), images(), [4], [0, 1, 2, 3]),
    "pixel shuffle": (conv(lambda x: mean(F.pixel_shuffle(x, 2)), out=2), images(), [2], [0, 1]),
    "pixel unshuffle": (
        conv(lambda x: mean(F.pixel_unshuffle(x, 2)), out=32),
        images(),
        [8],
        [u for u in UNITS for _ in range(4)],
    ),
    "columns": (
        conv(lambda x: F.unfold(x, 3, padding=1).mean(2), out=72),
        images(),
        [8],
        [u for u in UNITS for _ in range(9)],
    ),
    "columns and back": (
        conv(lambda x: mean(F.fold(F.unfold(x, (2, 2), stride=2), (4, 4), 2, stride=2))),
        images(),
        [8],
        UNITS,
    ),
    "maps of columns": (conv(lambda x: mean(F.fold(x.flatten(2)[:, :, :9], (4, 4), 2)), out=2), images(), [2], [0, 1]),
    "windows": (conv(lambda x: x.unfold(2, 2, 1).unfold(3, 2, 1).amax((2, 3, 4, 5))), images(), [8], UNITS),
    "tokens by number": (linear(lambda x: x[:, torch.tensor([1, 2, 0])] * x[:, :3]), tokens(), [8], UNITS),
    "tokens by two numbers": (
        conv(lambda x: x[:, :, torch.tensor([1, 2]), torch.tensor([0, 3])].mean(2)),
        images(),
        [8],
        UNITS,
    ),
    "tokens by number and one entry": (
        conv(lambda x: x.permute(0, 2, 1, 3)[:, torch.tensor([1, 2, 0]), :, 3].mean(1)),
        images(),
        [8],
        UNITS,
    ),
    "tokens by numbers on both sides": (
        conv(lambda x: x.permute(0, 2, 1, 3)[:, torch.tensor([1, 2]), :, torch.tensor([0, 3])].mean(0)),
        images(),
        [8],
        UNITS,
    ),
    "tokens by number on a new axis": (
        linear(lambda x: x[:, None, torch.tensor([1, 2])].mean((1, 2))),
        tokens(),
        [8],
        UNITS,
    ),
    "tokens selected": (linear(lambda x: x.index_select(1, torch.tensor([0, 0, 3]))), tokens(), [8], UNITS),
    "tokens summed up": (linear(lambda x: x.cumsum(1)), tokens(), [8], UNITS),
    "tokens in order": (linear(lambda x: x.sort(dim=1, descending=True)[0]), tokens(), [8], UNITS),
    "order of tokens": (linear(lambda x: x * torch.argsort(x, 1)), tokens(), [8], UNITS),
    "largest token and where it is": (linear(lambda x: x.max(1)[0] * x.max(1)[1]), tokens(), [8], UNITS),
    "spread of tokens": (linear(lambda x: x / (1 + x.std(1, keepdim=True))), tokens(), [8], UNITS),
    "spread and mean of tokens": (linear(lambda x: torch.var_mean(x, dim=1)[0]), tokens(), [8], UNITS),
    "sum of units": (linear(lambda x: x * x.sum(1, keepdim=True)), vectors(), [8], UNITS),
    "mean of units": (linear(lambda x: x * x.mean(-1, keepdim=True)), vectors(), [8], UNITS),
    "mean of units and places": (conv(lambda x: mean(x * torch.mean(x, (1, 2, 3), True))), images(), [8], UNITS),
    "mean of heads": (linear(lambda x: x.view(-1, 2, 4).mean((1, 2))[:, None] * x), vectors(), [2, 4], None),
    "length": (linear(lambda x: x * x.norm(dim=1, keepdim=True)), vectors(), [8], UNITS),
    "length of another order": (linear(lambda x: x * torch.norm(x, 3, 1, keepdim=True)), vectors(), [8], UNITS),
    "length of places": (
        conv(lambda x: mean(x * torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True))),
        images(),
        [8],
        UNITS,
    ),
    "unit length": (linear(lambda x: F.normalize(x, dim=-1)), vectors(), [8], UNITS),
    "unit length over two axes": (linear(lambda x: F.normalize(x, 3.0, (1, 2))), tokens(), [8], UNITS),  # type: ignore[arg-type]
    "response norm": (conv(lambda x: mean(_response_norm(x))), images(), [8], UNITS),
    "response norm of channels last": (
        conv(lambda x: mean(_response_norm(x.permute(0, 2, 3, 1), (1, 2), -1).permute(0, 3, 1, 2))),
        images(),
        [8],
        UNITS,
    ),
    "expand": (conv(lambda x: mean(x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 5))), images(), [8], UNITS),
    "pool": (
        conv(lambda x: F.max_pool2d(x, 2).flatten(1), out=32),
        images(),
        [8],
        [u for u in UNITS for _ in range(4)],
    ),
    "adaptive pool": (conv(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)), images(), [8], UNITS),
    "upsample": (conv(lambda x: mean(F.interpolate(x, scale_factor=2.0))), images(), [8], UNITS),
    "mean": (conv(mean), images(), [8], UNITS),
    "sum of tokens": (linear(lambda x: x.sum(1)), tokens(), [8], UNITS),
    "largest token": (linear(lambda x: torch.amax(x, dim=1)), tokens(), [8], UNITS),
    "softmax of tokens": (linear(lambda x: x.softmax(1) * x), tokens(), [8], UNITS),
}


@pytest.mark.parametrize(("model", "x", "groups", "columns"), FOLLOWED.values(), ids=FOLLOWED)
def test_axes_are_followed(model: nn.Module, x: Tensor, groups: list[int], columns: list[int] | None) -> None:
    analysis = analysed(model, x)
    assert sizes(analysis) == groups
    assert frozen(analysis) == []
    if columns is not None:
        assert columns in [
            member.units.tolist() for g in analysis.groups for member in g.members if member.tensor == "fc.weight"
        ]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FOLLOWED)
def test_parity(name: str, seed: int) -> None:
    model, x, _, _ = FOLLOWED[name]
    assert parity_error(model, (x,), seed) <= FLOAT64_LIMIT


MODULES: dict[str, tuple[nn.Module, int]] = {
    "Flatten": (nn.Flatten(), 128),
    "MaxPool2d": (nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), 32),
    "AvgPool2d": (nn.Sequential(nn.AvgPool2d(2, 1), nn.Flatten()), 72),
    "AdaptiveMaxPool2d": (nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), 8),
    "LPPool2d": (nn.Sequential(nn.LPPool2d(2, 2), nn.Flatten()), 32),
    "Upsample": (nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten()), 512),
    "ZeroPad2d": (nn.Sequential(nn.ZeroPad2d(1), nn.Flatten()), 288),
    "ReflectionPad2d": (nn.Sequential(nn.ReflectionPad2d(1), nn.Flatten()), 288),
    "ReplicationPad2d": (nn.Sequential(nn.ReplicationPad2d((1, 0, 0, 0)), nn.Flatten()), 160),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_reshape_or_resample(name: str) -> None:
    module, out = MODULES[name]
    model = net(lambda net, x: net.fc(net.m(net.a(x))), a=nn.Conv2d(3, 8, 1), m=module, fc=nn.Linear(out, 5))
    analysis = analysed(model, images())
    assert sizes(analysis) == [8]
    assert members(analysis, "a")["fc.weight", 1] == [unit for unit in range(8) for _ in range(out // 8)]
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


def test_a_module_that_splits_an_axis() -> None:
    model = net(
        lambda net, x: net.fc(net.m(net.a(x)).transpose(1, 2).flatten(1)),
        a=nn.Linear(3, 8),
        m=nn.Unflatten(1, (2, 4)),
        fc=nn.Linear(8, 5),
    )
    assert sizes(analysed(model, vectors())) == [2, 4]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


# Literals written again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "target", "arguments"),
    [
        ("repeat", {"a": [0, 3, 4], "fc": [1]}, "repeat", [([1, 1],)]),
        ("repeat of every unit", {"a": [0, 3], "fc": [0, 1]}, torch.repeat_interleave, [(2, 1)]),
        ("mean of units", {"a": [0, 3]}, torch.mul, [(0.25,)]),
        ("mean of heads", {"a": [1], "a#2": [0, 2]}, torch.mul, [(0.5,), (0.5,)]),
        ("view with -1", {"a": [0, 3]}, torch.reshape, [([-1, 32],)]),
        ("split into heads", {"a": [1], "a#2": [0, 2, 3]}, torch.reshape, [([-1, 1, 3],)]),
        ("unflatten", {"a": [1], "a#2": [0, 2]}, torch.reshape, [([-1, 1, 2],)]),
        ("chunk", {"a": [1], "a#2": [0, 2, 3]}, torch.split, [([1, 3], 1)]),
        ("split in equal parts", {"a": [1, 2, 3]}, torch.split, [([3, 3], 1)]),
        ("split", {"a": [1], "a#2": [0, 2, 4]}, torch.split, [([1, 3], 1)]),
        ("slice", {"a": [1], "a#2": [0, 1, 2], "a#3": [1]}, operator.getitem, [((slice(None), slice(1, 4)),)]),
        ("slice from the end", {"a": [1], "a#2": [0, 2]}, operator.getitem, [((slice(None), slice(1, 3)),)]),
        ("slice after an ellipsis", {"a": [1]}, operator.getitem, [((slice(None), slice(None), slice(0, 1)),)]),
        ("slice with a new axis", {"a": [1, 4]}, operator.getitem, [((slice(None), None, slice(0, 2)),)]),
        ("padded units", {"a": [0, 1]}, F.pad, [([2, 3], "constant", None)]),
        ("padded units", {"a": [0, 1], "fc": [1], "fc#2": [0, 2]}, F.pad, [([1, 2], "constant", None)]),
        ("padded channels", {"fc": [3]}, F.pad, [([1, 1, 0, 0, 0, 1], "constant", 1.0)]),
    ],
)
def test_sizes_are_written_again(
    name: str, kept: dict[str, list[int]], target: object, arguments: list[tuple[Any, ...]]
) -> None:
    model, x, _, _ = FOLLOWED[name]
    analysis = analysed(model, x)
    slim = slimmed(analysis, kept)
    assert calls(slim, target) == arguments
    for batch in (1, 2, 5):
        assert slim(x[:1].repeat(batch, *[1] * (x.ndim - 1))).shape[0] == batch


def test_maps_are_read_at_the_places_of_a_grid() -> None:
    def body(net: Any, x: Tensor) -> Any:
        grid = net.places(x).tanh().permute(0, 2, 3, 1)
        return net.fc(mean(F.grid_sample(net.a(x), grid, padding_mode="border", align_corners=False)))

    model = net(body, a=nn.Conv2d(3, 8, 1), places=nn.Conv2d(3, 2, 1), fc=nn.Linear(8, 5))
    analysis = analysed(model, images())
    assert sizes(analysis) == [8]
    assert frozen(analysis) == [("places", 2, "spatial axis at grid_sample (node grid_sample)")]
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


def test_a_stored_order_counts_the_units_that_are_left() -> None:
    model, x, _, _ = FOLLOWED["another order"]
    slim = slimmed(analysed(model, x), {"a": [1, 2, 3, 7]})
    (stored,) = (buffer for _, buffer in slim.named_buffers())
    assert stored.tolist() == [2, 0, 1, 3]


def test_an_order_that_is_read_for_its_numbers_freezes() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).index_select(1, net.order) * net.order),
        a=nn.Linear(3, 8),
        order=nn.Buffer(PERMUTATION),
        fc=nn.Linear(8, 5),
    )
    analysis = analysed(model, vectors())
    assert sizes(analysis) == []
    assert frozen(analysis) == [("a", 8, "taken by number at index_select (node index_select)")]


def test_one_order_of_two_axes_couples_them() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y, z = (layer(x).index_select(1, net.order) for layer in (net.a, net.b))
        return net.fc(torch.cat([y, z], 1))

    model = net(body, a=nn.Linear(3, 8), b=nn.Linear(3, 8), order=nn.Buffer(PERMUTATION), fc=nn.Linear(16, 5))
    assert sizes(analysed(model, vectors())) == [8]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


def test_examples_taken_by_number_fix_the_batch() -> None:
    model = conv(lambda x: x[torch.tensor([0, 1]), :, 2, torch.tensor([0, 3])])
    analysis = analysed(model, images())
    assert analysis.graph.batch is None
    assert sizes(analysis) == [8]


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


def test_examples_joined_along_the_batch_come_apart_again() -> None:
    def body(net: Any, x: Tensor) -> Any:
        one, other = net.b(F.relu(net.a(torch.cat([x, 2 * x])))).chunk(2)
        return net.fc(one * other)

    model = net(body, a=nn.Linear(3, 8), b=nn.Linear(8, 6), fc=nn.Linear(6, 5))
    assert sizes(analysed(model, vectors())) == [6, 8]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


# Reasons ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "out", "reason"),
    [
        (lambda x: x[:, ::2], 4, "strided or empty slice at getitem (node getitem)"),
        (lambda x: torch.cat([x, x[:, 3:3]], 1), 8, "strided or empty slice at getitem (node getitem)"),
        (lambda x: x * x[:, 3].unsqueeze(1), 8, "one entry selected at getitem (node getitem)"),
        (lambda x: x * x.select(1, 3).unsqueeze(1), 8, "one entry selected at select (node select)"),
        (lambda x: x[:, [1, 0, 2]], 3, "indexed by a list at getitem (node getitem)"),
        (lambda x: torch.stack(x.unbind(1)[:3], 1), 3, "taken apart at unbind (node unbind)"),
        (lambda x: x - x.exp().mean(1, keepdim=True), 8, "reduced at mean (node mean)"),
        (lambda x: x - x.amax(1, keepdim=True), 8, "reduced at amax (node amax)"),
        (lambda x: x - x.var(1, keepdim=True), 8, "reduced at var (node var)"),
        (lambda x: x * x.exp().norm(2, 1, keepdim=True), 8, "reduced at norm (node norm)"),
        (lambda x: x * x.norm(-1, 1, keepdim=True), 8, "reduced at norm (node norm)"),
        (lambda x: x * torch.linalg.norm(x), 8, "reduced at linalg_norm (node linalg_norm)"),
        (lambda x: F.normalize(x.exp(), dim=1), 8, "normalised together at normalize (node normalize)"),
        (lambda x: F.normalize(x, -1.0, 1), 8, "normalised together at normalize (node normalize)"),
        (lambda x: x.cumsum(1), 8, "taken in order at cumsum (node cumsum)"),
        (lambda x: torch.sort(x)[0], 8, "taken in order at sort (node sort)"),
        (lambda x: x.roll(2, 1), 8, "rolled at roll (node roll)"),
        (lambda x: x.unfold(1, 2, 1).sum(2), 7, "seen through windows at unfold (node unfold)"),
        (lambda x: x[:, torch.tensor([2, 1])], 2, "taken by number at getitem (node getitem)"),
        (lambda x: x.index_select(1, PERMUTATION[:4]), 4, "taken by number at index_select (node index_select)"),
        (lambda x: torch.gather(x, 1, x.argsort(0)), 8, "taken by number at gather (node gather)"),
        (lambda x: x.repeat_interleave(2).view(-1, 16), 16, "repeated at repeat_interleave (node repeat_interleave)"),
        (lambda x: F.glu(x.unsqueeze(1).softmax(2)).squeeze(1), 4, "softmax over the axis at softmax (node softmax)"),
        (lambda x: x / x.sum(), 8, "reduced at sum (node sum_1)"),
        (lambda x: x * x.argmax(-1, keepdim=True), 8, "reduced at argmax (node argmax)"),
        (lambda x: x.softmax(-1), 8, "softmax over the axis at softmax (node softmax)"),
        (lambda x: F.log_softmax(x, dim=1), 8, "softmax over the axis at log_softmax (node log_softmax)"),
        (lambda x: F.pad(x.unsqueeze(1), (1, 1), mode="reflect").squeeze(1), 10, "padded at pad (node pad)"),
        (lambda x: F.pad(x, (-1, 0)), 7, "padded at pad (node pad)"),
        (lambda x: F.max_pool1d(x.unsqueeze(1), 2).squeeze(1), 4, "spatial axis at max_pool1d (node max_pool1d)"),
        (lambda x: torch.logcumsumexp(x, 1), 8, "no typing rule for logcumsumexp at logcumsumexp (node logcumsumexp)"),
        (lambda x: torch.flip(x, (1,)), 8, "reversed at flip (node flip)"),
        (lambda x: x.view(torch.int32).view(x.dtype), 8, "reshape that cannot be followed at view (node view)"),
    ],
)
def test_reasons(function: Function, out: int, reason: str) -> None:
    analysis = analysed(linear(function, out=out), vectors())
    assert frozen(analysis) == [("a", 8, reason)]
    assert analysis.groups == ()


def test_a_strided_slice_freezes_the_axis_it_strides_along_only() -> None:
    analysis = analysed(linear(lambda x: x[:, ::2]), tokens())
    assert sizes(analysis) == [8]
    assert frozen(analysis) == []


def test_sizes_that_agree_by_coincidence_do_not_couple() -> None:
    # 4 x 4 channels and places: a view must not take one for the other.
    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x).flatten(2).transpose(1, 2)
        return net.fc(y.reshape(-1, 16, 2, 2).flatten(1))

    analysis = analysed(net(body, a=nn.Conv2d(3, 4, 1), fc=nn.Linear(64, 5)), images())
    assert sizes(analysis) == [2, 2]
    assert members(analysis, "a")["fc.weight", 1] == [0, 0, 1, 1] * 16


# Faults that were found ----------------------------------------------------------------------------------------------


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


def test_a_layer_norm_written_out_is_frozen() -> None:
    # The mean that is subtracted is not zero for dropped units, so the variance would count them.
    def function(x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()

    assert parity_error(linear(function), (vectors(),), 0) <= FLOAT64_LIMIT


@pytest.mark.parametrize(("before", "groups"), [(F.relu, [16]), (torch.sigmoid, [])])
def test_a_norm_over_units_is_over_them_and_not_over_the_places(before: Function, groups: list[int]) -> None:
    # 16 places and 16 channels: the wrong axis has the right size.
    model = conv(lambda x: before(x).flatten(2).norm(2, 1), channels=16, out=16)
    analysis = analysed(model, images())
    assert sizes(analysis) == groups
    assert {tensor for g in analysis.groups for tensor, _ in members(analysis, g.name)} <= {"a.weight", "a.bias"}
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


def test_a_deviation_of_all_entries_freezes_them() -> None:
    model = linear(lambda x: x / torch.std(x, False))
    assert sizes(analysed(model, vectors())) == []


def _halves(parts: Any) -> Tensor:
    first, second = parts
    product: Tensor = first * second
    return product


@pytest.mark.parametrize(
    ("function", "groups"),
    [
        pytest.param(lambda x: _halves(torch.split(tensor=x, split_size_or_sections=4, dim=1)), [4], id="split"),
        pytest.param(lambda x: F.pad(input=x, pad=(0, 1))[:, :4], [4, 4], id="pad"),
        pytest.param(
            lambda x: _halves(torch.chunk(input=x, chunks=2, dim=1)),
            [4],
            id="chunk",
        ),
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
