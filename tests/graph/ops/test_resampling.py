"""Rules of ops on maps: groups, literals written again, reasons, parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
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
    mean,
)
from tests.graph.small import FLOAT64_LIMIT, analysed, frozen, images, net, sizes, vectors
from tests.pruning import parity_error

FOLLOWED: Followed = {
    "padded units": (linear(lambda x: F.pad(x, (2, 3)), out=13), vectors(), [2, 3, 8], None),
    "padded channels": (conv(lambda x: mean(F.pad(x, (1, 1, 0, 0, 0, 4), value=1.0)), out=12), images(), [4, 8], None),
    "one padded channel": (linear(lambda x: F.pad(x, (1, 0)), out=9), vectors(), [8], [-1, *UNITS]),
    "padded maps": (conv(lambda x: mean(F.pad(x, (1, 1, 1, 1), mode="reflect"))), images(), [8], UNITS),
    "maps padded with zeros": (conv(lambda x: F.pad(x, (1, 1)).sum(1).flatten(1), out=24), images(), [8], None),
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
    "pool": (
        conv(lambda x: F.max_pool2d(x, 2).flatten(1), out=32),
        images(),
        [8],
        [u for u in UNITS for _ in range(4)],
    ),
    "adaptive pool": (conv(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)), images(), [8], UNITS),
    "upsample": (conv(lambda x: mean(F.interpolate(x, scale_factor=2.0))), images(), [8], UNITS),
}


@pytest.mark.parametrize(("model", "x", "groups", "columns"), FOLLOWED.values(), ids=FOLLOWED)
def test_axes_are_followed(model: nn.Module, x: Tensor, groups: list[int], columns: list[int] | None) -> None:
    assert_followed(model, x, groups, columns)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FOLLOWED)
def test_parity(name: str, seed: int) -> None:
    model, x, _, _ = FOLLOWED[name]
    assert_parity(model, x, seed)


MODULES: dict[str, tuple[nn.Module, int]] = {
    "MaxPool2d": (nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), 32),
    "AvgPool2d": (nn.Sequential(nn.AvgPool2d(2, 1), nn.Flatten()), 72),
    "AdaptiveMaxPool2d": (nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), 8),
    "LPPool2d": (nn.Sequential(nn.LPPool2d(2, 2), nn.Flatten()), 32),
    "Upsample": (nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten()), 512),
    "ZeroPad2d": (nn.Sequential(nn.ZeroPad2d(1), nn.Flatten()), 288),
    "ReflectionPad2d": (nn.Sequential(nn.ReflectionPad2d(1), nn.Flatten()), 288),
    "CircularPad2d": (nn.Sequential(nn.CircularPad2d((1, 0, 0, 0)), nn.Flatten()), 160),
    "CircularPad1d": (nn.Sequential(nn.Flatten(2), nn.CircularPad1d(2), nn.Flatten()), 160),
    "ReplicationPad3d": (
        nn.Sequential(nn.Unflatten(3, (2, 2)), nn.ReplicationPad3d((1, 0, 0, 0, 0, 0)), nn.Flatten()),
        192,
    ),
    "ZeroPad3d": (nn.Sequential(nn.Unflatten(3, (2, 2)), nn.ZeroPad3d((1, 0, 0, 0, 0, 0)), nn.Flatten()), 192),
    "ReplicationPad2d": (nn.Sequential(nn.ReplicationPad2d((1, 0, 0, 0)), nn.Flatten()), 160),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_resample(name: str) -> None:
    assert_passes(*MODULES[name])


@pytest.mark.parametrize(
    ("name", "kept", "target", "arguments"),
    [
        ("padded units", {"a": [0, 1]}, F.pad, [([2, 3], "constant", None)]),
        ("padded units", {"a": [0, 1], "fc": [1], "fc#2": [0, 2]}, F.pad, [([1, 2], "constant", None)]),
        ("padded channels", {"fc": [3]}, F.pad, [([1, 1, 0, 0, 0, 1], "constant", 1.0)]),
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
        (lambda x: x.unfold(1, 2, 1).sum(2), 7, "seen through windows at unfold (node unfold)"),
        (lambda x: F.pad(x.unsqueeze(1), (1, 1), mode="reflect").squeeze(1), 10, "padded at pad (node pad)"),
        *[
            (lambda x, mode=mode: F.pad(x[:, None], (1, 2), mode=mode)[:, 0], 11, "padded at pad (node pad)")
            for mode in ("reflect", "circular", "replicate")
        ],
        (
            lambda x: nn.functional.pad(x, (0, 0, 1, 1), value=1.0)[1:-1].sum(1, keepdim=True),
            1,
            "reduced at sum (node sum_1)",
        ),
        (lambda x: F.pad(x, (-1, 0)), 7, "padded at pad (node pad)"),
        (lambda x: F.max_pool1d(x.unsqueeze(1), 2).squeeze(1), 4, "spatial axis at max_pool1d (node max_pool1d)"),
    ],
)
def test_reasons(function: Function, out: int, reason: str) -> None:
    assert_frozen(function, out, reason)


def test_maps_are_read_at_the_places_of_a_grid() -> None:
    def body(net: Any, x: Tensor) -> Any:
        grid = net.places(x).tanh().permute(0, 2, 3, 1)
        return net.fc(mean(F.grid_sample(net.a(x), grid, padding_mode="border", align_corners=False)))

    model = net(body, a=nn.Conv2d(3, 8, 1), places=nn.Conv2d(3, 2, 1), fc=nn.Linear(8, 5))
    analysis = analysed(model, images())
    assert sizes(analysis) == [8]
    assert frozen(analysis) == [("places", 2, "spatial axis at grid_sample (node grid_sample)")]
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


@pytest.mark.parametrize(
    ("function", "groups"),
    [
        pytest.param(lambda x: F.pad(input=x, pad=(0, 1))[:, :4], [4, 4], id="pad"),
    ],
)
def test_operands_and_axes_given_by_name(function: Function, groups: list[int]) -> None:
    assert sizes(analysed(linear(function, out=4), vectors())) == groups
