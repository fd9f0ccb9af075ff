"""Small cost regions for the latency tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Region:
    """A region as `passes.cost_regions` makes them, by hand."""

    key: str
    roles: tuple[str, ...]
    dense_sizes: tuple[int, ...]
    build: Callable[[tuple[int, ...]], Built]


class ConvBlock(nn.Module):
    """conv + bn (+ add) + relu."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)
        self.bn.register_buffer("running_var", torch.rand(conv.out_channels) + 0.5)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.bn(self.conv(x))
        return torch.relu(y if shortcut is None else y + shortcut)


class Tokens(nn.Module):
    """A region whose exported graph holds its sizes as numbers: flatten and split into heads."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.linear(x)
        return projected.reshape(1, 6, 2, self.features // 2).transpose(1, 2)


def conv_region(side: int = 12, kernel: int = 3, add: bool = False, dense: tuple[int, int] = (32, 64)) -> Region:
    """A dense convolution with axes (in, out)."""

    def build(sizes: tuple[int, ...]) -> Built:
        module = ConvBlock(nn.Conv2d(sizes[0], sizes[1], kernel, padding=kernel // 2, bias=False)).eval()
        inputs: tuple[Tensor, ...] = (torch.randn(1, sizes[0], side, side),)
        return module, (*inputs, torch.randn(1, sizes[1], side, side)) if add else inputs

    return Region(f"conv{kernel} {side}x{side} add={add}", ("in", "out"), dense, build)


def depthwise_region(side: int = 12, dense: int = 64) -> Region:
    """A depthwise convolution with one axis."""

    def build(sizes: tuple[int, ...]) -> Built:
        (channels,) = sizes
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        return ConvBlock(conv).eval(), (torch.randn(1, channels, side, side),)

    return Region(f"depthwise {side}x{side}", ("out",), (dense,), build)


def token_region() -> Region:
    """A linear layer and a reshape to literal sizes, with one axis."""

    def build(sizes: tuple[int, ...]) -> Built:
        return Tokens(sizes[0]).eval(), (torch.randn(1, 6, sizes[0]),)

    return Region("tokens", ("in",), (32,), build)


def constant_region() -> Region:
    """A region without axes."""

    def build(sizes: tuple[int, ...]) -> Built:
        assert sizes == ()
        return nn.MaxPool2d(2), (torch.randn(1, 16, 8, 8),)

    return Region("maxpool", (), (), build)
