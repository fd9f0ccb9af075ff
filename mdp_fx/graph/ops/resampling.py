"""Rules of ops on maps: padding, pooling, interpolation, windows, pixels that become channels and back."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, batch_dims, concat, constant, fresh, product
from mdp_fx.graph.ops.op import Op, Types, from_front
from mdp_fx.graph.ops.registry import freeze_operands, rule
from mdp_fx.graph.unify import unify

_PADS = [
    getattr(nn, f"{kind}Pad{n}d") for kind in "Zero Constant Reflection Replication Circular".split() for n in (1, 2, 3)
]


@rule(F.pad, *_PADS, args="input pad mode value")
def pad(op: Op) -> Types:
    """Constant entries around an axis are fresh Dims, whose amounts are written again where they are arguments.

    What is padded with entries of its own is frozen: they are picked by their place.
    """
    x, mode, value = op.tensor("input"), op.value("mode", "constant"), op.value("value")
    if any(batch_dims(axis) for axis in x[1:]):
        return freeze_operands(op, "padding that cannot be followed")
    is_function = op.node.op == "call_function"
    amounts = list(op.value("pad" if is_function else "padding"))
    result = list(x)
    for i in range(len(amounts) // 2):
        before, after, axis = amounts[2 * i], amounts[2 * i + 1], x[-1 - i]
        if not before and not after:
            continue
        if is_function and mode == "constant" and min(before, after) >= 0 and not batch_dims(axis):
            head, tail = fresh(before), fresh(after)
            amounts[2 * i], amounts[2 * i + 1] = head, tail
            result[-1 - i] = concat(head, axis, tail)
        else:
            op.freeze([axis], "padded", batch=True)
            result[-1 - i] = constant(op.shapes[-1 - i])
    if is_function and mode == "constant":
        op.emit_call(F.pad, op.value("input"), amounts, mode, value)
    if not value:
        op.zero_at(*op.zero_as(op.value("input")), *(made for made in amounts if isinstance(made, Axis)))
    return tuple(result)


@rule(nn.PixelShuffle, F.pixel_shuffle, args="input upscale_factor", zeros="keep")
def pixel_shuffle(op: Op) -> Types:
    """Channels (C, r x r) become C channels of r times the side."""
    x, factor = op.tensor("input"), int(op.value("upscale_factor"))
    op.freeze(x[-2:], "spatial axis")
    channels = fresh(op.shapes[-3])
    unify(x[-3], product(channels, constant(factor * factor)), f"channels of {op.where}")
    return (*x[:-3], channels, *(constant(size) for size in op.shapes[-2:]))


@rule(nn.PixelUnshuffle, F.pixel_unshuffle, args="input downscale_factor", zeros="keep")
def pixel_unshuffle(op: Op) -> Types:
    """C channels become (C, r x r) channels of one r-th of the side."""
    x, factor = op.tensor("input"), int(op.value("downscale_factor"))
    op.freeze(x[-2:], "spatial axis")
    channels = product(x[-3], constant(factor * factor))
    return (*x[:-3], channels, *(constant(size) for size in op.shapes[-2:]))


@rule(nn.Unfold, F.unfold, zeros="keep")
def unfold(op: Op) -> Types:
    """Maps (B, C, H, W) become columns (B, (C, kernel), places)."""
    x = op.tensor("input")
    op.freeze(x[-2:], "spatial axis")
    columns = product(x[-3], constant(op.shapes[-2] // x[-3].size))
    return (*x[:-3], columns, constant(op.shapes[-1]))


@rule(nn.Fold, F.fold, zeros="keep")
def fold(op: Op) -> Types:
    """Columns (B, (C, kernel), places) become maps (B, C, H, W)."""
    x = op.tensor("input")
    channels = fresh(op.shapes[-3])
    op.freeze(x[-1:], "spatial axis")
    unify(x[-2], product(channels, constant(x[-2].size // channels.size)), f"channels of {op.where}")
    return (*x[:-2], channels, *(constant(size) for size in op.shapes[-2:]))


@rule(".unfold", args="input dimension size step", zeros="keep")
def sliding_windows(op: Op) -> Types:
    """Windows of an axis, with their entries on a new last axis."""
    x = op.tensor("input")
    place = from_front(op.value("dimension"), len(x))
    op.freeze([x[place]], "seen through windows", batch=True)
    windows, entries = constant(op.shapes[place]), constant(op.shapes[-1])
    return (*x[:place], windows, *x[place + 1 :], entries)


@rule(F.grid_sample, args="input grid")
def grid_sample(op: Op) -> Types:
    """Maps (B, C, ...) read at the places of a grid (B, ..., rank)."""
    x, grid = op.tensor("input"), op.tensor("grid")
    op.freeze((*x[2:], *grid[1:]), "spatial axis")
    unify(x[0], grid[0], f"examples of {op.where}")
    op.zero_at(*op.zero_as(op.value("input")))
    return (*x[:2], *grid[1:-1])


_POOLS = "max_pool{0}d avg_pool{0}d lp_pool{0}d adaptive_avg_pool{0}d adaptive_max_pool{0}d"
_POOL_MODULES = (
    "MaxPool{0}d AvgPool{0}d LPPool{0}d AdaptiveAvgPool{0}d AdaptiveMaxPool{0}d Upsample UpsamplingNearest2d "
    "UpsamplingBilinear2d"
)


def _pool_targets() -> list[Any]:
    functions = [getattr(F, name.format(rank), None) for rank in (1, 2, 3) for name in _POOLS.split()]
    functions += [getattr(torch, name.format(rank), None) for rank in (1, 2, 3) for name in _POOLS.split()]
    modules = [getattr(nn, name.format(rank), None) for rank in (1, 2, 3) for name in _POOL_MODULES.split()]
    return list(
        dict.fromkeys(target for target in [*functions, *modules, F.interpolate, F.upsample] if target is not None)
    )


@rule(*_pool_targets(), args="input", zeros="keep")
def pool(op: Op) -> Types:
    """Channels pass, spatial axes are resampled."""
    x = op.tensor("input")
    rank = re.search(r"(\d)d$", op.kind)
    if not isinstance(op.shapes, torch.Size) or len(op.shapes) != len(x) or (rank and len(x) != int(rank[1]) + 2):
        return freeze_operands(op, "pooling that cannot be followed")
    op.freeze(x[2:], "spatial axis")
    return (*x[:2], *(constant(size) for size in op.shapes[2:]))
