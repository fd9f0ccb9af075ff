"""Rules of ops that work entry by entry, with broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, constant, unify
from mdp_fx.graph.ops.registry import Op, Types, rule

_ACTIVATIONS = (
    "relu relu6 sigmoid silu hardswish hardsigmoid hardtanh gelu tanh elu selu celu leaky_relu softplus softsign "
    "mish logsigmoid dropout alpha_dropout dropout1d dropout2d dropout3d feature_alpha_dropout tanhshrink softshrink "
    "hardshrink threshold"
)
_FUNCTIONS = (
    "relu sigmoid tanh abs neg exp log log1p expm1 sqrt rsqrt square reciprocal sin cos erf sign floor ceil "
    "round clone dropout hardshrink selu celu nan_to_num positive logit"
)
_METHODS = _FUNCTIONS + " contiguous detach to float half double bfloat16 type type_as cpu cuda requires_grad_"
_MODULES = (
    "ReLU ReLU6 Sigmoid SiLU Hardswish Hardsigmoid Hardtanh GELU Tanh ELU SELU CELU LeakyReLU Softplus Softsign Mish "
    "LogSigmoid Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout Tanhshrink Softshrink "
    "Hardshrink Threshold RReLU"
)
_OTHER_PACKAGES = (
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
    "timm.layers.activations.Swish",
    "timm.layers.activations.Mish",
    "timm.layers.activations.Sigmoid",
    "timm.layers.activations.Tanh",
    "timm.layers.activations.HardSwish",
    "timm.layers.activations.HardSigmoid",
    "timm.layers.activations.HardMish",
    "timm.layers.activations.GELU",
    "timm.layers.activations.GELUTanh",
    "timm.layers.activations.QuickGELU",
)


def _named(module: Any, names: str) -> list[Any]:
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


def _unary_targets() -> list[Any]:
    functions = dict.fromkeys(_named(F, _ACTIVATIONS) + _named(torch, _FUNCTIONS) + [operator.neg, operator.pos])
    methods = [f".{name}" for name in dict.fromkeys(_METHODS.split()) if hasattr(torch.Tensor, name)]
    return [*_named(nn, _MODULES), *functions, *methods, *_OTHER_PACKAGES]


@rule(*_unary_targets(), args="input other")
def unary(op: Op) -> Types:
    """One operand, one value per entry; another one says at most the number type."""
    op.types("other")
    return op.types("input")


@rule(torch.clamp, ".clamp", torch.clip, ".clip", args="input min max")
def clamp(op: Op) -> Types:
    """Bounds may be tensors."""
    return broadcast(op, [types for types in map(op.types, ("input", "min", "max")) if types is not None])


def _binary_targets() -> list[Any]:
    names = "add sub mul div true_divide floor_divide maximum minimum pow atan2 fmod remainder"
    operators = "add sub mul truediv floordiv pow mod"
    return [
        *dict.fromkeys(_named(torch, names)),
        *_named(operator, operators),
        *(f".{name}" for name in names.split() if hasattr(torch.Tensor, name)),
    ]


@rule(*_binary_targets(), args="input other")
def binary(op: Op) -> Types:
    """Two operands, unified axis by axis with broadcasting."""
    return broadcast(op, [types for types in (op.types("input"), op.types("other")) if types is not None])


@rule(torch.addcmul, torch.addcdiv, torch.lerp, torch.where, args="input other third")
def ternary(op: Op) -> Types:
    """Three operands, unified axis by axis with broadcasting."""
    operands = [op.types(name) for name in ("input", "other", "third")]
    return broadcast(op, [types for types in operands if types is not None])


def broadcast(op: Op, operands: Sequence[TensorType]) -> TensorType:
    """Unifies operands axis by axis, counted from the last; axes of size 1 stretch."""
    rank = max(len(types) for types in operands)
    result: list[Axis] = []
    for place in range(-rank, 0):
        axes = [types[place] for types in operands if len(types) >= -place and types[place].size != 1]
        for axis in axes[1:]:
            unify(axes[0], axis, f"added or multiplied at {op.where}")
        result.append(axes[0] if axes else constant(1))
    return tuple(result)
