"""Rules of ops that reshape, move, join or repeat axes."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, concat, constant, fresh, product
from mdp_fx.graph.ops.elementwise import broadcast, zero_by_place
from mdp_fx.graph.ops.op import Op, Types, from_front
from mdp_fx.graph.ops.registry import freeze_operands, rule
from mdp_fx.graph.unify import unify


def view_types(op: Op, x: TensorType, shape: torch.Size) -> TensorType:
    """Types of x seen in another shape: minimal groups of axes with equal products are unified group by group."""
    result: list[Axis] = [constant(1)] * len(shape)
    sources = [axis for axis in x if axis.size != 1]
    targets = [i for i, size in enumerate(shape) if size != 1]
    while sources:
        group, places = [sources.pop(0)], [targets.pop(0)]
        entries, wanted = group[0].size, shape[places[0]]
        while entries != wanted:
            if entries < wanted:
                group.append(sources.pop(0))
                entries *= group[-1].size
            else:
                places.append(targets.pop(0))
                wanted *= shape[places[-1]]
        whole = product(*group)
        if len(places) == 1:
            result[places[0]] = whole
            continue
        parts = [fresh(shape[i]) for i in places]
        unify(whole, product(*parts), f"reshaped at {op.where}")
        for i, part in zip(places, parts, strict=True):
            result[i] = part
    return tuple(result)


def _keeps_entries(op: Op) -> bool:
    """Whether the value has as many entries as the operand, and any."""
    entries: int = op.shapes.numel()
    return 0 < entries == prod(axis.size for axis in op.tensor("input"))


@rule(
    torch.flatten,
    ".flatten",
    nn.Flatten,
    torch.squeeze,
    ".squeeze",
    torch.unsqueeze,
    ".unsqueeze",
    zeros="keep",
    cost="free",
)
def flatten(op: Op) -> Types:
    """Reshapes that carry no sizes."""
    x = op.tensor("input")
    if not _keeps_entries(op):
        return freeze_operands(op, "reshape that cannot be followed")
    if op.kind == "squeeze":
        dim = op.extra[0] if op.extra else op.value("dim", tuple(range(len(x))))
        places = [from_front(d, len(x)) for d in (dim if isinstance(dim, tuple | list) else (dim,))]
        if any(x[place].size != 1 for place in places):
            # An axis of which one unit is left must stay.
            op.emit_call(torch.squeeze, op.value("input"), tuple(p for p in places if x[p].size == 1))
    return view_types(op, x, op.shapes)


@rule(".view", ".reshape", torch.reshape, zeros="keep", cost="free")
def view(op: Op) -> Types:
    """Reshapes whose sizes are written again, all but the batch's."""
    x = op.tensor("input")
    retyped = any(isinstance(value, torch.dtype) for value in (*op.node.args, *op.node.kwargs.values()))
    if retyped or not _keeps_entries(op):
        return freeze_operands(op, "reshape that cannot be followed")
    types = view_types(op, x, op.shapes)
    op.emit_call(torch.reshape, op.value("input"), list(types))
    return types


@rule(".view_as", ".reshape_as", args="input other", zeros="keep", cost="free")
def view_as(op: Op) -> Types:
    """Reshapes to the sizes of another tensor."""
    if not _keeps_entries(op):
        return freeze_operands(op, "reshape that cannot be followed")
    types = view_types(op, op.tensor("input"), op.shapes)
    for mine, theirs in zip(types, op.tensor("other"), strict=True):
        unify(mine, theirs, f"reshaped at {op.where}")
    return types


@rule(nn.Unflatten, torch.unflatten, ".unflatten", args="input dim sizes", zeros="keep", cost="free")
def unflatten(op: Op) -> Types:
    """One axis seen as several."""
    x = op.tensor("input")
    if not _keeps_entries(op):
        return freeze_operands(op, "reshape that cannot be followed")
    types = view_types(op, x, op.shapes)
    op.emit_call(torch.reshape, op.value("input"), list(types))
    return types


@rule(torch.permute, ".permute", "torchvision.ops.misc.Permute", args="input dims", zeros="keep", cost="free")
def permute(op: Op) -> Types:
    """Axes change places."""
    x, dims = op.tensor("input"), op.value("dims")
    order = dims if isinstance(dims, list | tuple) else (dims, *op.extra)
    return tuple(x[dim] for dim in order)


@rule(torch.transpose, ".transpose", torch.swapdims, ".swapdims", args="input dim0 dim1", zeros="keep", cost="free")
def transpose(op: Op) -> Types:
    """Two axes change places."""
    return _swapped(op.tensor("input"), op.value("dim0"), op.value("dim1"))


@rule(torch.swapaxes, ".swapaxes", args="input axis0 axis1", zeros="keep", cost="free")
def swapaxes(op: Op) -> Types:
    """Two axes change places."""
    return _swapped(op.tensor("input"), op.value("axis0"), op.value("axis1"))


def _swapped(x: TensorType, a: int, b: int) -> TensorType:
    axes = list(x)
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


@rule(torch.cat, torch.concat, torch.concatenate, args="tensors dim", zeros="each")
def cat(op: Op) -> Types:
    """The joined axis is a sum, the others are unified."""
    # An empty 1-d tensor may stand in a concatenation of anything.
    parts = [types for types in op.types("tensors") if not (len(types) == 1 and types[0].size == 0)]
    if not parts:
        return freeze_operands(op, "nothing concatenated")
    return _joined(op, parts, from_front(op.value("dim", 0), len(parts[0])))


@rule(torch.hstack, torch.vstack, torch.dstack, args="tensors", zeros="each")
def cat_along(op: Op) -> Types:
    """Joined along the second, the first or the third axis, which vectors and numbers get where they lack it."""
    rank = {"hstack": 1, "vstack": 2, "dstack": 3}[op.kind]
    parts = [_at_least(types, rank) for types in op.types("tensors")]
    return _joined(op, parts, {1: min(1, len(parts[0]) - 1), 2: 0, 3: 2}[rank])


def _at_least(types: TensorType, rank: int) -> TensorType:
    """A type with axes of size 1 in front, and behind where it takes more than two."""
    in_front = (constant(1),) * (min(rank, 2) - len(types)) + types
    return in_front + (constant(1),) * (rank - len(in_front))


def _joined(op: Op, parts: list[TensorType], place: int) -> TensorType:
    for other in parts[1:]:
        for i, axis in enumerate(other):
            if i != place:
                unify(parts[0][i], axis, f"concatenated at {op.where}")
    joined = concat(*(types[place] for types in parts))
    return (*parts[0][:place], joined, *parts[0][place + 1 :])


@rule(torch.stack, args="tensors dim")
def stack(op: Op) -> Types:
    """A new axis that counts the operands."""
    parts: list[TensorType] = op.types("tensors")
    for other in parts[1:]:
        for mine, theirs in zip(parts[0], other, strict=True):
            unify(mine, theirs, f"stacked at {op.where}")
    place = from_front(op.value("dim", 0), len(parts[0]) + 1)
    result = (*parts[0][:place], constant(len(parts)), *parts[0][place:])
    zero_by_place(op, result, [(op.zero_as(operand), result) for operand in op.value("tensors")], all)
    return result


@rule(".expand", ".expand_as", ".broadcast_to", torch.broadcast_to, args="input other", cost="free")
def expand(op: Op) -> Types:
    """Axes of size 1 become fresh Dims of the asked size, or those of the tensor that is asked for."""
    x, other = op.tensor("input"), op.types("other")
    added = len(op.shapes) - len(x)
    wanted = other if isinstance(other, tuple) else [fresh(size) for size in op.shapes]
    types = tuple(
        x[i - added] if i >= added and x[i - added].size == size else wanted[i] for i, size in enumerate(op.shapes)
    )
    if isinstance(other, tuple):
        types = broadcast(op, [types, other])
    else:
        op.emit_call("expand", op.value("input"), list(types))
    zero_by_place(op, types, [(op.zero_as(op.value("input")), x)])
    return types


@rule(".repeat", ".tile", torch.tile)
def repeat(op: Op) -> Types:
    """Copies of whole axes."""
    x = op.tensor("input")
    asked = op.extra[0] if op.extra and isinstance(op.extra[0], list | tuple) else op.extra
    counts = [1] * (len(op.shapes) - len(asked)) + [int(count) for count in asked]
    padded = (constant(1),) * (len(counts) - len(x)) + x
    copies = [fresh(count) for count in counts]
    op.emit_call("repeat", op.value("input"), copies)
    types = tuple(product(count, axis) for count, axis in zip(copies, padded, strict=True))
    zero_by_place(op, types, [(op.zero_as(op.value("input")), x)])
    return types


@rule(torch.repeat_interleave, ".repeat_interleave", args="input repeats dim")
def repeat_interleave(op: Op) -> Types:
    """Copies of every entry of an axis."""
    x, count, dim = op.tensor("input"), op.value("repeats"), op.value("dim")
    if not isinstance(count, int) or not isinstance(dim, int):
        return freeze_operands(op, "repeated")
    place = from_front(dim, len(x))
    copies = fresh(count)
    op.emit_call(torch.repeat_interleave, op.value("input"), copies, place)
    types = (*x[:place], product(x[place], copies), *x[place + 1 :])
    zero_by_place(op, types, [(op.zero_as(op.value("input")), x)])
    return types


@rule(torch.roll, ".roll", args="input shifts dims", zeros="keep")
def roll(op: Op) -> Types:
    """Entries of an axis move on."""
    return _in_place(op, op.value("dims"), "rolled")


@rule(torch.flip, ".flip", args="input dims", zeros="keep")
def flip(op: Op) -> Types:
    """The entries of an axis in reverse order."""
    return _in_place(op, op.value("dims"), "reversed")


def _in_place(op: Op, dims: Any, why: str) -> Types:
    """Types of a value in which the entries of some axes are moved about."""
    x = op.tensor("input")
    named = [dims] if isinstance(dims, int) else dims
    op.freeze([x[dim] for dim in (*named, *op.extra)] if named else x, why, batch=True)
    return x


@rule(
    torch.movedim, ".movedim", torch.moveaxis, ".moveaxis", args="input source destination", zeros="keep", cost="free"
)
def movedim(op: Op) -> Types:
    """Axes move to other places."""
    x = op.tensor("input")
    sources, targets = ([d] if isinstance(d, int) else list(d) for d in map(op.value, ("source", "destination")))
    moved = {from_front(d, len(x)): x[from_front(s, len(x))] for s, d in zip(sources, targets, strict=True)}
    taken = {from_front(s, len(x)) for s in sources}
    rest = iter(axis for i, axis in enumerate(x) if i not in taken)
    return tuple(moved[i] if i in moved else next(rest) for i in range(len(x)))


@rule(getattr, args="input name", zeros="keep", cost="free")
def transposed_attribute(op: Op) -> Types:
    """Transposed tensors."""
    x, name = op.tensor("input"), op.value("name")
    if name in ("T", "mT", "H", "mH") and len(x) >= 2:
        return x[::-1] if name in ("T", "H") else (*x[:-2], x[-1], x[-2])
    return freeze_operands(op, f"attribute {name} that cannot be followed")


@rule(torch.t, ".t", torch.adjoint, ".adjoint", zeros="keep", cost="free")
def swap_last(op: Op) -> Types:
    """The last two axes change places."""
    x = op.tensor("input")
    return x if len(x) < 2 else (*x[:-2], x[-1], x[-2])
