"""Rules of the ops that hold weights: convolutions, linear layers, products of matrices, normalisation."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, constant, fresh, product, unify
from mdp_fx.graph.ops.elementwise import broadcast
from mdp_fx.graph.ops.registry import Op, Types, rule

_CONV = "input weight bias stride padding dilation groups"


def _spatial(op: Op, x: TensorType) -> tuple[Axis, ...]:
    """Constant spatial axes of the result; spatial axes of the operand cannot be pruned."""
    op.freeze(x[2:], "spatial axis")
    return tuple(constant(size) for size in op.shapes[2:])


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d, args=_CONV)
def conv(op: Op) -> Types:
    """x (B, (G, I), ...), weight ((G, O), I, ...): dense, grouped, depthwise, and with a multiplier."""
    x, weight = op.tensor("input"), op.tensor("weight")
    groups = fresh(int(op.value("groups", 1)))
    outer = fresh(weight[0].size // groups.size)
    unify(weight[0], product(groups, outer), f"groups of {op.where}")
    unify(x[1], product(groups, weight[1]), f"channels of {op.where}")
    return _convolved(op, x, groups, product(groups, outer))


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
    groups = fresh(int(op.value("groups", 1)))
    inner = fresh(weight[0].size // groups.size)
    unify(weight[0], product(groups, inner), f"groups of {op.where}")
    unify(x[1], weight[0], f"channels of {op.where}")
    return _convolved(op, x, groups, product(groups, weight[1]))


def _convolved(op: Op, x: TensorType, groups: Axis, out: Axis) -> Types:
    bias = op.types("bias")
    if bias is not None:
        unify(bias[0], out, f"bias of {op.where}")
    op.freeze(op.tensor("weight")[2:], "kernel axis")
    if groups.size != 1:
        op.emit("groups", groups)
    if op.node.op == "call_module":
        op.emit("in_channels", x[1])
        op.emit("out_channels", out)
    return (x[0], out, *_spatial(op, x))


@rule(nn.Linear, F.linear, args="input weight bias")
def linear(op: Op) -> Types:
    """x (..., I), weight (O, I)."""
    x, weight, bias = op.tensor("input"), op.tensor("weight"), op.types("bias")
    unify(x[-1], weight[1], f"features of {op.where}")
    if bias is not None:
        unify(bias[0], weight[0], f"bias of {op.where}")
    if op.node.op == "call_module":
        op.emit("in_features", weight[1])
        op.emit("out_features", weight[0])
    return (*x[:-1], weight[0])


@rule(torch.matmul, torch.bmm, operator.matmul, ".matmul", ".bmm", args="input other")
def matmul(op: Op) -> Types:
    """x (..., M, K), y (..., K, N): K is unified, M and N pass."""
    x, y = op.tensor("input"), op.tensor("other")
    unify(x[-1], y[-2] if len(y) > 1 else y[-1], f"inner axis of {op.where}")
    if len(y) == 1:
        return x[:-1]
    if len(x) == 1:
        return (*y[:-2], y[-1])
    return (*broadcast(op, [x[:-2], y[:-2]]), x[-2], y[-1])


@rule(F.scaled_dot_product_attention, args="query key value attn_mask dropout_p is_causal scale")
def attention(op: Op) -> Types:
    """q (..., L, D), k (..., S, D), v (..., S, E): D is shared by q and k, E passes; the dense scale is written out."""
    q, k, v = op.tensor("query"), op.tensor("key"), op.tensor("value")
    unify(q[-1], k[-1], f"query and key of {op.where}")
    op.freeze([k[-2], v[-2], q[-2]], "softmax over the axis")
    outer = broadcast(op, [q[:-2], k[:-2], v[:-2]])
    mask = op.types("attn_mask")
    if mask is not None:
        op.freeze(mask, "attention mask")
    if op.value("scale") is None:
        op.emit_call(F.scaled_dot_product_attention, *op.node.args, **op.node.kwargs, scale=float(q[-1].size) ** -0.5)
    return (*outer, q[-2], v[-1])


@rule(
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    F.batch_norm,
    F.instance_norm,
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
    return x


@rule(nn.GroupNorm, F.group_norm, args="input num_groups weight bias eps")
def group_norm(op: Op) -> Types:
    """x (B, (G, I), ...): whole groups may go, what is inside a group is normalised together."""
    x = op.tensor("input")
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
    op.freeze(x[1:], "normalised together")
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
