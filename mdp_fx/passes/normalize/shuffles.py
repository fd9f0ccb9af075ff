"""Channel shuffles: an axis that is split, swapped and merged again becomes a gather with a stored permutation."""

from __future__ import annotations

import torch
from torch import fx, nn

from mdp_fx.graph.purity import is_pure
from mdp_fx.graph.tracer import SHAPE, called_module
from mdp_fx.passes.normalize.chains import is_copy, is_reshape, operand_of, permutation
from mdp_fx.passes.normalize.edit import Editor, free_name, is_plain, op_name, replace, store


def gather_shuffles(module: fx.GraphModule) -> bool:
    """Turns shuffles of one axis into `torch.index_select` with a stored int64 permutation.

    Split, the axis would be two coupled ones; gathered, it stays one. Runs after in-place operations that have another
    spelling have it.

    Returns:
        Whether anything changed.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    writes = [i for node, i in order.items() if node.op not in ("placeholder", "output") and not is_pure(node)]
    changed = False
    for node in order:
        chain = [node] if _groups_of_a_layer(module, node) else _chain_before(node)
        x = operand_of(chain[0]) if chain else None
        found = _split_axis(module, chain, x) if x is not None else None
        # The gather reads the operand later than the view did.
        if x is None or found is None or any(order[chain[0]] < write < order[node] for write in writes):
            continue
        dim, groups = found
        path = free_name(module, "shuffle_index_0")
        store(module, path, torch.arange(x.meta[SHAPE][dim]).reshape(groups, -1).t().reshape(-1))
        edit = Editor(module, node)
        replace(node, edit.call(torch.index_select, x, dim, edit.stored(path)))
        changed = True
    return changed


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
