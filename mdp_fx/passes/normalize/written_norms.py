"""Layer norms that a forward writes out, over whatever axes, become calls of `layer_norm`.

Taken one by one, their statistics mix all units: what is subtracted and divided by would be the dense network's. As a
norm, they are over the units that are kept.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

from mdp_fx.graph.tracer import SHAPE
from mdp_fx.passes.normalize.edit import Editor, WriteOrder, argument, is_tensor, op_name, replace

_Statistic = tuple[fx.Node, tuple[int, ...]]
"""A tensor and the axes that something is taken over."""

_QUOTIENTS = frozenset("div divide true_divide truediv".split())
_PRODUCTS = frozenset("mul multiply".split())
_SUMS = frozenset("add".split())
_DIFFERENCES = frozenset("sub subtract".split())


def name_layer_norms(module: fx.GraphModule) -> bool:
    """Turns (x - mean) / sqrt(variance + eps) into `layer_norm`, with x's axes moved where they are not the last ones.

    Returns:
        Whether anything changed.
    """
    order = WriteOrder(module.graph)
    changed = False
    for node in order.nodes:
        found = _layer_norm(node)
        # The norm reads its operand later than the mean did.
        if found is None or order.writes_between(found[0], node):
            continue
        x, places, eps = found
        edit = Editor(module, node)
        there = (*(place for place in range(len(x.meta[SHAPE])) if place not in places), *places)
        moves = there != tuple(range(len(there)))
        y = edit.call("permute", x, there) if moves else x
        y = edit.call(F.layer_norm, y, tuple(x.meta[SHAPE][place] for place in places), None, None, eps)
        back = tuple(there.index(place) for place in range(len(there)))
        replace(node, edit.call("permute", y, back) if moves else y)
        changed = True
    return changed


def _layer_norm(node: fx.Node) -> tuple[fx.Node, tuple[int, ...], float] | None:
    """What a node is the layer norm of, over which axes, with which eps; None where it is none."""
    for one, other in _operands(node):
        if op_name(node) in _QUOTIENTS and one is node.args[0]:
            spread = _root(other, "sqrt", 0.5)
        elif op_name(node) in _PRODUCTS:
            spread = _root(other, "rsqrt", -0.5)
        else:
            continue
        centred = _centred(one)
        if spread is None or centred is None:
            continue
        variance, eps = spread
        if _variance(variance) == centred and 0 not in centred[1]:
            return (*centred, eps)
    return None


def _operands(node: object) -> list[tuple[Any, Any]]:
    """The two operands of a node in both orders; none where it has another number of arguments."""
    if not isinstance(node, fx.Node) or len(node.args) != 2 or node.kwargs:
        return []
    one, other = node.args
    return [(one, other), (other, one)]


def _root(node: object, name: str, power: float) -> tuple[fx.Node, float] | None:
    """What a node is a power of with a number added to it, and that number."""
    if not isinstance(node, fx.Node):
        return None
    is_power = op_name(node) == "pow" and node.args[1:] == (power,)
    if (op_name(node) != name and not is_power) or node.kwargs:
        return None
    inner = node.args[0]
    for term, eps in _operands(inner):
        if isinstance(inner, fx.Node) and op_name(inner) in _SUMS and is_tensor(term) and isinstance(eps, int | float):
            return term, float(eps)
    return None


def _centred(node: object) -> _Statistic | None:
    """What a node is without its mean."""
    if not isinstance(node, fx.Node) or op_name(node) not in _DIFFERENCES or len(node.args) != 2 or node.kwargs:
        return None
    found = _statistic(node.args[1], "mean")
    return found if found is not None and found[0] is node.args[0] else None


def _variance(node: fx.Node) -> _Statistic | None:
    """What a node is the variance of, not corrected for the number of entries."""
    direct = _statistic(node, "var")
    if direct is not None:
        return direct
    squares = _statistic(node, "mean")
    if squares is None:
        return None
    square, places = squares
    is_square = op_name(square) == "square" or (op_name(square) == "pow" and square.args[1:] == (2,))
    is_product = op_name(square) in _PRODUCTS and len(set(map(_centred, square.args))) == 1
    centred = _centred(square.args[0]) if (is_square or is_product) and not square.kwargs else None
    return centred if centred is not None and centred[1] == places else None


def _statistic(node: object, name: str) -> _Statistic | None:
    """What a node is the mean or the variance of, over which axes, where they stay."""
    if isinstance(node, fx.Node) and op_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
        both = node.args[0]
        taken = op_name(both) == "var_mean" and node.args[1] == ("var", "mean").index(name)
        return _over(both, 3) if taken and _is_biased(both) else None
    if not isinstance(node, fx.Node) or op_name(node) != name:
        return None
    if name == "mean":
        return _over(node, 2)
    return _over(node, 3) if _is_biased(node) else None


def _over(node: fx.Node, keepdim: int) -> _Statistic | None:
    x, dim = argument(node, 0, "input"), argument(node, 1, "dim")
    dims = dim if isinstance(dim, list | tuple) else (dim,)
    known = is_tensor(x) and dims and all(type(d) is int for d in dims) and argument(node, keepdim, "keepdim")
    return (x, tuple(sorted(d % len(x.meta[SHAPE]) for d in dims))) if known and "dtype" not in node.kwargs else None


def _is_biased(node: fx.Node) -> bool:
    correction = node.kwargs.get("correction", argument(node, 2, "unbiased", True))
    return correction is not None and not correction
