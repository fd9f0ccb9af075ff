"""Rules of ops that move, join, cut or reshape axes."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdp_fx.graph.axes import Axis, TensorType, batch_dims, concat, constant, cut, fresh, product, unify
from mdp_fx.graph.ops.registry import Op, Types, freeze_operands, rule


def _place(dim: int, rank: int) -> int:
    return dim % rank


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


@rule(torch.flatten, ".flatten", nn.Flatten, torch.squeeze, ".squeeze", torch.unsqueeze, ".unsqueeze")
def flatten(op: Op) -> Types:
    """Reshapes that carry no sizes."""
    x = op.tensor("input")
    if 0 in op.shapes:
        return freeze_operands(op, "empty tensor")
    if len(op.shapes) < len(x) and op.kind == "squeeze" and not op.extra and not op.node.kwargs:
        # An axis of which one unit is left must stay.
        op.emit_call(torch.squeeze, op.value("input"), tuple(i for i, axis in enumerate(x) if axis.size == 1))
    return view_types(op, x, op.shapes)


@rule(".view", ".reshape", torch.reshape)
def view(op: Op) -> Types:
    """Reshapes whose sizes are written again, all but the batch's."""
    x = op.tensor("input")
    if 0 in op.shapes or any(isinstance(value, torch.dtype) for value in op.node.args):
        return freeze_operands(op, "reshape that cannot be followed")
    types = view_types(op, x, op.shapes)
    op.emit_call(torch.reshape, op.value("input"), list(types))
    return types


@rule(nn.Unflatten, torch.unflatten, ".unflatten", args="input dim sizes")
def unflatten(op: Op) -> Types:
    """One axis seen as several."""
    x = op.tensor("input")
    types = view_types(op, x, op.shapes)
    op.emit_call(torch.reshape, op.value("input"), list(types))
    return types


@rule(torch.permute, ".permute", "torchvision.ops.misc.Permute", args="input dims")
def permute(op: Op) -> Types:
    """Axes change places."""
    x, dims = op.tensor("input"), op.value("dims")
    order = dims if isinstance(dims, list | tuple) else (dims, *op.extra)
    return tuple(x[dim] for dim in order)


@rule(torch.transpose, ".transpose", args="input dim0 dim1")
def transpose(op: Op) -> Types:
    """Two axes change places."""
    return _swapped(op.tensor("input"), op.value("dim0"), op.value("dim1"))


@rule(torch.swapaxes, ".swapaxes", args="input axis0 axis1")
def swapaxes(op: Op) -> Types:
    """Two axes change places."""
    return _swapped(op.tensor("input"), op.value("axis0"), op.value("axis1"))


def _swapped(x: TensorType, a: int, b: int) -> TensorType:
    axes = list(x)
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


@rule(torch.cat, torch.concat, torch.concatenate, args="tensors dim")
def cat(op: Op) -> Types:
    """The joined axis is a sum, the others are unified."""
    # An empty 1-d tensor may stand in a concatenation of anything.
    parts = [types for types in op.types("tensors") if not (len(types) == 1 and types[0].size == 0)]
    place = _place(op.value("dim", 0), len(parts[0]))
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
    place = _place(op.value("dim", 0), len(parts[0]) + 1)
    return (*parts[0][:place], constant(len(parts)), *parts[0][place:])


@rule(torch.chunk, ".chunk", torch.split, ".split", args="input sizes dim")
def split(op: Op) -> Types:
    """The axis is cut; written again as a split with the sizes the parts have."""
    x = op.tensor("input")
    place = _place(op.value("dim", 0), len(x))
    parts: list[Axis] = []
    rest = x[place]
    if batch_dims(x[place]):
        op.freeze([x[place]], "split through the batch", batch=True)
    for shape in op.shapes[:-1]:
        pieces = cut(rest, shape[place])
        if pieces is None:
            return freeze_operands(op, "split through the batch")
        parts.append(pieces[0])
        rest = pieces[1]
    parts.append(rest)
    op.emit_call(torch.split, op.value("input"), parts, place)
    return [(*x[:place], part, *x[place + 1 :]) for part in parts]


@rule(torch.unbind, ".unbind", args="input dim")
def unbind(op: Op) -> Types:
    """The axis is taken apart into single entries."""
    x = op.tensor("input")
    place = _place(op.value("dim", 0), len(x))
    op.freeze([x[place]], "taken apart", batch=True)
    return [(*x[:place], *x[place + 1 :])] * len(op.shapes)


@rule(torch.select, ".select", args="input dim index")
def select(op: Op) -> Types:
    """One entry of an axis."""
    x = op.tensor("input")
    place = _place(op.value("dim"), len(x))
    op.freeze([x[place]], "one entry selected")
    return (*x[:place], *x[place + 1 :])


@rule(operator.getitem, args="input index")
def getitem(op: Op) -> Types:
    """Members of a tuple or dict; slices of a tensor, whose bounds are written again."""
    x, index = op.types("input"), op.value("index")
    if not (isinstance(x, tuple) and all(isinstance(axis, Axis) for axis in x)):
        return x[index]
    keys = list(index) if isinstance(index, tuple) else [index]
    if not all(key is None or key is Ellipsis or type(key) in (int, slice) for key in keys):
        return freeze_operands(op, "indexed by a tensor")
    used = sum(1 for key in keys if key is not None and key is not Ellipsis)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(x) - used)
    else:
        keys += [slice(None)] * (len(x) - used)
    axes = list(x)
    result: list[Axis] = []
    for i, key in enumerate(keys):
        if key is None:
            result.append(constant(1))
            continue
        axis = axes.pop(0)
        if isinstance(key, int):
            op.freeze([axis], "one entry selected")
        else:
            part, keys[i] = _slice(op, axis, key)
            result.append(part)
    op.emit("index", tuple(keys))
    return tuple(result)


def _slice(op: Op, axis: Axis, key: slice) -> tuple[Axis, Any]:
    """The part of an axis that a slice takes, and the slice with bounds as types."""
    start, stop, step = key.indices(axis.size)
    if batch_dims(axis) and (key.start, key.stop, key.step) != (None, None, None):
        op.freeze([axis], "part of the batch", batch=True)
    taken = len(range(start, stop, step))
    if taken == axis.size and step == 1:
        return axis, slice(None)
    if step == 1 and taken:
        head = cut(axis, start)
        tail = cut(head[1], taken) if head is not None else None
        if head is not None and tail is not None:
            return tail[0], slice(head[0], concat(head[0], tail[0]))
    op.freeze([axis], "strided or empty slice")
    return constant(taken), key


@rule(F.pad, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, args="input padding mode value")
def pad(op: Op) -> Types:
    """Padded channels are fresh Dims whose amounts are written again; spatial padding is constant."""
    x = op.tensor("input")
    if any(batch_dims(axis) for axis in x[1:]):
        return freeze_operands(op, "padding that cannot be followed")
    name = "padding" if op.value("padding") is not None else "pad"
    amounts = list(op.value(name))
    result = list(x)
    for i in range(len(amounts) // 2):
        before, after, axis = amounts[2 * i], amounts[2 * i + 1], x[-1 - i]
        if not before and not after:
            continue
        if op.value("mode", "constant") != "constant" or min(before, after) < 0 or op.node.op == "call_module":
            op.freeze([axis], "padded")
        head, tail = fresh(before), fresh(after)
        amounts[2 * i], amounts[2 * i + 1] = head, tail
        result[-1 - i] = concat(head, axis, tail)
    if op.node.op == "call_function":
        op.emit_call(F.pad, op.value("input"), amounts, op.value("mode", "constant"), op.value("value"))
    return tuple(result)


@rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d)
def spatial_pad(op: Op) -> Types:
    """Padding made of the tensor's own entries, on the last axes."""
    x = op.tensor("input")
    op.freeze(x[2:], "padded")
    return (*x[:2], *(constant(size) for size in op.shapes[2:]))


@rule(".expand")
def expand(op: Op) -> Types:
    """Axes of size 1 become fresh Dims of the asked size."""
    x = op.tensor("input")
    added = len(op.shapes) - len(x)
    types = tuple(
        x[i - added] if i >= added and x[i - added].size == size else fresh(size) for i, size in enumerate(op.shapes)
    )
    op.emit_call("expand", op.value("input"), list(types))
    return types


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


@rule(*_pool_targets(), args="input")
def pool(op: Op) -> Types:
    """Channels pass, spatial axes are resampled."""
    x = op.tensor("input")
    rank = re.search(r"(\d)d$", op.kind)
    if not isinstance(op.shapes, torch.Size) or len(op.shapes) != len(x) or (rank and len(x) != int(rank[1]) + 2):
        return freeze_operands(op, "pooling that cannot be followed")
    op.freeze(x[2:], "spatial axis")
    return (*x[:2], *(constant(size) for size in op.shapes[2:]))


_REDUCTIONS = "mean sum amax amin std var prod argmax logsumexp"


@rule(
    *(getattr(torch, name) for name in _REDUCTIONS.split()),
    *(f".{name}" for name in _REDUCTIONS.split() if hasattr(torch.Tensor, name)),
    args="input dim keepdim",
)
def reduce(op: Op) -> Types:
    """Reduced axes are frozen: a mean over fewer units is another mean."""
    x, dim = op.tensor("input"), op.value("dim")
    if (
        not isinstance(op.shapes, torch.Size)
        or isinstance(dim, bool)
        or not (isinstance(dim, int) or (isinstance(dim, tuple | list) and dim))
    ):
        return freeze_operands(op, "reduced")
    places = {_place(d, len(x)) for d in (dim if isinstance(dim, tuple | list) else (dim,))}
    op.freeze([x[i] for i in places], "reduced")
    if len(op.shapes) == len(x):
        return tuple(constant(1) if i in places else axis for i, axis in enumerate(x))
    return tuple(axis for i, axis in enumerate(x) if i not in places)


@rule(torch.norm, ".norm", args="input p dim keepdim")
def norm(op: Op) -> Types:
    """A reduction whose order comes before its axis."""
    return reduce(op)


@rule(
    torch.softmax, ".softmax", F.softmax, nn.Softmax, torch.log_softmax, F.log_softmax, nn.LogSoftmax, args="input dim"
)
def softmax(op: Op) -> Types:
    """The sum over units would change with them."""
    x, dim = op.tensor("input"), op.value("dim")
    op.freeze([x[dim]] if isinstance(dim, int) else x, "softmax over the axis")
    return x
