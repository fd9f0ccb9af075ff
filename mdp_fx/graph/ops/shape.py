"""Rules of ops that move, join, cut or reshape axes."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.axes import (
    Axis,
    TensorType,
    batch_dims,
    concat,
    constant,
    cut,
    free_dims,
    fresh,
    product,
    shuffled,
    unify,
)
from mdp_fx.graph.ops.elementwise import broadcast, named_targets, zero_by_place
from mdp_fx.graph.ops.registry import Call, KeptShare, Op, Types, freeze_operands, rule
from mdp_fx.graph.purity import target_name


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


@rule(torch.flatten, ".flatten", nn.Flatten, torch.squeeze, ".squeeze", torch.unsqueeze, ".unsqueeze", zeros="keep")
def flatten(op: Op) -> Types:
    """Reshapes that carry no sizes."""
    x = op.tensor("input")
    if 0 in op.shapes:
        return freeze_operands(op, "empty tensor")
    if op.kind == "squeeze":
        dim = op.extra[0] if op.extra else op.value("dim", tuple(range(len(x))))
        places = [_place(d, len(x)) for d in (dim if isinstance(dim, tuple | list) else (dim,))]
        if any(x[place].size != 1 for place in places):
            # An axis of which one unit is left must stay.
            op.emit_call(torch.squeeze, op.value("input"), tuple(p for p in places if x[p].size == 1))
    return view_types(op, x, op.shapes)


@rule(".view", ".reshape", torch.reshape, zeros="keep")
def view(op: Op) -> Types:
    """Reshapes whose sizes are written again, all but the batch's."""
    x = op.tensor("input")
    if 0 in op.shapes or any(isinstance(value, torch.dtype) for value in op.node.args):
        return freeze_operands(op, "reshape that cannot be followed")
    types = view_types(op, x, op.shapes)
    op.emit_call(torch.reshape, op.value("input"), list(types))
    return types


@rule(".view_as", ".reshape_as", args="input other", zeros="keep")
def view_as(op: Op) -> Types:
    """Reshapes to the sizes of another tensor."""
    types = view_types(op, op.tensor("input"), op.shapes)
    for mine, theirs in zip(types, op.tensor("other"), strict=True):
        unify(mine, theirs, f"reshaped at {op.where}")
    return types


@rule(nn.Unflatten, torch.unflatten, ".unflatten", args="input dim sizes", zeros="keep")
def unflatten(op: Op) -> Types:
    """One axis seen as several."""
    x = op.tensor("input")
    types = view_types(op, x, op.shapes)
    op.emit_call(torch.reshape, op.value("input"), list(types))
    return types


@rule(torch.permute, ".permute", "torchvision.ops.misc.Permute", args="input dims", zeros="keep")
def permute(op: Op) -> Types:
    """Axes change places."""
    x, dims = op.tensor("input"), op.value("dims")
    order = dims if isinstance(dims, list | tuple) else (dims, *op.extra)
    return tuple(x[dim] for dim in order)


@rule(torch.transpose, ".transpose", torch.swapdims, ".swapdims", args="input dim0 dim1", zeros="keep")
def transpose(op: Op) -> Types:
    """Two axes change places."""
    return _swapped(op.tensor("input"), op.value("dim0"), op.value("dim1"))


@rule(torch.swapaxes, ".swapaxes", args="input axis0 axis1", zeros="keep")
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
    result = (*parts[0][:place], constant(len(parts)), *parts[0][place:])
    zero_by_place(op, result, [(op.zero_as(operand), result) for operand in op.value("tensors")], all)
    return result


@rule(torch.chunk, ".chunk", torch.split, ".split", args="input sizes dim", zeros="keep")
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


@rule(torch.unbind, ".unbind", args="input dim", zeros="keep")
def unbind(op: Op) -> Types:
    """The axis is taken apart into single entries."""
    x = op.tensor("input")
    place = _place(op.value("dim", 0), len(x))
    op.freeze([x[place]], "taken apart", batch=True)
    return [(*x[:place], *x[place + 1 :])] * len(op.shapes)


@rule(torch.select, ".select", args="input dim index", zeros="keep")
def select(op: Op) -> Types:
    """One entry of an axis."""
    x = op.tensor("input")
    place = _place(op.value("dim"), len(x))
    op.freeze([x[place]], "one entry selected")
    return (*x[:place], *x[place + 1 :])


@rule(operator.getitem, args="input index", zeros="keep")
def getitem(op: Op) -> Types:
    """Members of a tuple or dict; slices of a tensor, whose bounds are written again."""
    x, index = op.types("input"), op.value("index")
    if not (isinstance(x, tuple) and all(isinstance(axis, Axis) for axis in x)):
        return x[index]
    keys = list(index) if isinstance(index, tuple) else [index]
    if not all(key is None or key is Ellipsis or type(key) in (int, slice, fx.Node) for key in keys):
        return freeze_operands(op, "indexed by a list")
    if any(op.dtype_of(key) in (torch.bool, torch.uint8) for key in keys if isinstance(key, fx.Node)):
        return freeze_operands(op, "indexed by a mask")
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
        if isinstance(key, fx.Node):
            by_number.append(len(result))
            op.freeze([axis], "taken by number", batch=True)
        elif isinstance(key, int):
            op.freeze([axis], "one entry selected")
        else:
            part, keys[i] = _slice(op, axis, key)
            result.append(part)
    if by_number:
        numbers = broadcast(op, [op.types_of(key) for key in keys if isinstance(key, fx.Node)])
        op.freeze(numbers, "numbers of entries")
        # Axes taken by number stand where the first was, or in front where others lie between.
        at = by_number[0] if by_number[0] == by_number[-1] else 0
        result[at:at] = numbers
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
        made = fresh if op.node.op == "call_function" else constant
        head, tail = made(before), made(after)
        amounts[2 * i], amounts[2 * i + 1] = head, tail
        result[-1 - i] = concat(head, axis, tail)
    if op.node.op == "call_function":
        op.emit_call(F.pad, op.value("input"), amounts, op.value("mode", "constant"), op.value("value"))
    return tuple(result)


@rule(
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, zeros="keep"
)
def spatial_pad(op: Op) -> Types:
    """Padding made of the tensor's own entries, on the last axes."""
    x = op.tensor("input")
    op.freeze(x[2:], "padded")
    return (*x[:2], *(constant(size) for size in op.shapes[2:]))


@rule(".expand", ".expand_as", ".broadcast_to", torch.broadcast_to, args="input other")
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


@rule(".repeat", ".tile", torch.tile, zeros="keep")
def repeat(op: Op) -> Types:
    """Copies of whole axes."""
    x = op.tensor("input")
    asked = op.extra[0] if op.extra and isinstance(op.extra[0], list | tuple) else op.extra
    counts = [1] * (len(op.shapes) - len(asked)) + [int(count) for count in asked]
    padded = (constant(1),) * (len(counts) - len(x)) + x
    copies = [fresh(count) for count in counts]
    op.emit_call("repeat", op.value("input"), copies)
    return tuple(product(count, axis) for count, axis in zip(copies, padded, strict=True))


@rule(torch.repeat_interleave, ".repeat_interleave", args="input repeats dim", zeros="keep")
def repeat_interleave(op: Op) -> Types:
    """Copies of every entry of an axis."""
    x, count, dim = op.tensor("input"), op.value("repeats"), op.value("dim")
    if not isinstance(count, int) or not isinstance(dim, int):
        return freeze_operands(op, "repeated")
    place = _place(dim, len(x))
    copies = fresh(count)
    op.emit_call(torch.repeat_interleave, op.value("input"), copies, place)
    return (*x[:place], product(x[place], copies), *x[place + 1 :])


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


@rule(torch.movedim, ".movedim", torch.moveaxis, ".moveaxis", args="input source destination", zeros="keep")
def movedim(op: Op) -> Types:
    """Axes move to other places."""
    x = op.tensor("input")
    sources, targets = ([d] if isinstance(d, int) else list(d) for d in map(op.value, ("source", "destination")))
    moved = {_place(d, len(x)): x[_place(s, len(x))] for s, d in zip(sources, targets, strict=True)}
    taken = {_place(s, len(x)) for s in sources}
    rest = iter(axis for i, axis in enumerate(x) if i not in taken)
    return tuple(moved[i] if i in moved else next(rest) for i in range(len(x)))


@rule(getattr, args="input name", zeros="keep")
def attribute(op: Op) -> Types:
    """Transposed tensors."""
    x, name = op.tensor("input"), op.value("name")
    if name in ("T", "mT", "H", "mH") and len(x) >= 2:
        return x[::-1] if name in ("T", "H") else (*x[:-2], x[-1], x[-2])
    return freeze_operands(op, f"attribute {name} that cannot be followed")


@rule(torch.t, ".t", torch.adjoint, ".adjoint", zeros="keep")
def swap_last(op: Op) -> Types:
    """The last two axes change places."""
    x = op.tensor("input")
    return x if len(x) < 2 else (*x[:-2], x[-1], x[-2])


@rule(nn.GLU, F.glu, args="input dim", zeros="keep")
def glu(op: Op) -> Types:
    """One half of an axis gates the other: both keep the same units."""
    x = op.tensor("input")
    place = _place(op.value("dim", -1), len(x))
    halves = cut(x[place], x[place].size // 2)
    if halves is None:
        return freeze_operands(op, "split through the batch")
    unify(halves[0], halves[1], f"halves of {op.where}")
    return (*x[:place], halves[0], *x[place + 1 :])


@rule(nn.PixelShuffle, F.pixel_shuffle, args="input upscale_factor", zeros="keep")
def pixel_shuffle(op: Op) -> Types:
    """Channels (C, r x r) become C channels of r times the side."""
    x, factor = op.tensor("input"), int(op.value("upscale_factor"))
    op.freeze(x[-2:], "spatial axis")
    channels = fresh(op.shapes[-3])
    unify(x[-3], product(channels, constant(factor * factor)), f"channels of {op.where}")
    return (*x[:-3], channels, *(constant(size) for size in op.shapes[-2:]))


@rule(nn.PixelUnshuffle, F.pixel_unshuffle, args="input downscale_factor", zeros="keep")
def pixel_unshuffle(op: Op) -> Types:
    """C channels become (C, r x r) channels of one r-th of the side."""
    x, factor = op.tensor("input"), int(op.value("downscale_factor"))
    op.freeze(x[-2:], "spatial axis")
    channels = product(x[-3], constant(factor * factor))
    return (*x[:-3], channels, *(constant(size) for size in op.shapes[-2:]))


@rule(nn.Unfold, F.unfold, zeros="keep")
def unfold(op: Op) -> Types:
    """Maps (B, C, H, W) become columns (B, (C, kernel), places)."""
    x = op.tensor("input")
    op.freeze(x[-2:], "spatial axis")
    columns = product(x[-3], constant(op.shapes[-2] // x[-3].size))
    return (*x[:-3], columns, constant(op.shapes[-1]))


@rule(nn.Fold, F.fold, zeros="keep")
def fold(op: Op) -> Types:
    """Columns (B, (C, kernel), places) become maps (B, C, H, W)."""
    x = op.tensor("input")
    channels = fresh(op.shapes[-3])
    op.freeze(x[-1:], "spatial axis")
    unify(x[-2], product(channels, constant(x[-2].size // channels.size)), f"channels of {op.where}")
    return (*x[:-2], channels, *(constant(size) for size in op.shapes[-2:]))


@rule(".unfold", args="input dimension size step", zeros="keep")
def sliding_windows(op: Op) -> Types:
    """Windows of an axis, with their entries on a new last axis."""
    x = op.tensor("input")
    place = _place(op.value("dimension"), len(x))
    op.freeze([x[place]], "seen through windows", batch=True)
    windows, entries = constant(op.shapes[place]), constant(op.shapes[-1])
    return (*x[:place], windows, *x[place + 1 :], entries)


@rule(F.grid_sample, args="input grid")
def grid_sample(op: Op) -> Types:
    """Maps (B, C, ...) read at the places of a grid (B, ..., rank)."""
    x, grid = op.tensor("input"), op.tensor("grid")
    op.freeze((*x[2:], *grid[1:]), "spatial axis")
    unify(x[0], grid[0], f"examples of {op.where}")
    op.zero_at(*op.zero_as(op.value("input")))
    return (*x[:2], *grid[1:-1])


@rule(torch.index_select, ".index_select", args="input dim index", zeros="keep")
def index_select(op: Op) -> Types:
    """Entries of an axis by number: a stored permutation of all of them moves their units about."""
    x, numbers, index = op.tensor("input"), op.types("index"), op.stored("index")
    place = _place(op.value("dim"), len(x))
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


@rule(*_pool_targets(), args="input", zeros="keep")
def pool(op: Op) -> Types:
    """Channels pass, spatial axes are resampled."""
    x = op.tensor("input")
    rank = re.search(r"(\d)d$", op.kind)
    if not isinstance(op.shapes, torch.Size) or len(op.shapes) != len(x) or (rank and len(x) != int(rank[1]) + 2):
        return freeze_operands(op, "pooling that cannot be followed")
    op.freeze(x[2:], "spatial axis")
    return (*x[:2], *(constant(size) for size in op.shapes[2:]))


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
    return {_place(d, rank) for d in (dim if isinstance(dim, tuple | list) else (dim,))}


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
    call: Any = Call(target, tuple(op.node.args), dict(op.node.kwargs))
    for share in shares[:-1]:
        call = Call(torch.mul, (call, share))
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
