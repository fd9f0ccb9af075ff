"""Rules of ops that work entry by entry, with broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.axes import Axis, Dim, TensorType, constant, free_dims
from mdp_fx.graph.ops.op import Op, Types
from mdp_fx.graph.ops.registry import rule
from mdp_fx.graph.unify import unify

# What gives zero for zero, and what need not; spelled as functions of torch or torch.nn.functional, methods, modules.
_KEEP_ZERO = (
    "relu relu6 silu hardswish gelu tanh elu selu celu leaky_relu softsign mish dropout alpha_dropout dropout1d "
    "dropout2d dropout3d feature_alpha_dropout tanhshrink softshrink hardshrink abs neg log1p expm1 sqrt square sin "
    "erf sign floor ceil round trunc nan_to_num positive arctan atan asinh sinh tan deg2rad ReLU ReLU6 SiLU Hardswish "
    "GELU Tanh ELU SELU CELU LeakyReLU Softsign Mish Tanhshrink Softshrink Hardshrink zeros_like"
).split()
# What gives its operand, at most as another number type; dropout is for training.
_RENAMED = (
    "clone contiguous detach to float half double bfloat16 type type_as cpu cuda requires_grad_ long int bool real "
    "view_as_real resolve_conj alias lift_fresh Identity Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout"
).split()
_OTHERS = (
    "sigmoid hardsigmoid softplus logsigmoid threshold exp log log2 log10 rsqrt reciprocal cos logit logical_not isnan "
    "isfinite isinf ones_like full_like rand_like randn_like empty_like cosh acos erfc exp2 bitwise_not "
    "Sigmoid Hardsigmoid Softplus LogSigmoid Threshold RReLU AlphaDropout"
).split()
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


_OTHER_PACKAGES_KEEP = tuple(path for path in _OTHER_PACKAGES if not path.endswith("igmoid"))
_OTHER_PACKAGES_REST = tuple(path for path in _OTHER_PACKAGES if path.endswith("igmoid"))

Zero: TypeAlias = tuple[Iterable[Axis], TensorType]
"""Axes at whose dropped units a factor or summand is zero, and its type as far as the result has its axes, read from
the last axis; an axis of size 1 stretches."""


def named_targets(names: Sequence[str]) -> list[Any]:
    """Everything that bears one of these names: in torch, torch.nn.functional, torch.nn, and as a tensor's method."""
    found = [getattr(space, name) for space in (torch, F, nn) for name in names if hasattr(space, name)]
    methods = [f".{name}" for name in names if hasattr(torch.Tensor, name)]
    return [*dict.fromkeys(target for target in found if callable(target)), *methods]


@rule(*named_targets(_RENAMED), args="input other", zeros="keep", cost="free")
@rule(
    *named_targets(_KEEP_ZERO),
    *_OTHER_PACKAGES_KEEP,
    operator.neg,
    operator.pos,
    args="input other",
    zeros="keep",
    cost="entrywise",
)
def unary(op: Op) -> Types:
    """One operand, one value per entry; another one says at most the number type."""
    op.types("other")
    return op.types("input")


@rule(
    *named_targets(_OTHERS), *_OTHER_PACKAGES_REST, operator.invert, operator.not_, args="input other", cost="entrywise"
)
def unary_from_zero(op: Op) -> Types:
    """As `unary`, of what need not give zero for zero."""
    return unary(op)


@rule(torch.clamp, ".clamp", torch.clip, ".clip", args="input min max", cost="entrywise")
def clamp(op: Op) -> Types:
    """Bounds may be tensors; zero stays zero between a lower bound of at most zero and an upper of at least zero."""
    low, high = op.value("min"), op.value("max")
    if all(isinstance(bound, int | float | None) for bound in (low, high)) and (low or 0) <= 0 <= (high or 0):
        op.zero_at(*op.zero_as(op.value("input")))
    return broadcast(op, [types for types in map(op.types, ("input", "min", "max")) if types is not None])


@rule(torch.clamp_min, ".clamp_min", args="input min", cost="entrywise")
@rule(torch.clamp_max, ".clamp_max", args="input max", cost="entrywise")
def clamp_one_side(op: Op) -> Types:
    """As `clamp`, with one bound."""
    return clamp(op)


@rule(F.hardtanh, nn.Hardtanh, args="input min_val max_val", cost="entrywise")
def hardtanh(op: Op) -> Types:
    """As `clamp`, between -1 and 1 where nothing else is said."""
    if op.value("min_val", -1.0) <= 0 <= op.value("max_val", 1.0):
        op.zero_at(*op.zero_as(op.value("input")))
    return op.types("input")


def _operators(names: str) -> list[Any]:
    return [getattr(operator, name) for name in names.split()]


_SUMS = "add sub subtract maximum minimum rsub".split()
_PRODUCTS = "mul multiply logical_and bitwise_and".split()
_QUOTIENTS = "div divide true_divide floor_divide fmod remainder".split()
_OTHER_PAIRS = (
    "atan2 eq ne lt le gt ge not_equal less less_equal greater greater_equal logical_or logical_xor "
    "bitwise_or bitwise_xor copysign hypot logaddexp isclose"
).split()


@rule(*named_targets(_SUMS), *_operators("add sub"), args="input other", cost="entrywise")
def binary(op: Op) -> Types:
    """Two operands, unified axis by axis with broadcasting; zero where both are."""
    result = _both(op)
    zero_by_place(op, result, _zeros(op, "input", "other"), all)
    return result


@rule(*named_targets(_PRODUCTS), *_operators("mul and_"), args="input other", cost="entrywise")
def multiply(op: Op) -> Types:
    """As `binary`, zero where one operand is."""
    result = _both(op)
    zero_by_place(op, result, _zeros(op, "input", "other"))
    return result


def _both(op: Op) -> TensorType:
    return broadcast(op, [types for types in (op.types("input"), op.types("other")) if types is not None])


def _zeros(op: Op, *names: str) -> list[Zero]:
    """Where arguments are zero."""
    return [(op.zero_as(op.value(name)), op.types(name) or ()) for name in names]


@rule(*named_targets(_QUOTIENTS), *_operators("truediv floordiv mod"), args="input other", cost="entrywise")
def divide(op: Op) -> Types:
    """As `binary`, zero where the dividend is, unless the divisor is too."""
    result = _both(op)
    if not isinstance(op.value("other"), fx.Node) or not op.zero_as(op.value("other")):
        zero_by_place(op, result, _zeros(op, "input"))
    return result


@rule(*named_targets(_OTHER_PAIRS), *_operators("eq ne lt le gt ge or_ xor"), args="input other", cost="entrywise")
def compare(op: Op) -> Types:
    """As `binary`, zero nowhere."""
    return _both(op)


@rule(*named_targets(("pow", "float_power")), operator.pow, args="input exponent", cost="entrywise")
def power(op: Op) -> Types:
    """As `binary`, zero where the base is for a positive exponent."""
    exponent = op.value("exponent")
    result = broadcast(op, [types for types in map(op.types, ("input", "exponent")) if types is not None])
    if isinstance(exponent, int | float) and exponent > 0:
        zero_by_place(op, result, _zeros(op, "input"))
    return result


@rule(
    torch.addcmul,
    torch.addcdiv,
    torch.lerp,
    torch.where,
    ".where",
    ".lerp",
    ".addcmul",
    args="input other third",
    cost="entrywise",
)
def ternary(op: Op) -> Types:
    """Three operands, unified axis by axis with broadcasting."""
    operands = [op.types(name) for name in ("input", "other", "third")]
    return broadcast(op, [types for types in operands if types is not None])


@rule(torch.masked_fill, ".masked_fill", args="input mask value", cost="entrywise")
def masked_fill(op: Op) -> Types:
    """Entries replaced where a mask says so."""
    value = op.value("value")
    result = broadcast(op, [types for types in map(op.types, ("input", "mask", "value")) if types is not None])
    if isinstance(value, int | float) and value == 0:
        zero_by_place(op, result, _zeros(op, "input"))
    return result


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


def zero_by_place(
    op: Op, result: TensorType, parts: Sequence[Zero], need: Callable[[Iterable[bool]], bool] = any
) -> None:
    """Says that a value is zero at the dropped units of a dimension, if it is so at every axis that mentions it.

    An operand that is stretched along an axis says nothing about the units of that axis: x[:, None] * y[:, :, None] is
    zero for its first axis only where y is.

    Args:
        op: the node.
        result: its type.
        parts: where each operand is zero.
        need: any for a product, all for a sum.
    """
    known = [({dim for axis in zeros for dim in free_dims(axis)}, types) for zeros, types in parts]

    def zero(dim: Dim, place: int) -> bool:
        return need(dim in zeros and place <= len(types) and dim in free_dims(types[-place]) for zeros, types in known)

    places: dict[Dim, list[int]] = {}
    for place, axis in enumerate(reversed(result), 1):
        for dim in free_dims(axis):
            places.setdefault(dim, []).append(place)
    op.zero_at(*(Axis((dim,)) for dim in places if all(zero(dim, place) for place in places[dim])))
