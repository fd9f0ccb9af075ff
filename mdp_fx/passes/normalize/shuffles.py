"""Channel shuffles: an axis whose entries change places becomes a gather with a stored permutation."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from mdp_fx.graph.purity import is_pure
from mdp_fx.graph.tracer import DTYPE, SHAPE, attribute, called_module
from mdp_fx.passes.normalize.chains import is_copy, is_reshape, operand_of, permutation
from mdp_fx.passes.normalize.constants import constant_nodes, evaluate, is_random
from mdp_fx.passes.normalize.edit import (
    Editor,
    WriteOrder,
    argument,
    free_name,
    is_plain,
    is_tensor,
    op_name,
    replace,
    store,
)


def gather_shuffles(module: fx.GraphModule) -> bool:
    """Turns shuffles of one axis into `torch.index_select` with a stored int64 permutation.

    Split, the axis would be two coupled ones; gathered, it stays one. Runs after in-place operations that have another
    spelling have it.

    Returns:
        Whether anything changed.
    """
    order = WriteOrder(module.graph)
    changed = False
    for node in order.nodes:
        chain = [node] if _groups_of_a_layer(module, node) else _chain_before(node)
        x = operand_of(chain[0]) if chain else None
        found = _split_axis(module, chain, x) if x is not None else None
        # The gather reads the operand later than the view did.
        if x is None or found is None or order.writes_between(chain[0], node):
            continue
        dim, groups = found
        path = free_name(module, "shuffle_index_0")
        store(module, path, torch.arange(x.meta[SHAPE][dim]).reshape(groups, -1).t().reshape(-1))
        edit = Editor(module, node)
        replace(node, edit.call(torch.index_select, x, dim, edit.stored(path)))
        changed = True
    return changed


def gather_orders(module: fx.GraphModule) -> bool:
    """Turns all entries of an axis, taken in a constant order, into `torch.index_select` with a stored permutation.

    The order may be a list of numbers or any tensor that no input changes, and that nobody writes to.

    Returns:
        Whether anything changed.
    """
    constants = constant_nodes(module.graph)
    settled = not any(node.args[0] in constants for node in module.graph.nodes if node.args and not is_pure(node))
    changed = False
    for node in list(module.graph.nodes):
        taken = _taken_in_order(node)
        if taken is None:
            continue
        x, dim, numbers = taken
        cone = [part for part in constants if part in _ancestors(numbers)]
        if isinstance(numbers, fx.Node):
            if not settled or numbers not in cone or is_random(module, cone):
                continue
            order = evaluate(module, cone)[numbers]
        else:
            order = torch.tensor(numbers)
        order = order % len(order)
        if not torch.equal(order.sort().values.cpu(), torch.arange(x.meta[SHAPE][dim])):
            continue
        edit = Editor(module, node)
        replace(node, edit.call(torch.index_select, x, dim, edit.stored(_stored_as(module, order, cone))))
        changed = True
    return changed


def _stored_as(module: fx.GraphModule, order: torch.Tensor, cone: list[fx.Node]) -> str:
    """Where an order is stored that was found in some constant nodes."""
    for part in cone:
        if part.op == "get_attr" and torch.equal(attribute(module, str(part.target)), order):
            return str(part.target)
    path = free_name(module, "shuffle_index_0")
    store(module, path, order)
    return path


def _taken_in_order(node: fx.Node) -> tuple[fx.Node, int, Any] | None:
    """What a node takes entries of, along which axis, and their numbers: a list or a node; None where it does not."""
    x = argument(node, 0, "input")
    if op_name(node) not in ("index_select", "getitem") or not is_tensor(x):
        return None
    rank = len(x.meta[SHAPE])
    if op_name(node) == "index_select":
        index = argument(node, 2, "index")
        # One that is stored is what others are turned into.
        return None if index.op == "get_attr" else (x, argument(node, 1, "dim") % rank, index)
    index = node.args[1]
    keys: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (rank + 1 - len(keys))
    places = [place for place, key in enumerate(keys) if key != slice(None)]
    key = keys[places[0]] if len(places) == 1 else None
    if isinstance(key, fx.Node):
        known = is_tensor(key) and len(key.meta[SHAPE]) == 1 and key.meta[DTYPE] in (torch.int64, torch.int32)
    else:
        known = isinstance(key, list) and bool(key) and all(type(number) is int for number in key)
    return (x, places[0], key) if known else None


def _ancestors(node: object) -> set[fx.Node]:
    """A node and all that its value is computed from; nothing for what is no node."""
    found: set[fx.Node] = set()
    pending = [node] if isinstance(node, fx.Node) else []
    while pending:
        part = pending.pop()
        if part not in found:
            found.add(part)
            pending += part.all_input_nodes
    return found


def _groups_of_a_layer(module: fx.GraphModule, node: fx.Node) -> int:
    """Into how many groups a layer or function that shuffles channels splits them; 0 where it is none."""
    if node.op == "call_module":
        layer = called_module(module, node)
        return int(layer.groups) if isinstance(layer, nn.ChannelShuffle) and is_plain(layer, nn.ChannelShuffle) else 0
    if op_name(node) in ("channel_shuffle", "native_channel_shuffle"):
        groups = node.args[1] if len(node.args) > 1 else node.kwargs.get("groups")
        return groups if isinstance(groups, int) else 0
    return 0


def _chain_before(node: fx.Node) -> list[fx.Node]:
    """The nodes (split, swap, merge) that end at `node`, where nobody else reads what is between them."""
    if not is_reshape(node):
        return []
    swap = operand_of(node)
    while swap is not None and is_copy(swap) and len(swap.users) == 1:
        swap = operand_of(swap)
    split = operand_of(swap) if swap is not None and len(swap.users) == 1 and permutation(swap) else None
    if swap is None or split is None or not is_reshape(split) or len(split.users) != 1:
        return []
    return [split, swap, node]


def _split_axis(module: fx.GraphModule, chain: list[fx.Node], x: fx.Node) -> tuple[int, int] | None:
    """The axis that is shuffled, never the first one, and into how many groups it is split."""
    shape = tuple(x.meta[SHAPE])
    if len(chain) == 1:
        groups = _groups_of_a_layer(module, chain[0])
        return (1, groups) if 1 < groups < shape[1] else None
    split, swap, merge = chain
    parts, order = tuple(split.meta[SHAPE]), permutation(swap)
    if tuple(merge.meta[SHAPE]) != shape or len(parts) != len(shape) + 1:
        return None
    for dim in range(1, len(shape)):
        swapped = (*range(dim), dim + 1, dim, *range(dim + 2, len(parts)))
        whole = (*parts[:dim], parts[dim] * parts[dim + 1], *parts[dim + 2 :])
        if order == swapped and whole == shape and min(parts[dim : dim + 2]) > 1:
            return dim, parts[dim]
    return None
