"""Rules of the ops that hold weights: convolutions, linear layers, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, batch_dims, constant, fresh, product
from mdp_fx.graph.ops.elementwise import Zero, broadcast, zero_by_place
from mdp_fx.graph.ops.op import ConvolutionTypes, Op, Types
from mdp_fx.graph.ops.products import ONE, check_contraction
from mdp_fx.graph.ops.registry import freeze_operands, rule
from mdp_fx.graph.unify import unify

_CONV = "input weight bias stride padding dilation groups"


def _zero_where_filters_go(op: Op, result: TensorType, place: int, kept: TensorType) -> None:
    """A dropped filter's result is zero if its bias is; so is what zero operands give, without a bias.

    Args:
        op: the node.
        result: its type.
        place: the axis of the filters.
        kept: the type of the operand as far as the result has its axes.
    """
    bias, out = op.value("bias"), result[place]
    parts: list[Zero] = []
    if op.is_zero_at(op.value("weight"), out) and (bias is None or op.is_zero_at(bias, out)):
        parts.append(((out,), (out, *[ONE] * (len(result) - place - 1))))
    if bias is None:
        parts.append((op.zero_as(op.value("input")), kept))
    zero_by_place(op, result, parts)


def _channel_place(x: TensorType, weight: TensorType) -> int:
    """Which axis of a convolution's operand has the channels: the first one where it has no batch."""
    return len(x) - len(weight) + 1


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, torch.conv1d, torch.conv2d, torch.conv3d, args=_CONV)
def conv(op: Op) -> Types:
    """x (B, (G, I), ...), weight ((G, O), I, ...): dense, grouped, depthwise, and with a multiplier."""
    x, weight = op.tensor("input"), op.tensor("weight")
    place = _channel_place(x, weight)
    groups = fresh(int(op.value("groups", 1)))
    outer = fresh(weight[0].size // groups.size)
    unify(weight[0], product(groups, outer), f"groups of {op.where}")
    unify(x[place], product(groups, weight[1]), f"channels of {op.where}")
    check_contraction(op, "input", "weight", weight[1])
    result = _convolved(op, x, place, groups, product(groups, outer))
    op.count_macs((*result[:place], *weight, *result[place + 1 :]))
    return result


@rule(
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    args="input weight bias stride padding output_padding groups dilation",
)
def conv_transpose(op: Op) -> Types:
    """x (B, (G, I), ...), weight ((G, I), O, ...)."""
    x, weight = op.tensor("input"), op.tensor("weight")
    place = _channel_place(x, weight)
    groups = fresh(int(op.value("groups", 1)))
    inner = fresh(weight[0].size // groups.size)
    unify(weight[0], product(groups, inner), f"groups of {op.where}")
    unify(x[place], weight[0], f"channels of {op.where}")
    check_contraction(op, "input", "weight", weight[0])
    # Every entry of the operand meets every weight of its channel.
    op.count_macs((*x[:place], *weight, *x[place + 1 :]))
    return _convolved(op, x, place, groups, product(groups, weight[1]), transposed=True)


def _convolved(op: Op, x: TensorType, place: int, groups: Axis, out: Axis, *, transposed: bool = False) -> TensorType:
    bias = op.types("bias")
    if bias is not None:
        unify(bias[0], out, f"bias of {op.where}")
    op.freeze(op.tensor("weight")[2:], "kernel axis")
    spatial: TensorType = tuple(constant(size) for size in op.shapes[place + 1 :])
    if _is_pointwise(op):
        spatial = x[place + 1 :]
    else:
        op.freeze(x[place + 1 :], "spatial axis")
    result = (*x[:place], out, *spatial)
    kernel = tuple(axis.size for axis in op.tensor("weight")[2:])
    op.mark_convolution(
        ConvolutionTypes(
            batch=x[:place],
            inputs=x[place],
            outputs=out,
            groups=groups,
            input_sizes=x[place + 1 :],
            output_sizes=spatial,
            kernel=kernel,
            stride=_per_axis(op.value("stride", 1), len(kernel)),
            dilation=_per_axis(op.value("dilation", 1), len(kernel)),
            transposed=transposed,
        )
    )
    _zero_where_filters_go(op, result, place, (*x[:place], groups, *spatial))
    if groups.size != 1:
        op.emit("groups", groups)
    if op.node.op == "call_module":
        op.emit("in_channels", x[place])
        op.emit("out_channels", out)
    return result


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """An argument that may be one number for all spatial axes."""
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    return numbers * rank if len(numbers) == 1 else numbers


def _is_pointwise(op: Op) -> bool:
    """Whether a convolution looks at one place at a time, and gives one result for each."""
    sizes = [axis.size for axis in op.tensor("weight")[2:]]
    steps, around = op.value("stride", 1), op.value("padding", 0)
    flat = [*(steps if isinstance(steps, tuple | list) else [steps])]
    none = [*(around if isinstance(around, tuple | list) else [around])]
    return set(sizes) <= {1} and set(flat) == {1} and set(none) == {0} and not op.value("output_padding")


@rule(nn.Linear, F.linear, args="input weight bias")
def linear(op: Op) -> Types:
    """x (..., I), weight (O, I)."""
    x, weight, bias = op.tensor("input"), op.tensor("weight"), op.types("bias")
    if len(weight) != 2:
        return freeze_operands(op, "linear layer of one unit")
    unify(x[-1], weight[1], f"features of {op.where}")
    check_contraction(op, "input", "weight", weight[1])
    if bias is not None:
        unify(bias[0], weight[0], f"bias of {op.where}")
    if op.node.op == "call_module":
        op.emit("in_features", weight[1])
        op.emit("out_features", weight[0])
    op.count_macs((*x[:-1], *weight))
    result = (*x[:-1], weight[0])
    _zero_where_filters_go(op, result, len(x) - 1, (*x[:-1], ONE))
    return result


@rule(nn.Bilinear, F.bilinear, args="input1 input2 | weight bias")
def bilinear(op: Op) -> Types:
    """x (..., I), y (..., J), weight (O, I, J)."""
    x, y, weight, bias = op.tensor("input1"), op.tensor("input2"), op.tensor("weight"), op.types("bias")
    unify(x[-1], weight[1], f"features of {op.where}")
    unify(y[-1], weight[2], f"features of {op.where}")
    check_contraction(op, "input1", "weight", weight[1])
    check_contraction(op, "input2", "weight", weight[2])
    if bias is not None:
        unify(bias[0], weight[0], f"bias of {op.where}")
    if op.node.op == "call_module":
        for name, axis in zip(("out_features", "in1_features", "in2_features"), weight, strict=True):
            op.emit(name, axis)
    outer = broadcast(op, [x[:-1], y[:-1]])
    op.count_macs((*outer, *weight))
    return (*outer, weight[0])


@rule(nn.Embedding, F.embedding, args="input weight")
def embedding(op: Op) -> Types:
    """Rows of a table by number: (..., features)."""
    x, weight = op.tensor("input"), op.tensor("weight")
    op.freeze(weight[:1], "rows taken by number")
    if op.node.op == "call_module":
        op.emit("embedding_dim", weight[1])
    result = (*x, weight[1])
    zero_by_place(op, result, [(op.zero_as(op.value("weight")), weight[1:])])
    return result


@rule(
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    F.batch_norm,
    torch.batch_norm,
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    args="input running_mean running_var weight bias",
    cost="entrywise",
)
def channel_norm(op: Op) -> Types:
    """Each channel is normalised by itself: every parameter has the channels' axis."""
    x = op.tensor("input")
    for name in ("running_mean", "running_var", "weight", "bias"):
        types = op.types(name)
        if types is not None:
            unify(types[0], x[1], f"channels of {op.where}")
    if op.node.op == "call_module":
        op.emit("num_features", x[1])
    op.mark_scales("weight", "bias")
    weight, bias = op.value("weight"), op.value("bias")
    if weight is not None and all(op.is_zero_at(value, x[1]) for value in (weight, bias)) and _keeps_zero(op):
        zero_by_place(op, x, [(x[1:2], (x[1], *[ONE] * (len(x) - 2)))])
    return x


def _keeps_zero(op: Op) -> bool:
    """Whether what a norm does to its result, if anything, gives zero for zero."""
    activation = op.value("act")
    return activation is None or not bool(activation(torch.zeros(1)).any())


@rule(
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    F.instance_norm,
    torch.instance_norm,
    args="input running_mean running_var weight bias",
)
def instance_norm(op: Op) -> Types:
    """As a batch norm, with the statistics of each example's places."""
    x = op.tensor("input")
    if op.node.op == "call_module" and f"{len(x) - 2}d" not in op.kind:
        return freeze_operands(op, "one example without a batch axis")
    op.freeze(x[2:], "normalised together")
    return channel_norm(op)


@rule(nn.GroupNorm, F.group_norm, torch.group_norm, args="input num_groups weight bias eps")
def group_norm(op: Op) -> Types:
    """x (B, (G, I), ...): whole groups may go, and units of all groups alike."""
    x = op.tensor("input")
    op.freeze(x[2:], "normalised together")
    groups = fresh(int(op.value("num_groups")))
    unify(x[1], product(groups, fresh(x[1].size // groups.size)), f"normalised together at {op.where}")
    op.emit("num_groups", groups)
    if op.node.op == "call_module":
        op.emit("num_channels", x[1])
    places = (2, *range(3, len(x) + 1))
    return _normalised(op, x, x[1], places, groups=groups.size, eps=op.value("eps", 1e-5))


@rule(nn.LayerNorm, F.layer_norm, torch.layer_norm, args="input normalized_shape weight bias eps")
def layer_norm(op: Op) -> Types:
    """The last axes are normalised together: over fewer units it is another norm, and marked."""
    return _norm_of_last_axes(op, centred=True, eps=op.value("eps", 1e-5))


@rule(nn.RMSNorm, F.rms_norm, torch.rms_norm, args="input normalized_shape weight eps")
def rms_norm(op: Op) -> Types:
    """As a layer norm, around zero."""
    return _norm_of_last_axes(op, centred=False, eps=op.value("eps"))


def _norm_of_last_axes(op: Op, *, centred: bool, eps: float | None) -> Types:
    x, shape = op.tensor("input"), op.value("normalized_shape")
    first = len(x) - (1 if isinstance(shape, int) else len(shape))
    if len(x) - first > 1 and any(batch_dims(axis) for axis in x[first:]):
        return freeze_operands(op, "normalised together")
    op.emit("normalized_shape", x[first:])
    return _normalised(op, x, x[first:], range(first, len(x)), centred=centred, eps=eps)


def _normalised(
    op: Op,
    x: TensorType,
    scaled: Axis | TensorType,
    places: Sequence[int],
    *,
    groups: int | None = None,
    centred: bool = True,
    eps: float | None,
) -> Types:
    """Ties scale and shift to the axes that they belong to, and marks the node."""
    axes = (scaled,) if isinstance(scaled, Axis) else scaled
    for name in ("weight", "bias"):
        types = op.types(name)
        for mine, theirs in zip(types or (), axes if types else (), strict=True):
            unify(mine, theirs, f"normalised together at {op.where}")
    op.mark_scales("weight", "bias")
    op.mark_norm("input", places, groups=groups, centred=centred, eps=eps)
    if op.value("bias") is None or all(op.is_zero_at(op.value("bias"), axis) for axis in axes):
        # Units that are not kept have no part in the result.
        after = 0 if len(axes) > 1 else len(x) - 1 - min(places)
        zero_by_place(op, x, [(axes, (*axes, *[ONE] * after))])
    return x


@rule(nn.LocalResponseNorm, F.local_response_norm, zeros="keep")
def local_response_norm(op: Op) -> Types:
    """Neighbouring channels are normalised together."""
    x = op.tensor("input")
    op.freeze(x[1:2], "neighbouring channels normalised together")
    return x


@rule(nn.PReLU, F.prelu, ".prelu", args="input weight", zeros="keep", cost="entrywise")
def prelu(op: Op) -> Types:
    """One slope per channel, or one for all."""
    x, weight = op.tensor("input"), op.tensor("weight")
    if weight[0].size > 1:
        unify(weight[0], x[1], f"slopes of {op.where}")
        if op.node.op == "call_module":
            op.emit("num_parameters", x[1])
    return x
