"""Small networks, each with the channel groups and blocks that a person finds in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


def image(channels: int = 3, side: int = 8, batch: int = 2) -> Tensor:
    """A random image in the default type."""
    return torch.randn(batch, channels, side, side)


def conv_bn(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with its norm."""
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
    )


class Head(nn.Module):
    """Global pooling and a linear classifier."""

    def __init__(self, features: int, classes: int = 5) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class Residual(nn.Module):
    """conv-bn-relu-conv-bn, plus the input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = conv_bn(width, inner)
        self.second = conv_bn(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class PlainResidual(nn.Module):
    """Two residual blocks on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.one = Residual(16, 12)
        self.two = Residual(16, 20)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(F.relu(self.stem(x)))))


class OptionA(nn.Module):
    """A shortcut that subsamples and pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.first = conv_bn(8, 12, stride=2)
        self.second = conv_bn(12, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        return self.head(F.relu(shortcut + self.second(F.relu(self.first(x)))))


class Downsample(nn.Module):
    """A projected shortcut: either side of the addition may go, not both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.first = conv_bn(8, 12, stride=2)
        self.second = conv_bn(12, 16)
        self.shortcut = conv_bn(8, 16, 1, stride=2)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = self.second(F.relu(self.first(x)))
        out += self.shortcut(x)
        return self.head(F.relu(out))


class NestedBlocks(nn.Module):
    """A residual block inside of a residual branch, and two additions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.enter = nn.Conv2d(8, 12, 1)
        self.inner = Residual(12, 10)
        self.leave = nn.Conv2d(12, 8, 1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.leave(self.inner(self.enter(x)))
        x = torch.add(torch.add(x, self.left(x)), self.right(x))
        return self.head(x)


class PreActivation(nn.Module):
    """Norm and in-place activation before the convolutions; the shortcut sees what was written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.third = nn.Conv2d(12, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.second(self.relu(self.norm2(self.first(self.relu(self.norm(x))))))
        # The activation writes to x itself: the shortcut is the activated x.
        y = self.third(self.relu(x))
        y += x
        y.mul_(0.5)
        return self.head(y)


class DenseConcat(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.grow1 = nn.Conv2d(8, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(14)
        self.grow2 = nn.Conv2d(14, 6, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(20)
        self.head = Head(20)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.grow1(F.relu(self.norm1(torch.cat(features, 1)))))
        features.append(self.grow2(F.relu(self.norm2(torch.cat(features, 1)))))
        return self.head(F.relu(self.norm3(torch.cat(features, 1))))


class Depthwise(nn.Module):
    """A depthwise convolution that makes three channels of each, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.multiply = conv_bn(8, 24, groups=8)
        self.point = conv_bn(24, 10, 1)
        self.depth = conv_bn(10, 10, groups=10)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.multiply(F.relu6(self.stem(x))))
        return self.head(self.depth(self.point(x)))


class Grouped(nn.Module):
    """Grouped convolutions: whole groups, and channels of each group alike, may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.grouped = conv_bn(12, 20, groups=4)
        self.point = conv_bn(20, 6, 1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(F.relu(self.grouped(F.relu(self.stem(x))))))


class SqueezeExcite(nn.Module):
    """Channels scaled by a branch that sees their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.reduce = nn.Conv2d(16, 6, 1)
        self.widen = nn.Conv2d(6, 16, 1)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        scale = self.widen(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return self.head(x * torch.sigmoid(scale))


class ChannelShuffle(nn.Module):
    """Two halves interleaved by view, transpose, view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.point = conv_bn(12, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(self.point(x))


class Vgg(nn.Module):
    """A flattened feature map read by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(True)
        )
        self.pool = nn.AdaptiveAvgPool2d((3, 3))
        self.classifier = nn.Sequential(nn.Linear(54, 14), nn.ReLU(True), nn.Dropout(), nn.Linear(14, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class TwoInputs(nn.Module):
    """An image and a vector, added after their first layers."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 10, 3, padding=1)
        self.vector = nn.Linear(4, 10)
        self.mix = nn.Conv2d(10, 6, 1)
        self.head = Head(6)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        both = self.image(x) + self.vector(v)[:, :, None, None]
        return self.head(F.relu(self.mix(F.relu(both))))


class Twice(nn.Module):
    """One module called twice, on what it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 3, padding=1)
        self.shared = nn.Conv2d(9, 9, 3, padding=1)
        self.norm = nn.BatchNorm2d(9)
        self.head = Head(9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.shared(x)))
        return self.head(F.relu(self.norm(self.shared(x))))


class Tied(nn.Module):
    """Two layers with one weight: what they read is coupled, and what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 10)
        self.right = nn.Linear(6, 10)
        self.up = nn.Linear(10, 14)
        self.other = nn.Linear(10, 14, bias=False)
        self.other.weight = self.up.weight
        self.out = nn.Linear(28, 3)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.tanh(self.up(torch.tanh(self.left(x))))
        right = torch.tanh(self.other(torch.relu(self.right(x))))
        return self.out(torch.cat([left, right], -1))


class ManyOutputs(nn.Module):
    """A dict and a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.low = nn.Conv2d(8, 10, 3, padding=1)
        self.high = nn.Conv2d(10, 4, 1)
        self.aside = nn.Conv2d(10, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        x = F.relu(self.low(F.relu(self.stem(x))))
        side = self.aside(x)
        return {"map": self.high(x), "pair": (side, side.mean((2, 3)))}


class Splits(nn.Module):
    """Channels chunked, split and sliced, and joined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.left = nn.Conv2d(6, 6, 3, padding=1)
        self.mix = nn.Conv2d(12, 12, 1)
        self.point = nn.Conv2d(11, 6, 1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = x.chunk(2, dim=1)
        x = self.mix(torch.cat([b, F.relu(self.left(a))], 1))
        a, b = torch.split(x, [5, 7], 1)
        x = torch.cat([a[:, 1:], b], dim=1)
        x = F.relu(self.point(x))
        y = x[:, :4] * 2
        return self.head(torch.cat((y, x[:, 4:]), 1))


class FunctionalDropout(nn.Module):
    """Dropout as a function that follows self.training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.mix = nn.Conv2d(8, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(F.relu(self.stem(x))))
        return self.head(F.dropout(x, 0.5, self.training))


class WithoutRule(nn.Module):
    """An op that has no typing rule freezes what it reads, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Conv2d(8, 10, 1)
        self.point = nn.Conv2d(10, 6, 1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(F.relu(self.stem(x))))
        return self.head(F.relu(self.point(torch.cumsum(x, 1))))


class Fire(nn.Module):
    """A squeezing convolution that two expanding ones read side by side."""

    def __init__(self, width: int, squeezed: int, left: int, right: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.left = nn.Conv2d(squeezed, left, 1)
        self.right = nn.Conv2d(squeezed, right, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)


class FireModules(nn.Module):
    """Three fire modules, the last as a residual block: both sides of it, and of the one before, add to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.one = Fire(8, 6, 10, 12)
        self.two = Fire(22, 5, 14, 9)
        self.three = Fire(23, 4, 14, 9)
        self.head = Head(23)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(F.relu(self.stem(x))))
        return self.head(x + self.three(x))


class Inception(nn.Module):
    """Branches side by side, one of which ends in branches again; then one beside a pooling without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.point = conv_bn(8, 6, 1)
        self.reduce = conv_bn(8, 5, 1)
        self.wide = conv_bn(5, 7)
        self.enter = conv_bn(8, 4, 1)
        self.rows = nn.Conv2d(4, 9, (1, 3), padding=(0, 1))
        self.columns = nn.Conv2d(4, 11, (3, 1), padding=(1, 0))
        self.project = conv_bn(8, 10, 1)
        self.shrink = conv_bn(43, 12, 3, stride=2)
        self.head = Head(55)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = self.enter(x)
        cross = torch.cat([self.rows(parts), self.columns(parts)], dim=1)
        pooled = F.avg_pool2d(x, 3, 1, 1)
        x = torch.cat((self.point(x), self.wide(F.relu(self.reduce(x))), cross, self.project(pooled)), -3)
        x = F.relu(x)
        return self.head(torch.cat(tensors=[self.shrink(x), F.max_pool2d(x, 3, 2, 1)], dim=1))


class CrossStage(nn.Module):
    """Halves of which one goes through a chain; every link of the chain is concatenated, and only the last may go."""

    def __init__(self, *, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.enter = conv_bn(3, 16, 1)
        self.links = nn.ModuleList(nn.Sequential(conv_bn(8, 6), nn.SiLU(), conv_bn(6, 8)) for _ in range(2))
        self.leave = conv_bn(32, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(F.silu(self.enter(x)).chunk(2, 1))
        for link in self.links:
            made = link(parts[-1])
            parts.append(parts[-1] + made if self.shortcut else made)
        return self.head(F.silu(self.leave(torch.cat(parts, 1))))


class NeededUnits(nn.Module):
    """Concatenated branches whose units are read apart again, added to others, or also frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 10, 1)
        self.again = nn.Conv2d(6, 7, 1)
        self.other = nn.Conv2d(10, 9, 1)
        self.beside = nn.Conv2d(8, 7, 1)
        self.sorted = nn.Conv2d(8, 5, 1)
        self.head = Head(21)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = torch.split(torch.cat([self.left(x), self.right(x)], 1), [6, 10], 1)
        left, beside = F.relu(self.again(left)), self.beside(x)
        ordered = torch.cumsum(self.sorted(x), 1)
        return self.head(torch.cat([left + beside, self.other(F.relu(right)), ordered], 1))


@dataclass(frozen=True)
class Specimen:
    """A network and what is known of it.

    Attributes:
        name: for test ids.
        make: makes the network.
        inputs: makes example inputs.
        groups: sizes of its channel groups, sorted.
        blocks: names of its removable blocks.
        exclusive: blocks of which one must stay.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    groups: tuple[int, ...]
    blocks: tuple[str, ...] = ()
    exclusive: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        return self.name


def _one() -> Inputs:
    return (image(),)


ZOO: tuple[Specimen, ...] = (
    Specimen("plain_residual", PlainResidual, _one, (12, 16, 20), ("one", "two")),
    # The trunk is 4 padded, 8 of the stem, 4 padded.
    Specimen("option_a", OptionA, _one, (4, 4, 8, 12), ("add",)),
    Specimen("downsample", Downsample, _one, (8, 12, 16), ("add", "shortcut"), (("add", "shortcut"),)),
    # "left" is x + left(x), which may go as a whole so that right(x) flows on; "left#2" is left(x) alone.
    Specimen(
        "nested_blocks",
        NestedBlocks,
        _one,
        (8, 10, 12),
        ("add_1", "inner", "left", "left#2", "right"),
        (("left", "right"),),
    ),
    Specimen("pre_activation", PreActivation, _one, (12, 16), ("add", "third")),
    # Nothing but the last concatenation reads the last layer.
    Specimen("dense_concat", DenseConcat, _one, (6, 6, 8), ("grow2",)),
    Specimen("depthwise", Depthwise, _one, (3, 8, 10)),
    Specimen("grouped", Grouped, _one, (3, 4, 5, 6)),
    Specimen("squeeze_excite", SqueezeExcite, _one, (6, 16)),
    Specimen("channel_shuffle", ChannelShuffle, _one, (8, 12)),
    Specimen("vgg", Vgg, _one, (6, 8, 14)),
    Specimen("two_inputs", TwoInputs, lambda: (image(), torch.randn(2, 4)), (6, 10), ("vector",)),
    Specimen("twice", Twice, _one, (9,)),
    Specimen("tied", Tied, lambda: (torch.randn(2, 6),), (10, 14)),
    Specimen("many_outputs", ManyOutputs, _one, (8, 10)),
    # stem: two halves; mix: 1 + 4 + 7, of which the 1 is a constant; point: 4 + 2.
    Specimen("splits", Splits, _one, (2, 4, 4, 6, 6, 6, 7), ("left",)),
    Specimen("functional_dropout", FunctionalDropout, _one, (8, 12)),
    Specimen("without_rule", WithoutRule, _one, (6, 8)),
    # Either side of a module may go, unless a sum needs its units.
    Specimen(
        "fire_modules",
        FireModules,
        _one,
        (4, 5, 6, 8, 9, 10, 12, 14),
        ("one.left", "one.right", "three"),
        (("one.left", "one.right"),),
    ),
    # "cat_1" is the branch that ends in rows and columns; the pooled part of the last concatenation has no weights.
    Specimen(
        "inception",
        Inception,
        _one,
        (4, 5, 6, 7, 8, 9, 10, 11, 12),
        ("cat_1", "rows", "columns", "project", "point", "wide.0", "shrink"),
        (("rows", "columns"), ("cat_1", "project", "point", "wide.0")),
    ),
    Specimen("cross_stage", lambda: CrossStage(shortcut=False), _one, (6, 6, 8, 8, 8, 8, 12), ("links.1",)),
    Specimen(
        "cross_stage_with_shortcuts",
        lambda: CrossStage(shortcut=True),
        _one,
        (6, 6, 8, 8, 12),
        ("links.0", "links.1#2"),
    ),
    # The first "again" is its sum with beside, the second what it adds.
    Specimen(
        "needed_units",
        NeededUnits,
        _one,
        (6, 7, 8, 9, 10),
        ("again", "again#2", "other", "beside"),
        (("again#2", "beside"),),
    ),
)
