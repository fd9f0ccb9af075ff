"""Random networks: a seed is a module of a few operations that couple channels in every way the rules know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.rare_steps import RARE

SIDE = 8
WIDTHS = (4, 6, 8, 12)
"""Few widths, so that sizes that are equal by coincidence are common."""

Layers = nn.ModuleList
Step = Callable[[Layers, list[Tensor]], Sequence[Tensor]]
"""Reads earlier values, returns new ones."""


class RandomNetwork(nn.Module):
    """A straight program over feature maps, and a linear head that reads all that nobody else reads.

    Attributes:
        log: what each step is, to be read when a seed fails.
        words: it reads maps of so many different numbers; 0 where it reads images.
    """

    def __init__(self, layers: Layers, steps: Sequence[Step], heads: Step, log: Sequence[str], words: int) -> None:
        super().__init__()
        self.layers = layers
        self.steps = tuple(steps)
        self.heads = heads
        self.log = tuple(log)
        self.words = words

    @property
    def fixes_batch(self) -> bool:
        """Whether a step makes an axis of the batch's size that is not the batch."""
        return any("turned" in line for line in self.log)

    def inputs(self, seed: int) -> tuple[Tensor]:
        """Two examples."""
        generator = torch.Generator().manual_seed(seed)
        if self.words:
            return (torch.randint(self.words, (2, SIDE, SIDE), generator=generator),)
        return (torch.randn(2, 3, SIDE, SIDE, generator=generator),)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.extend(step(self.layers, values))
        results = self.heads(self.layers, values)
        return results[0] if len(results) == 1 else tuple(results)


class Stored(nn.Module):
    """A parameter, kept among the layers."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


@dataclass(frozen=True)
class Map:
    """A feature map: channels and the side of its square."""

    channels: int
    side: int


@dataclass
class Builder:
    """Grows a network step by step; every method adds one step."""

    rng: np.random.Generator
    layers: Layers = field(default_factory=nn.ModuleList)
    steps: list[Step] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    read: set[int] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    # Choices -----------------------------------------------------------------------------------------------------

    def below(self, count: int) -> int:
        """A random int in 0..count-1."""
        return int(self.rng.integers(count))

    def between(self, low: int, high: int) -> int:
        """A random int in low..high."""
        return int(self.rng.integers(low, high + 1))

    def coin(self, share: float = 0.5) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, options: Sequence[int]) -> int:
        return int(options[self.below(len(options))])

    def divisor(self, count: int) -> int:
        """A divisor of `count`, not one where there is another."""
        return self.pick([n for n in range(2, count + 1) if count % n == 0] or [1])

    def source(self) -> int:
        """A value to read: mostly the last, never the input of the network."""
        last = len(self.maps) - 1
        return last if last == 1 or self.coin(0.6) else self.between(1, last)

    def partner(self, value: int, same: Callable[[Map, Map], bool]) -> int | None:
        """Another value that fits `value`, or None."""
        fitting = [i for i in range(1, len(self.maps)) if i != value and same(self.maps[i], self.maps[value])]
        return self.pick(fitting) if fitting else None

    # Growing -----------------------------------------------------------------------------------------------------

    def layer(self, module: nn.Module) -> int:
        self.layers.append(module)
        return len(self.layers) - 1

    def add(self, name: str, step: Step, reads: Sequence[int], *makes: Map) -> int:
        """Adds a step; returns the index of its first value."""
        self.steps.append(step)
        self.read.update(reads)
        self.maps.extend(makes)
        first = len(self.maps) - len(makes)
        self.log.append(f"{list(range(first, len(self.maps)))} = {name}({list(reads)}) {[m.channels for m in makes]}")
        return first

    def unary(self, name: str, function: Callable[[Tensor], Tensor], source: int, made: Map | None = None) -> int:
        return self.add(name, lambda layers, values: (function(values[source]),), [source], made or self.maps[source])

    def module(self, name: str, module: nn.Module, source: int, made: Map | None = None) -> int:
        at = self.layer(module)
        return self.add(name, lambda layers, values: (layers[at](values[source]),), [source], made or self.maps[source])

    # Layers ------------------------------------------------------------------------------------------------------

    def conv(self, source: int | None = None, width: int | None = None, stride: int | None = None) -> int:
        source = self.source() if source is None else source
        size, kernel = self.maps[source], self.pick((1, 3))
        made = width or self.pick(WIDTHS)
        stride = stride or (2 if size.side >= 4 and size.side % 2 == 0 and self.coin(0.15) else 1)
        conv = nn.Conv2d(size.channels, made, kernel, stride, kernel // 2, bias=self.coin())
        return self.module("conv", conv, source, Map(made, size.side // stride))

    def grouped(self) -> int:
        source = self.source()
        size = self.maps[source]
        groups = self.divisor(size.channels)
        made = groups * self.between(1, 3)
        conv = nn.Conv2d(size.channels, made, 3, padding=1, groups=groups, bias=self.coin())
        return self.module(f"grouped{groups}", conv, source, Map(made, size.side))

    def depthwise(self) -> int:
        source = self.source()
        size, times = self.maps[source], self.pick((1, 1, 2, 3))
        conv = nn.Conv2d(size.channels, times * size.channels, 3, padding=1, groups=size.channels, bias=self.coin())
        return self.module(f"depthwise{times}", conv, source, Map(times * size.channels, size.side))

    def transposed(self) -> int:
        source = self.source()
        size = self.maps[source]
        groups = self.divisor(size.channels) if self.coin() else 1
        made = groups * self.between(1, 4)
        conv = nn.ConvTranspose2d(size.channels, made, 3, padding=1, groups=groups, bias=self.coin())
        return self.module(f"transposed{groups}", conv, source, Map(made, size.side))

    def functional_conv(self) -> int:
        source = self.source()
        size = self.maps[source]
        groups = self.divisor(size.channels) if self.coin() else 1
        at = self.layer(nn.Conv2d(size.channels, size.channels, 1, groups=groups))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            conv: Any = layers[at]
            return (F.conv2d(values[source], conv.weight, conv.bias, groups=groups),)

        return self.add(f"F.conv2d{groups}", step, [source], size)

    def batch_norm(self, source: int | None = None) -> int:
        source = self.source() if source is None else source
        return self.module("bn", nn.BatchNorm2d(self.maps[source].channels, affine=self.coin(0.8)), source)

    def group_norm(self) -> int:
        source = self.source()
        channels = self.maps[source].channels
        return self.module("gn", nn.GroupNorm(self.divisor(channels), channels), source)

    def prelu(self) -> int:
        source = self.source()
        return self.module("prelu", nn.PReLU(self.maps[source].channels if self.coin(0.7) else 1), source)

    def activation(self, source: int | None = None) -> int:
        source = self.source() if source is None else source
        modules = (nn.ReLU(), nn.ReLU(inplace=True), nn.Hardswish(), nn.Sigmoid(), nn.SiLU(inplace=True))
        functions: tuple[Callable[[Tensor], Tensor], ...] = (
            F.relu,
            torch.sigmoid,
            F.hardswish,
            lambda x: x.tanh(),
            lambda x: F.relu(x, inplace=True),
            lambda x: x.relu_(),
        )
        chosen = self.below(len(modules) + len(functions))
        if chosen < len(modules):
            return self.module("act", modules[chosen], source)
        return self.unary("F.act", functions[chosen - len(modules)], source)

    def scalars(self) -> int:
        """Arithmetic with numbers, one of them computed from the shape."""
        functions: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: x * x.shape[1] ** -0.5,
            lambda x: 1 - x,
            lambda x: (x + 0.5).div(2.0),
            lambda x: 2.0 * x.clamp(min=-1.0),
        )
        return self.unary("scalars", functions[self.below(len(functions))], self.source())

    def words(self, count: int) -> int:
        """Whole numbers as places in a table."""
        width = self.pick(WIDTHS)
        at = self.layer(nn.Embedding(count, width))
        return self.add(
            "words", lambda layers, values: (layers[at](values[0]).permute(0, 3, 1, 2),), [0], Map(width, SIDE)
        )

    # Joining -----------------------------------------------------------------------------------------------------

    def sum_of(self, one: int, other: int) -> int:
        functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
            lambda x, y: x + y,
            torch.add,
            lambda x, y: x - y,
            torch.maximum,
            lambda x, y: x * torch.sigmoid(y),
            lambda x, y: x.add(y, alpha=2),
            lambda x, y: torch.stack([x, y]).mean(0),
            lambda x, y: torch.where(x > 0.1, x, y),
        )
        chosen = functions[self.below(len(functions) if self.coin() else 2)]
        return self.add(
            "join", lambda layers, values: (chosen(values[one], values[other]),), [one, other], self.maps[one]
        )

    def join_equal(self) -> int | None:
        """Two values that happen to have one shape."""
        source = self.source()
        other = self.partner(source, lambda a, b: a == b)
        return None if other is None else self.sum_of(source, other)

    def residual(self) -> int:
        source = self.source()
        branch = self.activation(self.batch_norm(self.conv(source, stride=1)))
        return self.sum_of(source, self.conv(branch, self.maps[source].channels, 1))

    def projected(self) -> int:
        source, width = self.source(), self.pick(WIDTHS)
        stride = 2 if self.maps[source].side in (4, 8) else 1
        branch = self.batch_norm(self.conv(source, width, stride))
        return self.sum_of(branch, self.conv(source, width, stride))

    def padded_shortcut(self) -> int:
        """Option A: subsampled, channels padded with zeros."""
        source = self.source()
        size = self.maps[source]
        stride = 2 if size.side in (4, 8) else 1
        before, after = self.below(4), self.between(1, 3)
        made = Map(size.channels + before + after, size.side // stride)
        shortcut = self.unary(
            "pad", lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after)), source, made
        )
        return self.sum_of(shortcut, self.batch_norm(self.conv(source, made.channels, stride)))

    def pad(self) -> int:
        source = self.source()
        size = self.maps[source]
        before, after = self.below(3), self.below(3)
        amounts = (1, 1, 1, 1, before, after) if self.coin(0.3) and size.side < 8 else (0, 0, 0, 0, before, after)
        made = Map(size.channels + before + after, size.side + amounts[0] + amounts[1])
        return self.unary("pad", lambda x: F.pad(x, amounts, value=0.0), source, made)

    def gate(self) -> int:
        """Squeeze and excite: as convolutions, or as linear layers seen as a map again."""
        source = self.source()
        channels, inner = self.maps[source].channels, self.pick(WIDTHS)
        spelling = self.below(3)
        if spelling == 0:
            reduce, widen = self.layer(nn.Conv2d(channels, inner, 1)), self.layer(nn.Conv2d(inner, channels, 1))
        else:
            reduce, widen = self.layer(nn.Linear(channels, inner)), self.layer(nn.Linear(inner, channels))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            if spelling == 0:
                return (x * torch.sigmoid(layers[widen](F.relu(layers[reduce](x.mean((2, 3), keepdim=True))))),)
            b, c = x.shape[:2]
            pooled = F.adaptive_avg_pool2d(x, 1).view(b, c)
            scale = torch.sigmoid(layers[widen](F.silu(layers[reduce](pooled)))).view(b, c, 1, 1)
            return (x * scale.expand_as(x) if spelling == 1 else scale * x,)

        return self.add(f"gate{spelling}", step, [source], self.maps[source])

    def cat(self) -> int | None:
        source = self.source()
        parts = [source]
        for _ in range(self.between(1, 2)):
            other = self.partner(source, lambda a, b: a.side == b.side)
            if other is None:
                return None
            parts.append(other)
        made = Map(sum(self.maps[i].channels for i in parts), self.maps[source].side)
        if made.channels > 40:
            return None
        place = self.pick((1, -3))
        return self.add("cat", lambda layers, values: (torch.cat([values[i] for i in parts], dim=place),), parts, made)

    # Cutting -----------------------------------------------------------------------------------------------------

    def cuts(self, total: int) -> list[int]:
        """Random sizes that add up to `total`."""
        count = min(self.between(2, 3), total)
        places = sorted(int(p) for p in self.rng.choice(np.arange(1, total), count - 1, replace=False))
        return [end - start for start, end in zip([0, *places], [*places, total], strict=True)]

    def split(self) -> int:
        source = self.source()
        size = self.maps[source]
        if size.channels == 1:
            return self.conv(source)
        sizes = self.cuts(size.channels)
        makes = [Map(n, size.side) for n in sizes]
        return self.add("split", lambda layers, values: torch.split(values[source], sizes, dim=1), [source], *makes)

    def chunk(self) -> int:
        source = self.source()
        size = self.maps[source]
        count = self.pick((2, 2, 3))
        step = -(-size.channels // count)
        sizes = [min(step, size.channels - start) for start in range(0, size.channels, step)]
        makes = [Map(n, size.side) for n in sizes]
        return self.add("chunk", lambda layers, values: values[source].chunk(count, 1), [source], *makes)

    def swapped_halves(self) -> int:
        """Chunk, one half convolved, joined in another order."""
        source = self.source()
        size = self.maps[source]
        if size.channels % 2:
            return self.conv(source)
        half = size.channels // 2
        at = self.layer(nn.Conv2d(half, half, 1))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            a, b = values[source].chunk(2, dim=1)
            return (torch.cat((b, layers[at](a)), 1),)

        return self.add("swapped_halves", step, [source], size)

    def folded_halves(self) -> int:
        """Two halves of one axis, added."""
        source = self.source()
        size = self.maps[source]
        if size.channels % 2:
            return self.conv(source)
        half = size.channels // 2
        chosen = self.coin()

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            if chosen:
                a, b = torch.split(x, half, 1)
                return (a + b,)
            return (x[:, :half] * torch.sigmoid(x[:, half:]),)

        return self.add("folded_halves", step, [source], Map(half, size.side))

    def slices(self) -> int:
        source = self.source()
        size = self.maps[source]
        if size.channels < 3:
            return self.conv(source)
        k = self.between(1, size.channels - 1)
        start = self.below(k)
        options: tuple[tuple[Callable[[Tensor], Tensor], int], ...] = (
            (lambda x: x[:, :k], k),
            (lambda x: x[:, k:], size.channels - k),
            (lambda x: x[:, start:k], k - start),
            (lambda x: x[:, -k:], k),
            (lambda x: x[..., :k, :, :], k),
            (lambda x: x[:, None, :k].squeeze(1), k),
            (lambda x: x[:, ::2], -(-size.channels // 2)),
        )
        function, made = options[self.below(len(options))]
        return self.unary(f"slice:{k}", function, source, Map(made, size.side))

    def sliced_in_place(self) -> int:
        """A view of some channels is written to; the whole is read after."""
        source = self.source()
        k = self.between(1, self.maps[source].channels)

        def function(x: Tensor) -> Tensor:
            x = x * 1.5
            x[:, :k].mul_(0.5)
            return x

        return self.unary("sliced_in_place", function, source)

    # Reshaping ---------------------------------------------------------------------------------------------------

    def shuffle(self) -> int:
        source = self.source()
        groups = self.divisor(self.maps[source].channels)

        def function(x: Tensor) -> Tensor:
            n, c, h, w = x.size()
            return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

        return self.unary(f"shuffle{groups}", function, source)

    def groups_as_batch(self) -> int:
        """Groups of channels seen as examples, a convolution on them, and back."""
        source = self.source()
        size = self.maps[source]
        groups = self.divisor(size.channels)
        inner = size.channels // groups
        at = self.layer(nn.Conv2d(inner, inner, 1))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            b, c, h, w = x.shape
            return (layers[at](x.reshape(b * groups, c // groups, h, w)).reshape(b, -1, h, w),)

        return self.add(f"groups_as_batch{groups}", step, [source], size)

    def averaged_groups(self) -> int:
        """A mean over groups, and one over what is in a group."""
        source = self.source()
        size = self.maps[source]
        groups = self.divisor(size.channels)
        inner, over = size.channels // groups, self.pick((1, 2))
        made = Map(inner if over == 1 else groups, size.side)
        return self.unary("averaged_groups", lambda x: torch.unflatten(x, 1, (groups, inner)).mean(over), source, made)

    def tokens(self) -> int:
        """A linear layer over the channels, with the map as tokens or channels last."""
        source = self.source()
        size, width, last = self.maps[source], self.pick(WIDTHS), self.coin()
        at = self.layer(nn.Linear(size.channels, width, bias=self.coin()))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            b, _, h, w = x.shape
            if last:
                return (layers[at](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous(),)
            return (layers[at](x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, width, h, w),)

        return self.add("tokens", step, [source], Map(width, size.side))

    def attention(self) -> int:
        """Self-attention over the map, with the projections fused or apart."""
        source = self.source()
        size = self.maps[source]
        heads, depth, fused, kernel = self.pick((1, 2, 3)), self.pick((2, 4)), self.coin(), self.coin()
        width = heads * depth
        parts = [self.layer(nn.Linear(size.channels, 3 * width))] if fused else []
        parts = parts or [self.layer(nn.Linear(size.channels, width)) for _ in range(3)]
        out = self.layer(nn.Linear(width, size.channels))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            b, c, h, w = x.shape
            t = x.flatten(2).transpose(1, 2)
            qkv = layers[parts[0]](t).chunk(3, -1) if fused else [layers[i](t) for i in parts]
            q, k, v = (y.view(b, h * w, heads, depth).transpose(1, 2) for y in qkv)
            if kernel:
                y = F.scaled_dot_product_attention(q, k, v)
            else:
                y = ((q @ k.transpose(-2, -1)) * depth**-0.5).softmax(-1) @ v
            y = layers[out](y.transpose(1, 2).reshape(b, h * w, width))
            return (y.transpose(1, 2).reshape(b, c, h, w),)

        return self.add(f"attention{heads}", step, [source], size)

    def bottleneck_vector(self) -> int:
        """The flattened map through linear layers, seen as another map."""
        source = self.source()
        size = self.maps[source]
        if size.side > 4:
            return self.pool()
        width = self.pick((2, 3, 4, 6))
        into = self.layer(nn.Linear(size.channels * size.side**2, width * size.side**2))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            y = F.relu(layers[into](x.contiguous().view(x.size(0), -1)))
            return (y.view(-1, width, *x.shape[2:]),)

        return self.add("bottleneck_vector", step, [source], Map(width, size.side))

    def gram(self) -> int:
        """Channels mixed by their products; a dropped channel of a convolution is zero, as the products need."""
        source = self.conv()

        def function(x: Tensor) -> Tensor:
            f = x.flatten(2)
            mixed = torch.bmm(torch.tanh(f @ f.transpose(1, 2) / f.shape[-1]), f)
            return mixed.view(x.shape)

        return self.unary("gram", function, source)

    def pool(self) -> int:
        source = self.source()
        size = self.maps[source]
        if size.side < 2 or size.side % 2:
            return self.batch_norm(source)
        modules = (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(size.side // 2))
        return self.module("pool", modules[self.below(3)], source, Map(size.channels, size.side // 2))

    def upsample(self) -> int:
        source = self.source()
        size = self.maps[source]
        if size.side > 4:
            return self.pool()
        return self.unary(
            "upsample", lambda x: F.interpolate(x, scale_factor=2.0), source, Map(size.channels, 2 * size.side)
        )

    def spread_mean(self) -> int:
        """The mean of every channel, expanded to the map and taken from it."""
        return self.unary(
            "spread_mean", lambda x: x - x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:]), self.source()
        )

    # Transformers and their kin ------------------------------------------------------------------------------------

    def layer_norm(self) -> int:
        """A norm over the channels of every place."""
        source = self.source()
        size = self.maps[source]
        make = nn.LayerNorm if self.coin(0.7) else nn.RMSNorm
        at = self.layer(make(size.channels, eps=1e-3, elementwise_affine=self.coin(0.7)))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            return (layers[at](values[source].permute(0, 2, 3, 1)).movedim(-1, 1),)

        return self.add("layer_norm", step, [source], size)

    def response_norm(self) -> int:
        """Channels scaled by their norm over the map, over the mean of all norms; dropped ones are zero."""
        source = self.conv()

        def function(x: Tensor) -> Tensor:
            norms = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x + x * (norms / (norms.mean(1, keepdim=True) + 0.1))

        return self.unary("response_norm", function, source)

    def channel_statistic(self) -> int:
        """Every place scaled by what all its channels have in common."""
        functions: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
            lambda x: x * torch.sigmoid(x.sum(1, keepdim=True)),
            lambda x: x + x.amax(dim=1, keepdim=True),
            lambda x: (
                x * torch.sigmoid(torch.cat([x.mean(dim=1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, True))
            ),
            lambda x: F.normalize(x, dim=1),
        )
        return self.unary("channel_statistic", functions[self.below(len(functions))], self.source())

    def layer_scale(self) -> int:
        """A residual branch with a scale for every channel."""
        source = self.source()
        channels = self.maps[source].channels
        branch = self.conv(source, channels, 1)
        at = self.parameter(channels, *(() if self.coin() else (1, 1)))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            scale: Any = layers[at]
            return (values[source] + values[branch] * scale.value.view(-1, 1, 1),)

        return self.add("layer_scale", step, [source, branch], self.maps[source])

    def position(self) -> int:
        """A stored map added to all examples."""
        source = self.source()
        size = self.maps[source]
        at = self.parameter(1, size.channels, size.side, size.side)

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            stored: Any = layers[at]
            return (values[source] + stored.value,)

        return self.add("position", step, [source], size)

    def parameter(self, *shape: int) -> int:
        return self.layer(Stored(torch.randn(shape) * 0.5))

    def einsum(self) -> int:
        source, width = self.source(), self.pick(WIDTHS)
        size = self.maps[source]
        at = self.parameter(width, size.channels)

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            stored: Any = layers[at]
            return (torch.einsum("bchw,oc->bohw", values[source], stored.value),)

        return self.add("einsum", step, [source], Map(width, size.side))

    def whole_attention(self) -> int:
        """torch's own attention module over the map."""
        source = self.source()
        size = self.maps[source]
        heads = self.divisor(size.channels)
        at = self.layer(nn.MultiheadAttention(size.channels, heads, bias=self.coin(), batch_first=True))
        weights = self.coin(0.3)

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            t = values[source].flatten(2).transpose(1, 2)
            y = layers[at](t, t, t, need_weights=weights)[0]
            return (y.transpose(1, 2).unflatten(2, values[source].shape[2:]),)

        return self.add(f"whole_attention{heads}", step, [source], size)

    def fused_attention(self) -> int:
        """Projections in one layer, taken apart as an axis of three, with a bias read from a table by number."""
        source = self.source()
        size = self.maps[source]
        heads, depth, count = self.pick((1, 2, 3)), self.pick((2, 4)), size.side**2
        into, out = (
            self.layer(nn.Linear(size.channels, 3 * heads * depth)),
            self.layer(nn.Linear(heads * depth, size.channels)),
        )
        table, numbers = self.parameter(9, heads), torch.arange(count * count).reshape(count, count) % 9
        spelling, biased = self.below(3), self.coin()

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            b, _, h, w = values[source].shape
            t = values[source].flatten(2).transpose(1, 2)
            y = layers[into](t)
            if spelling == 0:
                q, k, v = y.reshape(b, h * w, 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
            elif spelling == 1:
                parts = y.view(b, h * w, 3, heads, depth).transpose(1, 3)
                q, k, v = parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
            else:
                q, k, v = y.view(b, h * w, heads, 3 * depth).transpose(1, 2).chunk(3, dim=-1)
            scores = (q * depth**-0.5) @ k.transpose(-2, -1)
            if biased:
                stored: Any = layers[table]
                scores = scores + stored.value[numbers.view(-1)].view(count, count, -1).permute(2, 0, 1).unsqueeze(0)
            y = layers[out]((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
            return (y.mT.reshape(b, -1, h, w),)

        return self.add(f"fused_attention{spelling}", step, [source], size)

    def windows(self) -> int:
        """The map in windows as examples of their own, rolled before and after."""
        source = self.source()
        size = self.maps[source]
        if size.side % 2:
            return self.layer_norm()
        at, shift = self.layer(nn.Linear(size.channels, size.channels)), self.below(2)

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            b, c, h, w = values[source].shape
            x = (
                torch.roll(values[source].permute(0, 2, 3, 1), (-shift, -shift), (1, 2))
                if shift
                else values[source].permute(0, 2, 3, 1)
            )
            x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
            x = layers[at](x).view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            return (torch.roll(x, (shift, shift), (1, 2)).permute(0, 3, 1, 2).contiguous(),)

        return self.add("windows", step, [source], size)

    def pixels(self) -> int:
        """Places become channels, or channels places."""
        source = self.source()
        size = self.maps[source]
        if size.side % 2 == 0 and size.channels <= 8:
            return self.unary(
                "unshuffled", lambda x: F.pixel_unshuffle(x, 2), source, Map(4 * size.channels, size.side // 2)
            )
        if size.channels % 4 == 0 and size.side <= 4:
            return self.module("shuffled", nn.PixelShuffle(2), source, Map(size.channels // 4, 2 * size.side))
        return self.pool()

    def columns(self) -> int:
        """A convolution as a linear layer over unfolded columns."""
        source, width = self.source(), self.pick(WIDTHS)
        size = self.maps[source]
        at = self.layer(nn.Linear(9 * size.channels, width))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = F.unfold(values[source], 3, padding=1).transpose(1, 2)
            return (layers[at](x).transpose(1, 2).unflatten(2, (size.side, size.side)),)

        return self.add("columns", step, [source], Map(width, size.side))

    def gated_halves(self) -> int:
        source = self.source()
        size = self.maps[source]
        if size.channels % 2:
            return self.conv(source)
        return self.unary("glu", lambda x: F.glu(x, 1), source, Map(size.channels // 2, size.side))

    def copies(self) -> int:
        source = self.source()
        size = self.maps[source]
        if size.channels > 12:
            return self.conv(source)
        functions: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: x.repeat(1, 2, 1, 1),
            lambda x: torch.repeat_interleave(x, 2, dim=1),
            lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2),
        )
        return self.unary("copies", functions[self.below(3)], source, Map(2 * size.channels, size.side))

    def shuffled_unit(self) -> int:
        """One half passes, the other is convolved, both are shuffled into each other."""
        source = self.source()
        size = self.maps[source]
        if size.channels % 2:
            return self.conv(source)
        half = size.channels // 2
        at = self.layer(nn.Conv2d(half, half, 1))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            a, b = values[source].chunk(2, dim=1)
            x = torch.cat((a, layers[at](b)), 1)
            n, c, h, w = x.shape
            return (x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w),)

        return self.add("shuffled_unit", step, [source], size)

    def branches(self) -> int:
        """Two convolutions of one value, joined; either may go."""
        source, left, right = self.source(), self.pick(WIDTHS), self.pick(WIDTHS)
        size = self.maps[source]
        one, other = (
            self.layer(nn.Conv2d(size.channels, left, 1)),
            self.layer(nn.Conv2d(size.channels, right, 3, padding=1)),
        )

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = values[source]
            return (torch.cat([F.relu(layers[one](x)), F.relu(layers[other](x))], 1),)

        return self.add("branches", step, [source], Map(left + right, size.side))

    # Sharing -----------------------------------------------------------------------------------------------------

    def shared(self) -> int:
        """One convolution called twice in a row, with one norm."""
        source = self.source()
        size = self.maps[source]
        conv = self.layer(nn.Conv2d(size.channels, size.channels, 3, padding=1))
        norm = self.layer(nn.BatchNorm2d(size.channels))

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            x = F.relu(layers[norm](layers[conv](values[source])))
            return (layers[norm](layers[conv](x)),)

        return self.add("shared", step, [source], size)

    def siamese(self) -> int | None:
        """One convolution called on two values that have one shape."""
        source = self.source()
        other = self.partner(source, lambda a, b: a == b)
        if other is None:
            return None
        size, width = self.maps[source], self.pick(WIDTHS)
        at = self.layer(nn.Conv2d(size.channels, width, 1))
        made = Map(width, size.side)
        return self.add(
            "siamese",
            lambda layers, values: (layers[at](values[source]), layers[at](values[other])),
            [source, other],
            made,
            made,
        )

    def tied(self) -> int:
        """Two convolutions with one weight and norms of their own."""
        source, width = self.source(), self.pick(WIDTHS)
        size = self.maps[source]
        one, other = nn.Conv2d(size.channels, width, 1), nn.Conv2d(size.channels, width, 1, bias=False)
        other.weight = one.weight
        first = self.module("tied", one, source, Map(width, size.side))
        norm = self.batch_norm(self.module("tied", other, source, Map(width, size.side)))
        return self.sum_of(first, norm) if self.coin() else norm

    def unknown(self) -> int:
        """Operations that nothing can be pruned behind."""
        functions: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: torch.logcumsumexp(x, 1),
            lambda x: x.cumsum(1),
            lambda x: x.roll(1, 1),
            lambda x: torch.flip(x, (1,)),
            lambda x: x[:, [0, *range(1, x.shape[1])]],
        )
        return self.unary("unknown", functions[self.below(len(functions))], self.source())

    # Heads -------------------------------------------------------------------------------------------------------

    def heads(self) -> Step:
        """Linear layers over all values that nothing has read; sometimes one of them is an output itself."""
        loose = [i for i in range(1, len(self.maps)) if i not in self.read]
        flat = self.coin(0.4)
        sizes = [self.maps[i] for i in loose]
        features = sum(m.channels * (m.side**2 if flat and m.side <= 4 else 1) for m in sizes)
        # Always something to prune: a network may have no other group that anything reads.
        hidden, head = self.layer(nn.Linear(features, 7)), self.layer(nn.Linear(7, 5))
        bare = self.coin(0.1)

        def step(layers: Layers, values: list[Tensor]) -> Sequence[Tensor]:
            parts: list[Tensor] = []
            for i, size in zip(loose, sizes, strict=True):
                x = values[i] if flat and size.side <= 4 else F.adaptive_avg_pool2d(values[i], 1)
                parts.append(torch.flatten(x, 1))
            x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            x = layers[head](torch.tanh(layers[hidden](x)))
            return (x, values[loose[0]]) if bare else (x,)

        self.log.append(f"head{' flat' if flat else ''}{' bare' if bare else ''} of {loose}")
        return step


# Each kind of step with its weight in the draw.
KINDS: tuple[tuple[Callable[[Builder], int | None], int], ...] = (
    (Builder.conv, 4),
    (Builder.grouped, 2),
    (Builder.depthwise, 2),
    (Builder.transposed, 1),
    (Builder.functional_conv, 1),
    (Builder.batch_norm, 2),
    (Builder.group_norm, 1),
    (Builder.prelu, 1),
    (Builder.activation, 2),
    (Builder.scalars, 1),
    (Builder.join_equal, 3),
    (Builder.residual, 2),
    (Builder.projected, 1),
    (Builder.padded_shortcut, 2),
    (Builder.pad, 1),
    (Builder.gate, 2),
    (Builder.cat, 3),
    (Builder.split, 2),
    (Builder.chunk, 2),
    (Builder.swapped_halves, 2),
    (Builder.folded_halves, 2),
    (Builder.slices, 2),
    (Builder.sliced_in_place, 1),
    (Builder.shuffle, 2),
    (Builder.groups_as_batch, 1),
    (Builder.averaged_groups, 1),
    (Builder.tokens, 1),
    (Builder.attention, 1),
    (Builder.bottleneck_vector, 1),
    (Builder.gram, 1),
    (Builder.pool, 1),
    (Builder.upsample, 1),
    (Builder.spread_mean, 1),
    (Builder.shared, 1),
    (Builder.siamese, 1),
    (Builder.tied, 1),
    (Builder.unknown, 1),
    (Builder.layer_norm, 2),
    (Builder.response_norm, 1),
    (Builder.channel_statistic, 1),
    (Builder.layer_scale, 1),
    (Builder.position, 1),
    (Builder.einsum, 1),
    (Builder.whole_attention, 1),
    (Builder.fused_attention, 2),
    (Builder.windows, 1),
    (Builder.pixels, 2),
    (Builder.columns, 1),
    (Builder.gated_halves, 1),
    (Builder.copies, 1),
    (Builder.shuffled_unit, 2),
    (Builder.branches, 1),
    *RARE,
)


def random_network(seed: int, most: int = 8) -> RandomNetwork:
    """A network of at most `most` drawn steps after its stem; reads images of 3 x SIDE x SIDE, or numbers."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    builder = Builder(rng)
    builder.maps.append(Map(3, SIDE))
    words = 10 if builder.coin(0.1) else 0
    if words:
        builder.words(words)
    else:
        builder.conv(0)
    weights = np.array([weight for _, weight in KINDS], dtype=float)
    for _ in range(builder.between(2, most)):
        kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))][0]
        if kind(builder) is None:
            builder.conv()
    return RandomNetwork(builder.layers, builder.steps, builder.heads(), builder.log, words)
