"""Every rule on random small shapes and arguments: types have the real shapes, and what is pruned is pruned right.

MDP_FX_FUZZ sets how many calls each rule is tried with.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.graph.ops import registry
from mdp_fx.graph.purity import target_name
from mdp_fx.passes.choices import Analysis
from tests.graph.small import FLOAT64_LIMIT, net
from tests.pruning import error, joined, prune_randomly

Shape: TypeAlias = tuple[int, ...]
ATTEMPTS = 60
CALLS = int(os.environ.get("MDP_FX_FUZZ", "4"))


@dataclass(frozen=True)
class Target:
    """What a rule is registered for: a function, the name of a method, a module's class."""

    key: Any

    @property
    def name(self) -> str:
        return target_name(self.key) if not self.is_module else str(self.key.__name__)

    @property
    def is_module(self) -> bool:
        return isinstance(self.key, type)

    @property
    def rank(self) -> int:
        """Spatial axes, where the name says how many."""
        digits = [int(letter) for letter in self.name if letter.isdigit()]
        return digits[-1] if digits else 2


@dataclass
class Example:
    """One call.

    Attributes:
        operands: shapes, but for the batch, of what layers give; or stored tensors.
        arguments: the positional arguments, from the operands.
        options: arguments by name.
        layer: the arguments of a module's constructor.
    """

    operands: Sequence[Shape | Tensor]
    arguments: Callable[..., tuple[Any, ...]] = lambda *operands: operands
    options: dict[str, Any] = field(default_factory=dict)
    layer: dict[str, Any] = field(default_factory=dict)


class Dice(random.Random):
    """Random sizes, axes and stored tensors."""

    def size(self) -> int:
        return self.choice((1, 2, 3, 4, 6))

    def shape(self, least: int = 1, most: int = 3) -> Shape:
        return tuple(self.size() for _ in range(self.randint(least, most)))

    def maps(self, rank: int = 2, channels: int | None = None, side: int = 4) -> Shape:
        return (channels or self.choice((2, 4, 6, 8)), *[side] * rank)

    def axis(self, shape: Shape, first: int = 1) -> int:
        """An axis of a tensor with this shape and a batch, from the front or from the end; never the batch."""
        place = self.randint(first, len(shape))
        return self.choice((place, place - len(shape) - 1))

    def axes(self, shape: Shape) -> list[int]:
        return self.sample(range(1, len(shape) + 1), self.randint(1, len(shape)))

    def coin(self) -> bool:
        return self.random() < 0.5

    def number(self) -> float:
        return self.choice((-2, -0.3, 0, 0.3, 1, 2.0))

    def stored(self, *shape: int) -> Tensor:
        value = torch.randn(shape, generator=torch.Generator().manual_seed(self.randint(0, 99)))
        return nn.Parameter(value) if self.coin() else value

    def stretched(self, shape: Shape) -> Shape:
        """A shape that is broadcast against another."""
        return tuple(1 if self.random() < 0.2 else size for size in shape)


# What is called with what, by the name of the rule -------------------------------------------------------------------

GENERATORS: dict[str, Callable[[Dice, Target], Example]] = {}
Generator: TypeAlias = Callable[[Dice, Target], Example]


def of(*rules: str) -> Callable[[Generator], Generator]:
    """Registers the generator of rules."""

    def decorate(function: Generator) -> Generator:
        GENERATORS.update(dict.fromkeys(rules, function))
        return function

    return decorate


_MORE: dict[str, tuple[Any, ...]] = {
    "threshold": (0.1, 0.2),
    "_threshold": (0.1, 0.2),
    "full_like": (0.3,),
    "type": (torch.float64,),
    "to": (torch.float64,),
    **dict.fromkeys("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split(), (0.5, False)),
}
_WHOLE_NUMBERS = ("bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "invert", "and_", "or_", "xor")


def whole(y: Tensor) -> Tensor:
    return (3 * y).long()


@of("unary", "unary_from_zero")
def one_operand(dice: Dice, target: Target) -> Example:
    more = _MORE.get(target.name, ())
    layer = {"threshold": 0.1, "value": 0.2} if target.name == "Threshold" else {}
    shape = dice.maps(target.rank) if "ropout" in target.name else dice.shape()
    if target.name == "type_as":
        return Example([shape, dice.shape()])
    if target.name in _WHOLE_NUMBERS:
        return Example([shape], lambda y: (whole(y),))
    return Example([shape], lambda y: (y, *more), layer=layer)


@of("clamp", "clamp_one_side", "hardtanh")
def bounds(dice: Dice, target: Target) -> Example:
    shape, low = dice.shape(), dice.number()
    if target.is_module:
        return Example([shape], layer={"min_val": low, "max_val": low + 1.5})
    if target.name.startswith("clamp_"):
        return Example([shape], lambda y: (y, low))
    if target.name == "clamp" and dice.coin():
        return Example([shape, dice.stretched(shape)])
    return Example([shape], lambda y: (y, low, low + 1.5))


@of("binary", "multiply", "divide", "compare")
def two_operands(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    number = dice.choice((2, 0.7)) if target.name not in _WHOLE_NUMBERS else 3
    kinds: list[Callable[[], Example]] = [
        lambda: Example([shape, dice.stretched(shape)]),
        lambda: Example([dice.stored(*dice.stretched(shape)), shape]),
        lambda: Example([shape, dice.stored(*shape[dice.randint(0, len(shape)) :])]),
        lambda: Example([shape], lambda y: (y, number)),
        lambda: Example([shape], lambda y: (y, y)),
        lambda: Example([(shape[0],)], lambda y: (y.unsqueeze(1), y.sigmoid().unsqueeze(2))),
    ]
    example = dice.choice(kinds)()
    if target.name in _WHOLE_NUMBERS:
        plain = example.arguments
        example.arguments = lambda *y: tuple(whole(v) if isinstance(v, Tensor) else v for v in plain(*y))
    return example


@of("power")
def power(dice: Dice, target: Target) -> Example:
    shape, exponent = dice.shape(), dice.choice((0, 1, 2, 3.0, -2))
    if dice.coin():
        return Example([shape], lambda y: (y, exponent))
    return Example([shape, dice.stretched(shape)], lambda y, z: dice.choice(((y.abs(), z), (y.exp(), z), (0.7, y))))


@of("ternary")
def three_operands(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    shapes = [shape, dice.stretched(shape), dice.stretched(shape)]
    if target.name == "where":
        order = (1, 0, 2) if isinstance(target.key, str) else (0, 1, 2)
        return Example(shapes, lambda *y: tuple((y[i] > 0) if i == 0 else y[i] for i in order))
    return Example(shapes)


@of("masked_fill")
def filled(dice: Dice, target: Target) -> Example:
    shape, value = dice.shape(), dice.choice((0, 0.0, 1.5))
    return Example([shape, dice.stretched(shape)], lambda y, z: (y, z > 0, value))


def _steps(dice: Dice) -> dict[str, Any]:
    return {"stride": dice.choice((1, 2)), "padding": dice.choice((0, 1))}


@of("conv", "conv_transpose")
def convolution(dice: Dice, target: Target) -> Example:
    groups = dice.choice((1, 1, 2, 4))
    inner, outer, kernel = dice.size(), dice.size(), dice.choice((1, 2, 3))
    shape, bias, transposed = dice.maps(target.rank, groups * inner, 3), dice.coin(), "transpose" in target.name.lower()
    options = _steps(dice) | {"groups": groups}
    if target.is_module:
        sizes = {"in_channels": groups * inner, "out_channels": groups * outer, "kernel_size": kernel}
        return Example([shape], layer=sizes | options | {"bias": bias})
    out, into = (groups * inner, outer) if transposed else (groups * outer, inner)
    stored = [dice.stored(out, into, *[kernel] * target.rank), *([dice.stored(groups * outer)] if bias else [])]
    return Example([shape, *stored], options=options)


@of("linear")
def linear(dice: Dice, target: Target) -> Example:
    shape, out, bias = dice.shape(), dice.size(), dice.coin()
    if target.is_module:
        return Example([shape], layer={"in_features": shape[-1], "out_features": out, "bias": bias})
    return Example([shape, dice.stored(out, shape[-1]), *([dice.stored(out)] if bias else [])])


@of("bilinear")
def bilinear(dice: Dice, target: Target) -> Example:
    (one, *outer), other, out = dice.shape(), dice.size(), dice.size()
    shapes = [(*outer, one), (*outer, other)]
    if target.is_module:
        return Example(shapes, layer={"in1_features": one, "in2_features": other, "out_features": out})
    return Example([*shapes, dice.stored(out, one, other), *([dice.stored(out)] if dice.coin() else [])])


@of("embedding")
def embedding(dice: Dice, target: Target) -> Example:
    shape, features = dice.shape(1, 2), dice.size()
    if target.is_module:
        return Example([shape], lambda y: (whole(y).abs() % 5,), layer={"num_embeddings": 5, "embedding_dim": features})
    return Example([shape, dice.stored(5, features)], lambda y, table: (whole(y).abs() % 5, table))


@of("einsum")
def letters(dice: Dice, target: Target) -> Example:
    sizes = {letter: dice.size() for letter in "cdef"}
    spelled = ["".join(dice.sample("cdef", dice.randint(1, 3))) for _ in range(dice.randint(1, 3))]
    used = sorted(set("".join(spelled)))
    result = "".join(dice.sample(used, dice.randint(0, min(3, len(used)))))
    equation = f"{','.join('b' + s for s in spelled)}->b{result}"
    if dice.coin():
        first, second = (tuple(sizes[c] for c in s) for s in (spelled[0], spelled[-1]))
        more = dice.shape(0, 2)
        dotted = f"...{spelled[0]},{spelled[-1]}...{dice.choice(('', '->...', '->...' + spelled[0][:1]))}"
        return Example([(*more, *first), dice.stored(*second, *more[1:])], lambda *y: (dotted, *y))
    return Example([tuple(sizes[c] for c in s) for s in spelled], lambda *y: (equation, *y))


@of("matmul", "addmm")
def product(dice: Dice, target: Target) -> Example:
    rows, inner, columns, heads = (dice.size() for _ in range(4))
    flat = target.name in ("mm", "addmm")
    outer = () if flat or target.name in ("bmm", "baddbmm") or dice.coin() else (heads,)
    shapes: list[Shape | Tensor] = [(inner,), dice.stored(inner, columns)]
    if not flat:
        kinds: list[list[Shape | Tensor]] = [
            [(*outer, rows, inner), (*outer, inner, columns)],
            [(rows, inner), dice.stored(inner, columns)],
            [dice.stored(rows, inner), (*outer, inner, columns)],
            [(rows, inner), dice.stored(inner)],
            [dice.stored(inner), (inner, columns)],
        ]
        shapes = dice.choice(kinds)
    if "add" in target.name:
        added: Shape | Tensor = dice.stored(columns) if flat or dice.coin() else (rows, columns)
        shapes = [added, *shapes]
    if dice.random() < 0.2 and not flat and target.name != "baddbmm":
        return Example([(rows, inner)], lambda y: (y.sigmoid(), y.mT))
    return Example(shapes)


@of("tensordot")
def dotted(dice: Dice, target: Target) -> Example:
    rows, inner, more, columns = (dice.size() for _ in range(4))
    kinds: list[tuple[list[Shape | Tensor], Any]] = [
        ([(rows, inner), dice.stored(inner, columns)], 1),
        ([(rows, inner), dice.stored(columns, inner)], ([2], [1])),
        ([(more, inner), dice.stored(more, inner, columns)], 2),
        ([(inner, more), dice.stored(more, columns, inner)], ([-1, 1], [0, 2])),
    ]
    shapes, dims = dice.choice(kinds)
    return Example(shapes, lambda y, z: (y, z, dims))


@of("attention")
def attention(dice: Dice, target: Target) -> Example:
    heads, queries, keys, depth, value = (dice.size() for _ in range(5))
    if dice.random() < 0.3:
        shared = dice.choice((1, 2, 3))
        grouped = [(heads * shared, queries, depth), (heads, keys, depth), (heads, keys, value)]
        return Example(grouped, options={"enable_gqa": True})
    shapes: list[Shape | Tensor] = [(heads, queries, depth), (heads, keys, depth), (heads, keys, value)]
    if dice.coin():
        shapes.append(dice.stored(dice.choice((1, heads)), queries, keys))
    return Example(shapes, options={"scale": 0.4} if dice.coin() else {})


@of("whole_attention")
def whole_attention(dice: Dice, target: Target) -> Example:
    heads, depth, count = dice.choice((1, 2)), dice.choice((2, 3)), dice.size()
    sizes = {"embed_dim": heads * depth, "num_heads": heads, "batch_first": True}
    return Example([(count, heads * depth)], lambda y: (y, y, y), layer=sizes)


@of("channel_norm", "instance_norm")
def channel_norm(dice: Dice, target: Target) -> Example:
    shape = dice.maps(target.rank if target.is_module else 2)
    if target.name == "BatchNorm1d" and dice.coin():
        shape = shape[:1]
    if target.is_module:
        return Example([shape], layer={"num_features": shape[0], "affine": dice.coin()})
    # Spelled with names: torch's own function has another order.
    stored = [dice.stored(shape[0]), dice.stored(shape[0]).abs().detach() + 0.5, *[dice.stored(shape[0])] * 2]
    if target.key in (torch.batch_norm, torch.instance_norm):
        first = "instance" in target.name
        return Example([shape, *stored], lambda y, mean, var, w, b: (y, w, b, mean, var, first, 0.1, 1e-5, False))
    return Example([shape, *stored])


@of("group_norm")
def group_norm(dice: Dice, target: Target) -> Example:
    groups = dice.choice((1, 2, 3))
    shape = (groups * dice.choice((1, 2, 4)), *dice.shape(0, 2))
    if target.is_module:
        return Example([shape], layer={"num_groups": groups, "num_channels": shape[0], "affine": dice.coin()})
    scale = [dice.stored(shape[0]) for _ in range(2)] if dice.coin() else []
    return Example([shape, *scale], lambda y, *more: (y, groups, *more))


@of("layer_norm", "rms_norm")
def layer_norm(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    last = list(shape[dice.randint(0, len(shape) - 1) :])
    if target.is_module:
        return Example([shape], layer={"normalized_shape": last, "elementwise_affine": dice.coin()})
    count = dice.randint(0, 1 if "rms" in target.name else 2)
    return Example([shape, *(dice.stored(*last) for _ in range(count))], lambda y, *more: (y, last, *more))


@of("local_response_norm", "prelu", "glu", "unit_length")
def along_channels(dice: Dice, target: Target) -> Example:
    if "PReLU" in target.name or target.name == "prelu":
        shape = dice.shape()
        count = dice.choice((1, shape[0]))
        if target.is_module:
            return Example([shape], layer={"num_parameters": count})
        return Example([shape, dice.stored(count)])
    if "esponse" in target.name:
        return Example([dice.maps()], lambda y: (y,) if target.is_module else (y, 3), layer={"size": 3})
    shape = dice.shape()
    dim = dice.axis(shape)
    if target.name == "normalize":
        order = dice.choice((1.0, 2.0, 3.0, -1.0, float("inf")))
        return Example([shape], lambda y: (y, order, dice.choice((dim, [dim]))))
    return Example([shape], lambda y: (y,) if target.is_module else (y, dim), layer={"dim": dim})


# Axes that move ------------------------------------------------------------------------------------------------------


@of("flatten", "view", "unflatten", "view_as")
def reshaped(dice: Dice, target: Target) -> Example:
    shape = dice.shape(2, 3)
    dim = dice.axis(shape)
    name = target.name.lower()
    if name == "flatten":
        start = dice.randint(1, len(shape))
        end = dice.randint(start, len(shape))
        ends = {"start_dim": start, "end_dim": end}
        return Example([shape], layer=ends) if target.is_module else Example([shape], lambda y: (y, start, end))
    if name in ("squeeze", "unsqueeze"):
        alone = name == "squeeze" and dice.coin()
        return Example([shape], lambda y: (y,) if alone else (y, dim))
    parts = dice.choice(([2, -1], [-1, 2], [1, -1], [-1, 2, 3]))
    if name == "unflatten":
        layer = {"dim": dim, "unflattened_size": [shape[dim - (dim > 0)], 1]}
        if target.is_module:
            return Example([shape], layer=layer)
        return Example([shape], lambda y: (y, dim, parts))
    if "as" in name:
        return Example([shape, (shape[0] * shape[1], *shape[2:])])
    sizes = dice.choice(([-1], list(shape[::-1]), [shape[0] * shape[1], *shape[2:]], [2, -1, shape[-1]]))
    return Example([shape], lambda y: (y, (y.shape[0], *sizes)))


@of("permute", "transpose", "swapaxes", "movedim", "transposed_attribute", "swap_last")
def moved(dice: Dice, target: Target) -> Example:
    shape = dice.shape(2, 3)
    one, other = dice.axis(shape), dice.axis(shape)
    order = [0, *dice.sample(range(1, len(shape) + 1), len(shape))]
    if target.name == "permute":
        return Example([shape], lambda y: (y, order) if dice.coin() or not isinstance(target.key, str) else (y, *order))
    if target.name == "getattr":
        name = dice.choice(("T", "mT", "H", "mH", "real"))
        return Example([shape if name[0] == "m" else shape[:1]], lambda y: (y, name))
    if target.name == "t":
        return Example([shape[:1]])
    if target.name == "adjoint":
        return Example([shape])
    return Example([shape], lambda y: (y, one, other))


@of("cat", "stack")
def put_together(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    dim = dice.axis(shape)
    place = dim % (len(shape) + 1) - 1
    shapes = [shape]
    for _ in range(dice.randint(0, 2)):
        size = shape[place] if target.name == "stack" else dice.size()
        shapes.append((*shape[:place], size, *shape[place + 1 :]))
    again = dice.coin()
    return Example(shapes, lambda *y: ([*y, y[0].relu()] if again else list(y), dim))


@of("cat_along")
def put_beside(dice: Dice, target: Target) -> Example:
    shape = dice.shape(1 if target.name != "dstack" else 2)
    other = (dice.size(), *shape[1:]) if target.name == "hstack" else shape
    # Examples on top of each other are taken apart again: the head reads them by the batch.
    return Example([shape, other], lambda y, z: ([y, z] if target.name != "vstack" else [y[:1], z[1:]],))


@of("split", "unbind", "select", "getitem", "setitem", "narrow")
def taken_apart(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    dim = dice.axis(shape)
    size = shape[dim - (dim > 0)]
    if target.name in ("split", "chunk", "split_with_sizes", "tensor_split"):
        at = dice.randint(0, size)
        if target.name == "split_with_sizes":
            return Example([shape], lambda y: (y, [at, size - at], dim))
        if target.name == "tensor_split":
            places = dice.choice((1, 2, 3, (at,), (at, size), (at, dice.randint(0, size))))
            return Example([shape], lambda y: (y, places, dim))
        how = dice.choice((1, 2, 3, [at, size - at])) if target.name == "split" else dice.randint(1, 3)
        return Example([shape], lambda y: (y, how, dim))
    if target.name == "unbind":
        return Example([shape], lambda y: (y, dim))
    if target.name == "narrow":
        first = dice.randint(-size, size - 1)
        length = dice.randint(0, size - first % size)
        return Example([shape], lambda y: (y, dim, first, length))
    if target.name == "select":
        index = dice.randint(-size, size - 1)
        return Example([shape], lambda y: (y, dim, index))
    keys: list[Any] = [slice(None)]
    for part in shape[: dice.randint(0, len(shape))]:
        start, stop = dice.randint(-part, part), dice.randint(-part, part + 1)
        numbers = dice.choice((torch.tensor, list))([dice.randint(0, part - 1) for _ in range(2)])
        keys.append(
            dice.choice(
                (slice(start, stop), slice(start, None), slice(None, None, 2), start % part, numbers, slice(None))
            )
        )
    keys.insert(dice.randint(1, len(keys)), dice.choice((None, Ellipsis, slice(None))))
    if target.name == "setitem":
        keys = [slice(None), slice(0, shape[0] // 2)] if dice.coin() else keys
        last = (*([1] * (len(shape) - 1)), 1)
        return Example([shape, last], lambda y, z: (y, tuple(keys), dice.choice((0, 0.5, z.sum()))))
    return Example([shape], lambda y: (y, tuple(keys)))


@of("pad")
def padded(dice: Dice, target: Target) -> Example:
    shape = dice.maps(target.rank) if target.is_module else dice.shape()
    amounts = [dice.choice((0, 1, 2)) for _ in range(2 * dice.randint(1, len(shape)))]
    value = dice.choice((None, 0.0, 0.7))
    if target.is_module:
        amounts = [dice.choice((0, 1, 2)) for _ in range(2 * target.rank)]
        return Example([shape], layer={"padding": amounts} | ({"value": 0.5} if "Constant" in target.name else {}))
    if dice.random() < 0.3:
        return Example([shape], lambda y: (y, amounts[:2], dice.choice(("reflect", "circular"))))
    return Example([shape], lambda y: (y, amounts, "constant", value))


@of("expand", "repeat", "repeat_interleave")
def copied(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    counts = [1, *(dice.choice((1, 2, 3)) for _ in shape)]
    if target.name == "repeat_interleave":
        dim, count = dice.axis(shape), dice.choice((1, 2, 3))
        return Example([shape], lambda y: (y, count, dim))
    if target.name in ("repeat", "tile"):
        several = isinstance(target.key, str) and dice.coin()
        return Example([shape], lambda y: (y, *counts) if several else (y, counts))
    if target.name == "expand_as":
        return Example([dice.stretched(shape), shape])
    return Example([dice.stretched(shape)], lambda y: (y, (y.shape[0], *shape)))


@of("roll", "flip", "in_order", "softmax", "sliding_windows")
def along_an_axis(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    dim = dice.axis(shape)
    if target.name == "roll":
        return Example([shape], lambda y: (y, 2, dim))
    if target.name == "flip":
        dims = dice.axes(shape)
        return Example([shape], lambda y: (y, dims))
    if target.name == "unfold":
        return Example([shape], lambda y: (y, dim, dice.choice((1, 2)), dice.choice((1, 2))))
    return Example([shape], lambda y: (y,) if target.is_module else (y, dim), layer={"dim": dim})


@of("pixel_shuffle", "pixel_unshuffle", "unfold", "fold", "grid_sample", "pool")
def on_maps(dice: Dice, target: Target) -> Example:
    name, rank, channels = target.name.lower(), target.rank, dice.choice((2, 3, 4))
    layer: dict[str, Any]
    if name.startswith("pixel"):
        shuffle = name.replace("_", "") == "pixelshuffle"
        shape = dice.maps(2, 4 * channels, 2) if shuffle else dice.maps(2, channels)
        layer = {"upscale_factor" if shuffle else "downscale_factor": 2}
        return Example([shape], lambda y: (y,) if target.is_module else (y, 2), layer=layer)
    if name == "unfold":
        layer = {"kernel_size": dice.choice((1, 2, (3, 1)))} | _steps(dice)
        return Example([dice.maps()], layer=layer, options={} if target.is_module else layer)
    if name == "fold":
        layer = {"output_size": (3, 4), "kernel_size": 2}
        return Example([(4 * channels, 6)], layer=layer, options={} if target.is_module else layer)
    if name == "grid_sampler" or name == "grid_sample":
        return Example([dice.maps(), (3, 2, 2)], options={"align_corners": False})
    if "upsampl" in name or name == "interpolate":
        mode = {} if "arest" in name or "linear" in name else {"mode": "nearest"}
        layer = {"scale_factor": 2} | mode
        shape = dice.maps(2 if "2d" in name else dice.choice((1, 2)), channels, 3)
        return Example([shape], layer=layer, options={} if target.is_module else layer)
    size = dice.choice((1, 2))
    if "adaptive" in name:
        return Example(
            [dice.maps(rank)], lambda y: (y,) if target.is_module else (y, size), layer={"output_size": size}
        )
    layer = {"kernel_size": 2} | ({"norm_type": 2.0} if "lp" in name else {})
    more = (2.0, 2) if "lp" in name else (2,)
    return Example([dice.maps(rank)], lambda y: (y,) if target.is_module else (y, *more), layer=layer)


@of("index_select", "gather")
def by_number(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    dim = dice.axis(shape)
    size = shape[dim - (dim > 0)]
    order = torch.tensor(dice.sample(range(size), dice.choice((size, size, max(1, size - 1)))))
    if target.name == "index_select":
        return Example([shape], lambda y: (y, dim, order))
    arguments = (lambda y: (y, y.argsort(0), dim)) if "along" in target.name else (lambda y: (y, dim, y.argsort(0) * 0))
    return Example([shape], arguments)


@of("reduce", "norm", "linalg_norm")
def reduced(dice: Dice, target: Target) -> Example:
    shape = dice.shape()
    several = target.name in "mean sum amax amin std var std_mean var_mean logsumexp".split() or "norm" in target.name
    dim: Any = dice.axes(shape) if several and dice.coin() else dice.axis(shape)
    keep = {"keepdim": dice.coin()}
    if "norm" in target.name:
        order = dice.choice((2, 1, 3.0, float("inf"), -1))
        return Example([shape], lambda y: (y, order, dim[:1] if isinstance(dim, list) else dim), options=keep)
    if dice.random() < 0.2:
        return Example([shape], options={})
    return Example([shape], lambda y: (y, dim), options=keep)


# Networks ------------------------------------------------------------------------------------------------------------

RANDOM = ("rand_like", "randn_like", "empty_like")
ELSEWHERE = ("cuda", "view_as_real", "real", "not_", "BoxPooling")
"""What needs a device, numbers or boxes that are not here (see tests/detectors), or is no call, or gives no tensor."""


FROZEN = ("gather", "whole_attention", "local_response_norm", "setitem")
"""Rules that leave little or nothing free."""


def targets() -> dict[str, list[Target]]:
    """Every target of torch's own, by the name of its rule."""
    found: dict[str, list[Target]] = {}
    for table in (registry._FUNCTIONS, registry._METHODS, registry._MODULES):
        for key, entry in dict[Any, Any](table).items():
            target = Target(key)
            if target.name not in (*RANDOM, *ELSEWHERE):
                found.setdefault(entry.rule.__name__, []).append(target)
    return found


TARGETS = targets()


def hidden(dice: Dice, shape: Shape) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """A layer that gives a tensor of a shape for images 3 x 4 x 4, and what is done with it."""
    after = dice.choice((torch.relu, torch.sigmoid, torch.tanh, torch.neg, torch.neg))
    if len(shape) == 3 and max(shape[1:]) <= 4 and dice.coin():
        return nn.Conv2d(3, shape[0], 1), lambda layer, x: after(layer(x[:, :, : shape[1], : shape[2]]))
    if len(shape) == 2 and dice.coin():
        return nn.Linear(3, shape[1]), lambda layer, x: after(layer(x.flatten(2).mT[:, : shape[0]]))
    entries = int(np.prod(shape))
    if len(shape) < 2:
        return nn.Linear(3, entries), lambda layer, x: after(layer(x.mean((2, 3)))).reshape(x.shape[0], *shape)
    return nn.Linear(3, entries), lambda layer, x: torch.unflatten(after(layer(x.mean((2, 3)))), 1, shape)


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def _stored(name: str, net: Any, x: Tensor) -> Any:
    return getattr(net, name)


def _applied(name: str, function: Callable[[nn.Module, Tensor], Tensor], net: Any, x: Tensor) -> Tensor:
    return function(getattr(net, name), x)


def network(dice: Dice, target: Target, x: Tensor) -> nn.Module:
    """Layers, the op, and a head that reads all of its results.

    Raises:
        Exception: torch refuses the call.
    """
    example = GENERATORS[rule_of(target)](dice, target)
    layers: dict[str, nn.Module | Tensor] = {}
    # A module may be called again, with operands of its own.
    turns: list[list[Callable[[Any, Tensor], Tensor]]] = [[] for _ in range(1 + (target.is_module and dice.coin()))]
    for turn, steps in enumerate(turns):
        for i, operand in enumerate(example.operands):
            name = f"operand{i}_{turn}"
            if isinstance(operand, Tensor):
                layers[name] = operand if isinstance(operand, nn.Parameter) else nn.Buffer(operand)
                steps.append(partial(_stored, name))
            else:
                layers[name], function = hidden(dice, operand)
                steps.append(partial(_applied, name, function))
    if target.is_module:
        layers["op"] = target.key(**example.layer)
    names = dice.coin()

    state = dice.getstate()

    def op(net: Any, x: Tensor) -> Any:
        # What a generator leaves to its arguments is drawn alike in every run.
        dice.setstate(state)
        if target.is_module:
            return [net.op(*example.arguments(*(step(net, x) for step in steps))) for steps in turns]
        arguments = example.arguments(*(step(net, x) for step in turns[0]))
        if isinstance(target.key, str):
            return getattr(arguments[0], target.key)(*arguments[1:], **example.options)
        given, named = by_name(dice, target, arguments, example.options) if names else (arguments, example.options)
        made = target.key(*given, **named)
        # What gives nothing has written to its operand.
        return arguments[0] if made is None else made

    def results(net: Any, x: Tensor) -> Tensor:
        flat = [value.to(x.dtype).reshape(x.shape[0], -1) for value in tensors(op(net, x))]
        return torch.cat(flat, 1).nan_to_num(0.0, 1.0, -1.0).clamp(-9, 9)

    with torch.no_grad():
        entries = results(net(lambda net, x: x, **layers).double(), x).shape[1]
    return net(lambda net, x: net.head(results(net, x)), **layers, head=nn.Linear(entries, 5))


def by_name(
    dice: Dice, target: Target, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function by name in any order, as far as their names are known."""
    entry = registry._find(target.key)
    assert entry is not None
    try:
        parameters = inspect.signature(target.key).parameters.values()
        names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    except (TypeError, ValueError):
        names = entry.names
    if len(names) < len(arguments):
        return arguments, options
    named = [*zip(names, arguments, strict=False), *options.items()]
    dice.shuffle(named)
    return (), dict(named)


def rule_of(target: Target) -> str:
    entry = registry._find(target.key)
    assert entry is not None
    return entry.rule.__name__


def drawn(target: Target, seed: int, x: Tensor) -> nn.Module:
    """A network with a call that torch accepts."""
    refused: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            return network(Dice(f"{target.name} {seed} {attempt}"), target, x).double().eval()
        except Exception as failure:  # noqa: BLE001 - torch refuses in many ways
            refused = failure
    raise AssertionError(f"no call of {target.key} was accepted") from refused


def check(model: nn.Module, x: Tensor, seed: int) -> Analysis:
    """Types and shapes agree, and the pruned network is the zeroed one, for other batches too."""
    analysis, slim, zeroed, _ = prune_randomly(model, (x,), seed)
    other = x.flip(0) + 0.5
    with torch.no_grad():
        assert error(zeroed.run(x), slim(x)) <= FLOAT64_LIMIT
        dense = joined([model(x), model(other)])
        apart = error(dense, model(torch.cat([x, other]))) <= FLOAT64_LIMIT
        if analysis.graph.batch is not None and apart:
            assert error(joined([zeroed.run(x), zeroed.run(other)]), slim(torch.cat([x, other]))) <= FLOAT64_LIMIT
    return analysis


@pytest.mark.parametrize("name", TARGETS)
def test_types_fit_and_parity_holds(name: str) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    spellings = Dice(name).sample(TARGETS[name], len(TARGETS[name]))
    free = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(CALLS):
            analysis = check(drawn(spellings[seed % len(spellings)], seed, x), x, seed)
            free += any(group.size > 1 for group in analysis.groups)
    assert free or name in FROZEN


def test_every_rule_is_tried() -> None:
    assert TARGETS.keys() <= GENERATORS.keys()
    assert GENERATORS.keys() <= TARGETS.keys()
