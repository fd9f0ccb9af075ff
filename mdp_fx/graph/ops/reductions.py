"""Rules of ops that read an axis as a whole: reductions, norms over axes, sums in order, softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import TensorType, constant, free_dims
from mdp_fx.graph.ops.elementwise import named_targets
from mdp_fx.graph.ops.op import EmittedCall, KeptShare, Op, Types, from_front
from mdp_fx.graph.ops.registry import freeze_operands, rule

_REDUCTIONS = "mean sum amax amin std var prod argmax argmin logsumexp max min any all std_mean var_mean".split()


@rule(*named_targets(_REDUCTIONS), args="input dim keepdim")
def reduce(op: Op) -> Types:
    """Reduced axes are frozen, unless the dropped units add nothing to a sum: a mean is over the dense number then."""
    x, places = op.tensor("input"), _reduced(op)
    if places is None:
        return freeze_operands(op, "reduced")
    if op.kind in ("sum", "mean"):
        lost = [i for i in places if not op.is_zero_at(op.value("input"), x[i])]
        op.freeze([x[i] for i in lost], "reduced")
        if op.kind == "mean":
            shares = [KeptShare(x[i]) for i in places if i not in lost and free_dims(x[i])]
            _times_shares(op, shares)
    else:
        op.freeze([x[i] for i in places], "reduced")
    if op.kind in ("sum", "mean", "amax", "amin", "max", "min", "any"):
        op.zero_at(*op.zero_as(op.value("input")))
    return _without(op, x, places)


def _reduced(op: Op) -> set[int] | None:
    """The axes that a reduction names; None where it cannot be told."""
    dim, rank = op.value("dim"), len(op.tensor("input"))
    if isinstance(dim, bool) or not (isinstance(dim, int) or (isinstance(dim, tuple | list) and dim)):
        return None
    return {from_front(d, rank) for d in (dim if isinstance(dim, tuple | list) else (dim,))}


def _without(op: Op, x: TensorType, places: set[int]) -> Types:
    shapes = op.shapes if isinstance(op.shapes, torch.Size) else op.shapes[0]
    if len(shapes) == len(x):
        types = tuple(constant(1) if i in places else axis for i, axis in enumerate(x))
    else:
        types = tuple(axis for i, axis in enumerate(x) if i not in places)
    return types if isinstance(op.shapes, torch.Size) else [types] * len(op.shapes)


def _times_shares(op: Op, shares: list[KeptShare]) -> None:
    """Writes a mean over kept units as the mean over all of them, of which the others are zero."""
    if not shares:
        return
    target: Any = getattr(torch, op.kind) if op.node.op == "call_method" else op.node.target
    call: Any = EmittedCall(target, tuple(op.node.args), dict(op.node.kwargs))
    for share in shares[:-1]:
        call = EmittedCall(torch.mul, (call, share))
    op.emit_call(torch.mul, call, shares[-1])


@rule(torch.norm, ".norm", args="input p dim keepdim")
def norm(op: Op) -> Types:
    """A reduction whose order comes before its axis."""
    return _vector_norm(op, op.value("p", 2))


@rule(torch.linalg.vector_norm, torch.linalg.norm, args="input ord dim keepdim")
def linalg_norm(op: Op) -> Types:
    """As `norm`."""
    return _vector_norm(op, op.value("ord", 2))


def _vector_norm(op: Op, order: Any) -> Types:
    """Units that are zero add nothing to a norm of positive order."""
    x, places = op.tensor("input"), _reduced(op)
    if places is None:
        return freeze_operands(op, "reduced")
    for place in places:
        if order in (None, "fro") or (isinstance(order, int | float) and order > 0):
            lost = not op.is_zero_at(op.value("input"), x[place])
        else:
            lost = True
        op.freeze([x[place]] if lost else [], "reduced")
    op.zero_at(*op.zero_as(op.value("input")))
    return _without(op, x, places)


@rule(F.normalize, args="input p dim", zeros="keep")
def unit_length(op: Op) -> Types:
    """Divided by the norm over axes, to which units that are zero add nothing if its order is positive."""
    x, dim = op.tensor("input"), op.value("dim", 1)
    for place in dim if isinstance(dim, tuple | list) else (dim,):
        if op.value("p", 2.0) <= 0 or not op.is_zero_at(op.value("input"), x[place]):
            op.freeze([x[place]], "normalised together")
    return x


@rule(torch.cumsum, ".cumsum", torch.sort, ".sort", torch.argsort, ".argsort", args="input dim")
def in_order(op: Op) -> Types:
    """Entries of an axis depend on those before, or on all."""
    dim = op.value("dim", -1)
    if not isinstance(dim, int):
        return freeze_operands(op, "taken in order")
    op.freeze([op.tensor("input")[dim]], "taken in order", batch=True)
    return op.types("input") if isinstance(op.shapes, torch.Size) else [op.types("input")] * len(op.shapes)


@rule(
    torch.softmax,
    ".softmax",
    F.softmax,
    nn.Softmax,
    torch.log_softmax,
    F.log_softmax,
    ".log_softmax",
    nn.LogSoftmax,
    args="input dim",
)
def softmax(op: Op) -> Types:
    """The sum over units would change with them."""
    x, dim = op.tensor("input"), op.value("dim")
    op.freeze([x[dim]] if isinstance(dim, int) else x, "softmax over the axis")
    return x
