"""Rules of ops that take an axis apart: splits, slices, entries by number."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.axes import Axis, TensorType, batch_dims, concat, constant, shuffled
from mdp_fx.graph.ops.elementwise import broadcast, named_targets
from mdp_fx.graph.ops.op import Op, Types, from_front
from mdp_fx.graph.ops.registry import freeze_operands, rule
from mdp_fx.graph.purity import target_name
from mdp_fx.graph.unify import cut, unify


@rule(
    *named_targets(("chunk", "split", "split_with_sizes", "tensor_split")),
    args="input sizes dim",
    zeros="keep",
    cost="free",
)
def split(op: Op) -> Types:
    """The axis is cut; written again as a split with the sizes the parts have."""
    x = op.tensor("input")
    place = from_front(op.value("dim", 0), len(x))
    if sum(shape[place] for shape in op.shapes) != x[place].size:
        return freeze_operands(op, "split into parts that are not all of it")
    parts: list[Axis] = []
    rest = x[place]
    if batch_dims(x[place]):
        op.freeze([x[place]], "split through the batch", batch=True)
    for shape in op.shapes[:-1]:
        pieces = cut(rest, shape[place])
        if pieces is None:
            return freeze_operands(op, "split among shuffled entries")
        parts.append(pieces[0])
        rest = pieces[1]
    parts.append(rest)
    op.emit_call(torch.split, op.value("input"), parts, place)
    return [(*x[:place], part, *x[place + 1 :]) for part in parts]


@rule(torch.unbind, ".unbind", args="input dim", zeros="keep", cost="free")
def unbind(op: Op) -> Types:
    """The axis is taken apart into single entries."""
    x = op.tensor("input")
    place = from_front(op.value("dim", 0), len(x))
    op.freeze([x[place]], "taken apart", batch=True)
    return [(*x[:place], *x[place + 1 :])] * len(op.shapes)


@rule(torch.select, ".select", args="input dim index", zeros="keep", cost="free")
def select(op: Op) -> Types:
    """One entry of an axis."""
    x = op.tensor("input")
    place = from_front(op.value("dim"), len(x))
    op.freeze([x[place]], "one entry selected")
    return (*x[:place], *x[place + 1 :])


@rule(operator.getitem, args="input index", zeros="keep", cost="free")
def getitem(op: Op) -> Types:
    """Members of a tuple or dict; slices of a tensor, whose bounds are written again."""
    x = op.types("input")
    if not (isinstance(x, tuple) and all(isinstance(axis, Axis) for axis in x)):
        return x[op.value("index")]
    part = _indexed(op, x)
    return freeze_operands(op, part) if isinstance(part, str) else part


@rule(operator.setitem, args="input index value")
def setitem(op: Op) -> Types:
    """What is written to is frozen, and what is written: the rest of the tensor need not be. There is no value."""
    part, value = _indexed(op, op.tensor("input")), op.types("value")
    if isinstance(part, str):
        return freeze_operands(op, part)
    op.freeze(broadcast(op, [part] if value is None else [part, value]), "written in place")
    return None


def _indexed(op: Op, x: TensorType) -> TensorType | str:
    """The type of the part of a tensor that an index names, or why it cannot be told; writes bounds again."""
    index = op.value("index")
    keys = list(index) if isinstance(index, tuple) else [index]
    for key in keys:
        if isinstance(key, slice) and any(isinstance(bound, fx.Node) for bound in (key.start, key.stop, key.step)):
            return "a bound that is read from a tensor"
        if isinstance(key, fx.Node) and op.dtype_of(key) in (torch.bool, torch.uint8):
            return "indexed by a mask"
        if not (key is None or key is Ellipsis or type(key) in (int, slice, fx.Node) or _are_numbers(key)):
            return "indexed by what is no number"
    used = sum(1 for key in keys if key is not None and key is not Ellipsis)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(x) - used)
    else:
        keys += [slice(None)] * (len(x) - used)
    axes = list(x)
    result: list[Axis] = []
    by_number: list[int] = []
    for i, key in enumerate(keys):
        if key is None:
            result.append(constant(1))
            continue
        axis = axes.pop(0)
        if isinstance(key, fx.Node | list):
            by_number.append(len(result))
            op.freeze([axis], "taken by number", batch=True)
        elif isinstance(key, int):
            op.freeze([axis], "one entry selected")
        else:
            part, keys[i] = _part(op, axis, key)
            result.append(part)
    if by_number:
        # A list of numbers is a vector of as many.
        lists: list[TensorType] = [(constant(len(key)),) for key in keys if isinstance(key, list)]
        numbers = broadcast(op, [*(op.types_of(key) for key in keys if isinstance(key, fx.Node)), *lists])
        op.freeze(numbers, "numbers of entries")
        # Axes taken by number stand where the first was, or in front where others lie between.
        at = by_number[0] if by_number[0] == by_number[-1] else 0
        result[at:at] = numbers
    op.emit("index", tuple(keys))
    return tuple(result)


def _are_numbers(key: object) -> bool:
    return isinstance(key, list) and all(type(number) is int for number in key)


@rule(torch.narrow, ".narrow", args="input dim start length", zeros="keep", cost="free")
def narrow(op: Op) -> Types:
    """A slice of one axis."""
    x, start, length = op.tensor("input"), op.value("start"), op.value("length")
    if not isinstance(start, int):
        return freeze_operands(op, "a bound that is read from a tensor")
    place = from_front(op.value("dim"), len(x))
    first = start % x[place].size if start < 0 else start
    part, bounds = _part(op, x[place], slice(first, first + length))
    op.emit("start", bounds.start or 0)
    op.emit("length", part)
    return (*x[:place], part, *x[place + 1 :])


def _part(op: Op, axis: Axis, key: slice) -> tuple[Axis, slice]:
    """The part of an axis that a slice takes, and the slice with bounds as types."""
    start, stop, step = key.indices(axis.size)
    if batch_dims(axis) and (key.start, key.stop, key.step) != (None, None, None):
        op.freeze([axis], "part of the batch", batch=True)
    taken = len(range(start, stop, step))
    if taken == axis.size and step == 1:
        return axis, slice(None)
    why = "strided or empty slice"
    if step == 1 and taken:
        head = cut(axis, start)
        tail = cut(head[1], taken) if head is not None else None
        if head is not None and tail is not None:
            return tail[0], slice(head[0], concat(head[0], tail[0]))
        why = "slice among shuffled entries"
    op.freeze([axis], why)
    return constant(taken), key


@rule(nn.GLU, F.glu, args="input dim", zeros="keep")
def glu(op: Op) -> Types:
    """One half of an axis gates the other: both keep the same units."""
    x = op.tensor("input")
    place = from_front(op.value("dim", -1), len(x))
    halves = cut(x[place], x[place].size // 2)
    if halves is None:
        through = "through the batch" if batch_dims(x[place]) else "among shuffled entries"
        return freeze_operands(op, f"split {through}")
    unify(halves[0], halves[1], f"halves of {op.where}")
    return (*x[:place], halves[0], *x[place + 1 :])


@rule(torch.index_select, ".index_select", args="input dim index", zeros="keep")
def index_select(op: Op) -> Types:
    """Entries of an axis by number: a stored permutation of all of them moves their units about."""
    x, numbers, index = op.tensor("input"), op.types("index"), op.stored("index")
    place = from_front(op.value("dim"), len(x))
    axis = x[place]
    movable = index is not None and is_permutation(index, axis.size) and not batch_dims(axis)
    if index is None or not movable or not _only_moves(op.value("index")):
        op.freeze([axis, *numbers], "taken by number", batch=True)
        return (*x[:place], *numbers, *x[place + 1 :])
    before = op.pointed(index)
    if before is not None:
        unify(before, axis, f"one order for two axes at {op.where}")
    moved = shuffled(axis, index.cpu().numpy())
    unify(numbers[0], moved, f"order of {op.where}")
    op.point(index, axis)
    return (*x[:place], moved, *x[place + 1 :])


def _only_moves(index: fx.Node) -> bool:
    """Whether stored numbers of entries are read to move entries about and for nothing else: they are counted again."""
    nodes = index.graph.find_nodes(op="get_attr", target=index.target)
    readers = [(node, user) for node in nodes for user in node.users]
    return all(target_name(user.target) == "index_select" and node not in user.args[:1] for node, user in readers)


def is_permutation(index: torch.Tensor, size: int) -> bool:
    """Whether a tensor of numbers names each of 0 .. size - 1 once."""
    return index.ndim == 1 and torch.equal(index.sort().values.cpu(), torch.arange(size))


@rule(torch.gather, ".gather", torch.take_along_dim, args="input dim index")
def gather(op: Op) -> Types:
    """Entries by number, for every place on its own."""
    return freeze_operands(op, "taken by number")
