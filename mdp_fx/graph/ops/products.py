"""Rules of products of tensors: matrices, letters, attention."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, constant, fresh, product
from mdp_fx.graph.ops.elementwise import broadcast, zero_by_place
from mdp_fx.graph.ops.op import Op, Types, from_front
from mdp_fx.graph.ops.registry import freeze_operands, rule
from mdp_fx.graph.unify import unify

ONE = constant(1)
"""Stands for an axis of the result that an operand does not have."""


def check_contraction(op: Op, one: str, other: str, axis: Axis) -> None:
    """A sum over units loses what the dropped ones add, unless that is zero in one of the two factors."""
    if not op.is_zero_at(op.value(one), axis) and not op.is_zero_at(op.value(other), axis):
        op.freeze([axis], "units that need not be zero when dropped are multiplied with each other")


@rule(torch.einsum, args="equation")
def einsum(op: Op) -> Types:
    """Every letter is one axis; letters that the result lacks are summed over."""
    equation, operands = op.value("equation"), list(op.extra)
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    types = [op.types_of(operand) for operand in operands]
    letters = _letters(equation, [len(own) for own in types]) if isinstance(equation, str) else None
    if letters is None:
        return freeze_operands(op, "einsum that cannot be followed")
    *spelled, asked = letters
    named = [dict(zip(own, axes, strict=True)) for own, axes in zip(spelled, types, strict=True)]
    axes: dict[str, Axis] = {}
    for own in named:
        for letter, axis in own.items():
            if axes.setdefault(letter, axis).size == 1:
                axes[letter] = axis
            elif axis.size != 1:
                unify(axes[letter], axis, f"one letter at {op.where}")
    for letter in (letter for letter in axes if letter not in asked):
        held = [operand for operand, own in zip(operands, named, strict=True) if own.get(letter, ONE).size != 1]
        if not any(op.is_zero_at(operand, axes[letter]) for operand in held):
            op.freeze([axes[letter]], "units that need not be zero when dropped are summed over")
    result = tuple(axes[letter] for letter in asked)
    parts = [
        (op.zero_as(operand), tuple(own.get(letter, ONE) for letter in asked))
        for operand, own in zip(operands, named, strict=True)
    ]
    zero_by_place(op, result, parts)
    op.count_macs(tuple(axes.values()))
    return result


def _letters(equation: str, ranks: Sequence[int]) -> list[list[str]] | None:
    """A letter for every axis of the operands and of the result; those that dots stand for are numbers.

    Args:
        equation: of an einsum.
        ranks: of its operands.

    Returns:
        None where an operand has a letter twice: only its diagonal is read.
    """
    written, arrow, asked = equation.replace(" ", "").partition("->")
    spelled: list[list[str]] = []
    most = 0
    for term, rank in zip(written.split(","), ranks, strict=True):
        # Axes under dots are broadcast: the last one is the last one of all operands.
        dotted = rank - len(term.replace("...", "")) if "..." in term else 0
        spelled.append(_spread(term, dotted))
        most = max(most, dotted)
    if not arrow:
        letters = "".join(written.replace("...", "").split(","))
        asked = "..." + "".join(sorted(letter for letter in letters if letters.count(letter) == 1))
    return None if any(len(set(own)) < len(own) for own in spelled) else [*spelled, _spread(asked, most)]


def _spread(term: str, dotted: int) -> list[str]:
    head, dots, tail = term.partition("...")
    return [*head, *(str(place) for place in range(dotted, 0, -1) if dots), *tail]


@rule(torch.tensordot, args="a b dims")
def tensordot(op: Op) -> Types:
    """Pairs of axes are unified and summed over, the others pass."""
    a, b, dims = op.tensor("a"), op.tensor("b"), op.value("dims", 2)
    last, first = (range(len(a) - dims, len(a)), range(dims)) if isinstance(dims, int) else dims
    mine, theirs = _places(last, a), _places(first, b)
    if any(a[i].size != b[j].size for i, j in zip(mine, theirs, strict=True)):
        return freeze_operands(op, "one entry multiplied with many")
    for i, j in zip(mine, theirs, strict=True):
        unify(a[i], b[j], f"inner axis of {op.where}")
        check_contraction(op, "a", "b", a[i])
    rows = tuple(axis for i, axis in enumerate(a) if i not in mine)
    columns = tuple(axis for j, axis in enumerate(b) if j not in theirs)
    result = (*rows, *columns)
    parts = [(op.zero_as(op.value("a")), (*rows, *[ONE] * len(columns))), (op.zero_as(op.value("b")), columns)]
    zero_by_place(op, result, parts)
    op.count_macs((*result, *(a[i] for i in mine)))
    return result


def _places(dims: int | Sequence[int], types: TensorType) -> list[int]:
    return [from_front(dim, len(types)) for dim in ((dims,) if isinstance(dims, int) else dims)]


@rule(torch.matmul, torch.bmm, operator.matmul, ".matmul", ".bmm", torch.mm, ".mm", args="input other")
def matmul(op: Op) -> Types:
    """x (..., M, K), y (..., K, N): K is unified, M and N pass."""
    x, y, result = op.tensor("input"), op.tensor("other"), _product(op)
    rows = x[:-1] if len(y) == 1 else (*x[:-1], ONE)
    columns = () if len(y) == 1 else y[-1:] if len(x) == 1 else (*y[:-2], ONE, y[-1])
    zero_by_place(op, result, [(op.zero_as(op.value("input")), rows), (op.zero_as(op.value("other")), columns)])
    return result


def _product(op: Op) -> TensorType:
    x, y = op.tensor("input"), op.tensor("other")
    unify(x[-1], y[-2] if len(y) > 1 else y[-1], f"inner axis of {op.where}")
    check_contraction(op, "input", "other", x[-1])
    result: TensorType
    if len(y) == 1:
        result = x[:-1]
    elif len(x) == 1:
        result = (*y[:-2], y[-1])
    else:
        result = (*broadcast(op, [x[:-2], y[:-2]]), x[-2], y[-1])
    op.count_macs((*result, x[-1]))
    return result


@rule(torch.addmm, torch.baddbmm, ".addmm", ".baddbmm", args="bias input other")
def addmm(op: Op) -> Types:
    """A product of matrices, and what is added."""
    return broadcast(op, [_product(op), op.tensor("bias")])


@rule(
    nn.MultiheadAttention,
    args="query key value key_padding_mask need_weights attn_mask average_attn_weights is_causal |",
)
def whole_attention(op: Op) -> Types:
    """What the normalisation could not take apart into projections stays whole."""
    return freeze_operands(op, "attention that is not taken apart")


@rule(F.scaled_dot_product_attention, args="query key value attn_mask dropout_p is_causal scale enable_gqa")
def attention(op: Op) -> Types:
    """q (..., L, D), k (..., S, D), v (..., S, E): D is shared by q and k, E passes; the dense scale is written out."""
    q, k, v = op.tensor("query"), op.tensor("key"), op.tensor("value")
    heads = [q[-3], k[-3], v[-3]] if op.value("enable_gqa") else []
    for shared in heads[1:]:
        # Every key head serves as many query heads in a row.
        unify(q[-3], product(shared, fresh(q[-3].size // shared.size)), f"heads of {op.where}")
    unify(q[-1], k[-1], f"query and key of {op.where}")
    check_contraction(op, "query", "key", q[-1])
    op.freeze([k[-2], v[-2], q[-2]], "softmax over the axis")
    outer = broadcast(op, [types[: -3 if heads else -2] for types in (q, k, v)])
    if heads:
        outer = (*outer, q[-3])
    mask = op.types("attn_mask")
    if mask is not None:
        op.freeze(mask[-2:], "attention mask")
        outer = broadcast(op, [outer, mask[:-2]])
    if op.value("scale") is None:
        scale = {"scale": float(q[-1].size) ** -0.5}
        op.emit_call(F.scaled_dot_product_attention, *op.node.args, **{**op.node.kwargs, **scale})
    op.count_macs((*outer, q[-2], k[-2], q[-1]), (*outer, q[-2], v[-2], v[-1]))
    result = (*outer, q[-2], v[-1])
    zero_by_place(op, result, [(op.zero_as(op.value("value")), (*v[:-2], ONE, v[-1]))])
    return result
