"""Fused projections: one layer for queries, keys and values becomes one each, so that their sizes are independent."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from mdp_fx.graph.readers import readers_of
from mdp_fx.graph.tracer import SHAPE, attribute, called_module
from mdp_fx.passes.normalize.chains import is_copy, is_reshape, operand_of, permutation
from mdp_fx.passes.normalize.edit import (
    Editor,
    argument,
    container,
    free_name,
    is_plain,
    is_tensor,
    linear,
    op_name,
    replace,
    taken,
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Projection:
    """What is split: a layer, or a function of stored tensors where `layer` is None; its parts are stored at `path`."""

    x: fx.Node
    weight: nn.Parameter
    bias: Tensor | None
    layer: nn.Module | None
    path: str

    def part(self, entries: Tensor) -> nn.Module:
        """The layer that computes these entries of the out axis."""
        weight, bias = taken(self.weight, entries), None if self.bias is None else taken(self.bias, entries)
        if self.layer is None or isinstance(self.layer, nn.Linear):
            return linear(weight, bias)
        layer: Any = copy.deepcopy(self.layer, {id(self.weight): weight, id(self.bias): bias})
        layer.out_channels = len(entries)
        assert isinstance(layer, nn.Module)
        return layer


@dataclass(frozen=True)
class _Piece:
    """A node that reads one entry of an axis; `keeps` says that it leaves it there with size 1."""

    node: fx.Node
    axis: int
    index: int
    keeps: bool


@dataclass(frozen=True)
class _Mark:
    """Where the axis that is taken apart is found in an earlier value: in `axis`, with `inner` entries below it."""

    axis: int
    inner: int


def split_projections(module: fx.GraphModule) -> bool:
    """Splits every linear layer and convolution whose out axis is reshaped to have an axis that is only taken apart.

    Between the two only axes are moved and reshaped; each part gets these steps without the axis.

    Returns:
        Whether anything changed.
    """
    read_by = readers_of(module)
    changed = False
    for node in list(module.graph.nodes):
        if not (node.op == "call_module" or op_name(node) == "linear") or not is_tensor(node):
            continue
        chain = _chain_after(node)
        pieces = _pieces(chain[-1])
        marks = _follow_back(chain, pieces[0].axis) if pieces else None
        projection = _projection(module, node, read_by) if marks else None
        if marks and projection is not None and _is_inside(chain, marks, projection):
            _split(module, chain, marks, pieces, projection)
            changed = True
    return changed


def _chain_after(node: fx.Node) -> list[fx.Node]:
    """A node and what moves or reshapes the axes of its value, as long as there is one reader."""
    chain = [node]
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        bare_copy = is_copy(user) and len(user.args) == 1 and not user.kwargs
        if not (bare_copy or is_reshape(user) or permutation(user)):
            break
        chain.append(user)
    return chain


def _pieces(node: fx.Node) -> list[_Piece]:
    """The readers of a value that all take single entries of the same axis; empty where there are others."""
    pieces: list[_Piece] = []
    for user in node.users:
        found = _pieces_of(user, node.meta[SHAPE]) if operand_of(user) is node else []
        if not found:
            return []
        pieces += found
    return pieces if len({piece.axis for piece in pieces}) == 1 else []


def _pieces_of(node: fx.Node, shape: torch.Size) -> list[_Piece]:
    called, rank = op_name(node), len(shape)
    if called == "getitem":
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        at = next((i for i, key in enumerate(index) if key is Ellipsis), len(index))
        keys = [*index[:at], *[slice(None)] * (rank - len(index) + (at < len(index))), *index[at + 1 :]]
        places = [i for i, key in enumerate(keys) if key != slice(None)]
        if len(keys) != rank or len(places) != 1:
            return []
        (axis,) = places
        if type(keys[axis]) is int:
            return [_Piece(node, axis, int(keys[axis]), keeps=False)]
        entries = range(shape[axis])[keys[axis]] if isinstance(keys[axis], slice) else range(0)
        return [_Piece(node, axis, entries[0], keeps=True)] if len(entries) == 1 else []
    if called == "select":
        axis, entry = argument(node, 1, "dim"), argument(node, 2, "index")
        return [_Piece(node, axis % rank, entry, keeps=False)] if type(axis) is int and type(entry) is int else []
    if called not in ("unbind", "chunk", "split", "tensor_split"):
        return []
    axis = argument(node, 1 if called == "unbind" else 2, "dim", 0) % rank
    keeps = called != "unbind"
    if keeps and any(part[axis] != 1 for part in node.meta[SHAPE]):
        return []
    if not all(op_name(user) == "getitem" and type(user.args[1]) is int for user in node.users):
        return []
    return [_Piece(user, axis, int(user.args[1]), keeps) for user in node.users]  # type: ignore[arg-type]


def _follow_back(chain: list[fx.Node], axis: int) -> list[_Mark] | None:
    """Where an axis of the last value lies in each value of a chain; None where it is no part of one axis."""
    count = chain[-1].meta[SHAPE][axis]
    marks = [_Mark(axis, 1)]
    for source, node in reversed(list(pairwise(chain))):
        mark, order = marks[0], permutation(node)
        if order:
            mark = _Mark(order[mark.axis], mark.inner)
        elif is_reshape(node):
            before, after = tuple(source.meta[SHAPE]), tuple(node.meta[SHAPE])
            below = prod(after[mark.axis + 1 :]) * mark.inner
            for i, size in enumerate(before):
                stride = prod(before[i + 1 :])
                if below % stride == 0 and size > 1 and stride * size % (below * count) == 0:
                    mark = _Mark(i, below // stride)
                    break
            else:
                return None
            if before[mark.axis] == count and not _strides(before) <= _strides(after):
                # Merged across the axis that goes: whether this copies would depend on it.
                return None
        marks.insert(0, mark)
    return marks


def _strides(shape: tuple[int, ...]) -> set[int]:
    return {prod(shape[i:]) for i in range(len(shape))}


def _projection(module: fx.GraphModule, node: fx.Node, read_by: dict[int, list[fx.Node]]) -> _Projection | None:
    """A layer that is called once, or a function of stored tensors, which nobody else reads."""
    if node.op == "call_module":
        layer: Any = called_module(module, node)
        x = operand_of(node)
        if x is None or not is_plain(layer, nn.Linear, *_CONVOLUTIONS) or getattr(layer, "groups", 1) != 1:
            return None
        own = all(read_by[id(tensor)] == [node] for tensor in layer.parameters())
        return _Projection(x, layer.weight, layer.bias, layer, str(node.target)) if own else None
    x, weight, bias = (argument(node, i, name) for i, name in enumerate(("input", "weight", "bias")))
    if not is_tensor(x) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    joined = bias is not None and op_name(bias) in ("cat", "concat", "concatenate")
    sources = [] if bias is None else bias.all_input_nodes if joined else [bias]
    if any(source.op != "get_attr" for source in sources):
        return None
    stored = [attribute(module, str(source.target)) for source in (weight, *sources)]
    learned = [tensor for tensor in stored if isinstance(tensor, nn.Parameter)]
    inside = {node, bias} if joined else {node}
    if not isinstance(stored[0], nn.Parameter) or any(len(read_by[id(tensor)]) != 1 for tensor in learned):
        return None
    if any(not inside.issuperset(source.users) for source in (weight, *sources)) or (joined and len(bias.users) != 1):
        return None
    flag = any(tensor.requires_grad for tensor in stored[1:])
    value = nn.Parameter(torch.cat([tensor.detach() for tensor in stored[1:]]), flag) if sources else None
    if value is not None and len(value) != len(stored[0]):
        # A tensor that is joined with itself: its copies must stay equal.
        return None
    return _Projection(x, stored[0], value, None, _path(module, weight, sources))


def _path(module: fx.GraphModule, weight: fx.Node, others: list[fx.Node]) -> str:
    """The path of the weight's module where nothing else in it is read, else a new one."""
    owner = str(weight.target).rpartition(".")[0]
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr") and node is not weight and node not in others:
            target = str(node.target)
            if target == owner or target.startswith(f"{owner}."):
                owner = ""
                break
    return owner or free_name(module, f"{weight.target}_parts")


def _is_inside(chain: list[fx.Node], marks: list[_Mark], projection: _Projection) -> bool:
    """Whether the axis has several entries and is part of the projection's out axis, not all of it."""
    out = len(chain[0].meta[SHAPE]) - projection.weight.ndim + 1
    return marks[0].axis == out and 1 < chain[-1].meta[SHAPE][marks[-1].axis] < len(projection.weight)


def _split(
    module: fx.GraphModule, chain: list[fx.Node], marks: list[_Mark], pieces: list[_Piece], projection: _Projection
) -> None:
    axis = pieces[0].axis
    count = chain[-1].meta[SHAPE][axis]
    entry = torch.arange(len(projection.weight)) // marks[0].inner % count
    names = list("qkv") if count == 3 else [f"part_{i}" for i in range(count)]
    read = sorted({piece.index % count for piece in pieces})
    parts = {names[i]: projection.part(torch.nonzero(entry == i).flatten()) for i in read}
    module.add_submodule(projection.path, container(**parts))
    edit = Editor(module, chain[0])
    values: dict[int, fx.Node] = {}
    for i in read:
        value = edit.layer(f"{projection.path}.{names[i]}", projection.x)
        for (before, node), (mark, after) in zip(pairwise(chain), pairwise(marks), strict=True):
            value = _step(edit, value, before, node, mark, after, count)
        values[i] = value
    for piece in pieces:
        value = values[piece.index % count]
        replace(piece.node, edit.call("unsqueeze", value, axis) if piece.keeps else value)


def _step(
    edit: Editor, value: fx.Node, before: fx.Node, node: fx.Node, mark: _Mark, after: _Mark, count: int
) -> fx.Node:
    """Does to one part what `node` does to all; where the marked axis would have size 1 it is left out."""
    order = permutation(node)
    if order:
        if before.meta[SHAPE][mark.axis] == count:
            order = tuple(i - (i > mark.axis) for i in order if i != mark.axis)
        return value if order == tuple(range(len(order))) else edit.call("permute", value, order)
    if is_copy(node):
        return edit.call("contiguous", value)
    shape = list(node.meta[SHAPE])
    shape[after.axis] //= count
    if shape[after.axis] == 1:
        del shape[after.axis]
    return value if tuple(shape) == tuple(value.meta[SHAPE]) else edit.call("reshape", value, tuple(shape))
