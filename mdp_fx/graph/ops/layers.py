"""Rules of the ops that hold weights: convolutions, linear layers, products of matrices, normalisation."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, constant, fresh, product, unify
from mdp_fx.graph.ops.elementwise import broadcast
from mdp_fx.graph.ops.registry import Op, Types, freeze_operands, rule

_CONV = "input weight bias stride padding dilation groups"


def _check_contraction(op: Op, one: str, other: str, *axes: Axis) -> None:
    """A sum over units loses what the dropped ones add, unless that is zero in one of the two factors."""
    if not op.vanishes(one) and not op.vanishes(other):
        op.freeze(axes, "units that need not be zero when dropped are multiplied with each other")


def _channel_place(x: TensorType, weight: TensorType) -> int:
    """Which axis of a convolution's operand has the channels: the first one where it has no batch."""
    return len(x) - len(weight) + 1


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d, args=_CONV)
def conv(op: Op) -> Types:
    """x (B, (G, I), ...), weight ((G, O), I, ...): dense, grouped, depthwise, and with a multiplier."""
    x, weight = op.tensor("input"), op.tensor("weight")
    place = _channel_place(x, weight)
    _check_contraction(op, "input", "weight", x[place], weight[1])
    groups = fresh(int(op.value("groups", 1)))
    outer = fresh(weight[0].size // groups.size)
    unify(weight[0], product(groups, outer), f"groups of {op.where}")
    unify(x[place], product(groups, weight[1]), f"channels of {op.where}")
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
    _check_contraction(op, "input", "weight", x[place], weight[0])
    groups = fresh(int(op.value("groups", 1)))
    inner = fresh(weight[0].size // groups.size)
    unify(weight[0], product(groups, inner), f"groups of {op.where}")
    unify(x[place], weight[0], f"channels of {op.where}")
    # Every entry of the operand meets every weight of its channel.
    op.count_macs((*x[:place], *weight, *x[place + 1 :]))
    return _convolved(op, x, place, groups, product(groups, weight[1]))


def _convolved(op: Op, x: TensorType, place: int, groups: Axis, out: Axis) -> TensorType:
    bias = op.types("bias")
    if bias is not None:
        unify(bias[0], out, f"bias of {op.where}")
    op.freeze(op.tensor("weight")[2:], "kernel axis")
    op.freeze(x[place + 1 :], "spatial axis")
    if groups.size != 1:
        op.emit("groups", groups)
    if op.node.op == "call_module":
        op.emit("in_channels", x[place])
        op.emit("out_channels", out)
    return (*x[:place], out, *(constant(size) for size in op.shapes[place + 1 :]))


@rule(nn.Linear, F.linear, args="input weight bias")
def linear(op: Op) -> Types:
    """x (..., I), weight (O, I)."""
    x, weight, bias = op.tensor("input"), op.tensor("weight"), op.types("bias")
    if len(weight) != 2:
        return freeze_operands(op, "linear layer of one unit")
    _check_contraction(op, "input", "weight", x[-1], weight[1])
    unify(x[-1], weight[1], f"features of {op.where}")
    if bias is not None:
        unify(bias[0], weight[0], f"bias of {op.where}")
    if op.node.op == "call_module":
        op.emit("in_features", weight[1])
        op.emit("out_features", weight[0])
    op.count_macs((*x[:-1], *weight))
    return (*x[:-1], weight[0])


@rule(torch.matmul, torch.bmm, operator.matmul, ".matmul", ".bmm", args="input other")
def matmul(op: Op) -> Types:
    """x (..., M, K), y (..., K, N): K is unified, M and N pass."""
    x, y = op.tensor("input"), op.tensor("other")
    _check_contraction(op, "input", "other", x[-1])
    unify(x[-1], y[-2] if len(y) > 1 else y[-1], f"inner axis of {op.where}")
    result: TensorType
    if len(y) == 1:
        result = x[:-1]
    elif len(x) == 1:
        result = (*y[:-2], y[-1])
    else:
        result = (*broadcast(op, [x[:-2], y[:-2]]), x[-2], y[-1])
    op.count_macs((*result, x[-1]))
    return result


@rule(F.scaled_dot_product_attention, args="query key value attn_mask dropout_p is_causal scale enable_gqa")
def attention(op: Op) -> Types:
    """q (..., L, D), k (..., S, D), v (..., S, E): D is shared by q and k, E passes; the dense scale is written out."""
    if op.value("enable_gqa"):
        return freeze_operands(op, "attention with fewer key heads")
    q, k, v = op.tensor("query"), op.tensor("key"), op.tensor("value")
    _check_contraction(op, "query", "key", q[-1])
    unify(q[-1], k[-1], f"query and key of {op.where}")
    op.freeze([k[-2], v[-2], q[-2]], "softmax over the axis")
    outer = broadcast(op, [q[:-2], k[:-2], v[:-2]])
    mask = op.types("attn_mask")
    if mask is not None:
        op.freeze(mask[-2:], "attention mask")
        outer = broadcast(op, [outer, mask[:-2]])
    if op.value("scale") is None:
        scale = {"scale": float(q[-1].size) ** -0.5}
        op.emit_call(F.scaled_dot_product_attention, *op.node.args, **{**op.node.kwargs, **scale})
    op.count_macs((*outer, q[-2], k[-2], q[-1]), (*outer, q[-2], v[-2], v[-1]))
    return (*outer, q[-2], v[-1])


@rule(
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    F.batch_norm,
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    args="input running_mean running_var weight bias",
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
    return x


@rule(
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    F.instance_norm,
    args="input running_mean running_var weight bias",
)
def instance_norm(op: Op) -> Types:
    """As a batch norm, with the statistics of each example's places."""
    x = op.tensor("input")
    if op.node.op == "call_module" and f"{len(x) - 2}d" not in op.kind:
        return freeze_operands(op, "one example without a batch axis")
    op.freeze(x[2:], "normalised together")
    return channel_norm(op)


@rule(nn.GroupNorm, F.group_norm, args="input num_groups weight bias eps")
def group_norm(op: Op) -> Types:
    """x (B, (G, I), ...): whole groups may go, what is inside a group is normalised together."""
    x = op.tensor("input")
    op.freeze(x[2:], "normalised together")
    groups = fresh(int(op.value("num_groups")))
    inner = constant(x[1].size // groups.size)
    unify(x[1], product(groups, inner), f"normalised together at {op.where}")
    for name in ("weight", "bias"):
        types = op.types(name)
        if types is not None:
            unify(types[0], x[1], f"channels of {op.where}")
    op.emit("num_groups", groups)
    if op.node.op == "call_module":
        op.emit("num_channels", x[1])
    op.mark_scales("weight", "bias")
    return x


@rule(
    nn.LayerNorm,
    F.layer_norm,
    nn.RMSNorm,
    "torchvision.models.convnext.LayerNorm2d",
    "timm.layers.norm.LayerNorm2d",
    args="input normalized_shape weight bias eps",
)
def layer_norm(op: Op) -> Types:
    """The mean over units would change with them: all normalised axes are frozen."""
    x = op.tensor("input")
    op.freeze(x, "normalised together")
    for name in ("weight", "bias"):
        op.freeze(op.types(name) or (), "normalised together")
    return x


@rule(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(op: Op) -> Types:
    """Neighbouring channels are normalised together."""
    x = op.tensor("input")
    op.freeze(x[1:2], "neighbouring channels normalised together")
    return x


@rule(nn.PReLU, F.prelu, args="input weight")
def prelu(op: Op) -> Types:
    """One slope per channel, or one for all."""
    x, weight = op.tensor("input"), op.tensor("weight")
    if weight[0].size > 1:
        unify(weight[0], x[1], f"slopes of {op.where}")
        if op.node.op == "call_module":
            op.emit("num_parameters", x[1])
    return x
