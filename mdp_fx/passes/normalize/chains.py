"""Nodes that only move or reshape axes, read off their shapes and not off how they are spelled."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mdp_fx.graph.tracer import DTYPE, SHAPE
from mdp_fx.passes.normalize.edit import is_tensor, op_name

_RESHAPES = frozenset("view reshape flatten unflatten _unsafe_view".split())
_PERMUTATIONS = frozenset("permute transpose swapaxes swapdims movedim moveaxis t".split())
_COPIES = frozenset("contiguous clone".split())


def operand_of(node: fx.Node) -> fx.Node | None:
    """The tensor that a node reads, where it is its first argument and its only operand."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) and node.all_input_nodes == [first] and is_tensor(first) else None


def is_reshape(node: fx.Node) -> bool:
    """Whether a node gives the entries of its one operand, in order, in another shape."""
    source = operand_of(node)
    return op_name(node) in _RESHAPES and source is not None and source.meta[DTYPE] == node.meta[DTYPE]


def is_copy(node: fx.Node) -> bool:
    """Whether a node gives its one operand as it is, in memory of its own or of another order."""
    return op_name(node) in _COPIES and operand_of(node) is not None


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """For each axis of a node's value the axis of its one operand that it is; None where it does more than that."""
    source = operand_of(node)
    if op_name(node) not in _PERMUTATIONS or source is None:
        return None
    # All sizes of the probe differ, so its result shows where each axis went.
    probe = torch.empty([2 + i for i in range(len(source.meta[SHAPE]))], device="meta")
    target: Any = node.target
    function = getattr(torch.Tensor, target) if node.op == "call_method" else target
    return tuple(size - 2 for size in function(probe, *node.args[1:], **node.kwargs).shape)
