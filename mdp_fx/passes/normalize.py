"""One canonical spelling per idea, with the same numerics."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.purity import IN_PLACE_OPERATORS, WRITES, is_pure
from mdp_fx.graph.trace import is_eval_flag

_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}

_ALIASING = frozenset(
    "getitem view reshape flatten unflatten transpose permute chunk split narrow select squeeze unsqueeze expand "
    "expand_as swapaxes unbind t contiguous detach getattr to".split()
)


def write_out_of_place(module: fx.GraphModule) -> bool:
    """Spells in-place operations out of place, so that a removed or sliced node cannot change what others read.

    Later readers of the operand read the result instead. An operation on a tensor whose memory is read later under
    another name cannot be spelled so: it stays, and is marked as one that writes.

    Returns:
        Whether anything changed.
    """
    changed = False
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in order:
        spelling = _out_of_place(module, node)
        if spelling is None:
            continue
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node) or _shares_memory(operand, node, order):
            node.meta[WRITES] = True
            continue
        if spelling.inplace is not None:
            spelling.inplace.inplace = False
        node.target, node.args, node.kwargs = spelling.target, spelling.args, spelling.kwargs
        later = [user for user in operand.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(operand, node)
        changed = True
    return changed


class _Spelling:
    def __init__(self, node: fx.Node) -> None:
        self.target = node.target
        self.args = node.args
        self.kwargs = dict(node.kwargs)
        self.inplace: Any = None


def _out_of_place(module: fx.GraphModule, node: fx.Node) -> _Spelling | None:
    """How an in-place node is spelled out of place; None where it is not in place or has no such spelling."""
    spelling = _Spelling(node)
    if node.op == "call_module":
        owner: Any = module.get_submodule(str(node.target))
        if getattr(owner, "inplace", False) is not True:
            return None
        spelling.inplace = owner
    elif node.target in IN_PLACE_OPERATORS:
        spelling.target = IN_PLACE_OPERATORS[node.target]
    elif is_pure(node) and not _asks_in_place(node):
        return None
    elif node.op == "call_method" and hasattr(torch.Tensor, str(node.target).rstrip("_")):
        spelling.target = str(node.target).rstrip("_")
    elif _asks_in_place(node):
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
        bound.arguments["inplace"] = False
        spelling.args, spelling.kwargs = bound.args, bound.kwargs
    elif node.op == "call_function" and hasattr(torch, getattr(node.target, "__name__", "").rstrip("_")):
        spelling.target = getattr(torch, node.target.__name__.rstrip("_"))  # type: ignore[union-attr]
    else:
        return None
    return spelling


def _asks_in_place(node: fx.Node) -> bool:
    if node.op != "call_function" or getattr(node.target, "__module__", None) != "torch.nn.functional":
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return bool(bound.arguments.get("inplace"))


def _shares_memory(operand: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether the operand's memory is read later through another node, or belongs to the caller or the weights."""
    root = operand
    while _aliases(root) and isinstance(root.args[0], fx.Node):
        root = root.args[0]
    if root.op in ("get_attr",):
        return True
    views = {root}
    for other in order:
        if _aliases(other) and other.args[0] in views:
            views.add(other)
    return any(order[user] > order[node] for view in views - {operand} for user in view.users if user not in views)


def _aliases(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _ALIASING and bool(node.args)


def make_dropout_modules(module: fx.GraphModule) -> bool:
    """Turns calls of dropout functions that follow `self.training` into modules, which follow it in the traced network.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in module.graph.nodes:
        flagged = [name for name, value in node.kwargs.items() if is_eval_flag(value)]
        if not flagged and not any(is_eval_flag(value) for value in node.args):
            continue
        changed = True
        if node.target in _DROPOUTS and isinstance(node.target, type(F.dropout)):
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            module.add_submodule(node.name, _DROPOUTS[node.target](bound.arguments.get("p", 0.5)).eval())
            node.op, node.target, node.args, node.kwargs = "call_module", node.name, (bound.args[0],), {}
            continue
        node.args = tuple(False if is_eval_flag(value) else value for value in node.args)
        node.kwargs = {name: False if is_eval_flag(value) else value for name, value in node.kwargs.items()}
    return changed


def normalize(module: fx.GraphModule) -> bool:
    """Runs all normalisations in place; returns whether anything changed, so a second run returns False."""
    changed = [step(module) for step in (make_dropout_modules, write_out_of_place)]
    if any(changed):
        module.graph.lint()
        module.recompile()
    return any(changed)
