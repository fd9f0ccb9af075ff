"""In-place operations spelled out of place."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from mdp_fx.graph.purity import IN_PLACE_OPERATORS, WRITES, is_pure
from mdp_fx.graph.tracer import ALIASES, DTYPE, called_module
from mdp_fx.passes.normalize.edit import redirect

# In-place methods whose out-of-place spelling gives booleans.
_TESTS = frozenset("eq ne lt le gt ge logical_and logical_or logical_xor logical_not".split())
# In-place methods whose out-of-place spelling still shares the operand's memory.
_VIEWS = frozenset("unsqueeze squeeze transpose t swapaxes swapdims detach".split())


def write_out_of_place(module: fx.GraphModule) -> bool:
    """Spells in-place operations out of place, so that a removed or sliced node cannot change what others read.

    Later readers of the operand read the result instead. An operation on a tensor whose memory is read later under
    another name cannot be spelled so: it stays, and is marked as one that writes.

    Returns:
        Whether anything changed.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    by_name = {node.name: node for node in order}
    written_out: dict[int, Any] = {}
    changed = False
    for node in order:
        spelling = _out_of_place(module, node)
        if spelling is None:
            continue
        operand = node.args[0] if node.args else None
        if (
            not isinstance(operand, fx.Node)
            or _shares_memory(operand, node, order, by_name)
            or _changes_type(operand, node, spelling)
        ):
            _keep_in_place(module, node, spelling)
            continue
        if spelling.inplace is not None:
            # It may be called again: all its calls must be looked at before it changes.
            written_out[id(spelling.inplace)] = spelling.inplace
        later = [user for user in operand.users if order[user] > order[node]]
        node.target, node.args, node.kwargs = spelling.target, spelling.args, spelling.kwargs
        node.meta.pop(WRITES, None)
        if spelling.target not in _VIEWS:
            node.meta[ALIASES] = ()
        for user in later:
            redirect(user, operand, node)
        changed = True
    for owner in written_out.values():
        owner.inplace = False
    return changed


def _keep_in_place(module: fx.GraphModule, node: fx.Node, spelling: _Spelling) -> None:
    node.meta[WRITES] = True
    owners = [called_module(module, n) for n in module.graph.find_nodes(op="call_module")]
    if sum(owner is spelling.inplace for owner in owners) > 1:
        # Other calls of the same module may be spelled out of place: this one gets a module of its own.
        target = f"{node.target}_in_place_{node.name}"
        module.add_submodule(target, copy.copy(spelling.inplace))
        node.target = target


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
        owner: Any = called_module(module, node)
        if getattr(owner, "inplace", False) is not True:
            return None
        spelling.inplace = owner
    elif node.target in IN_PLACE_OPERATORS:
        spelling.target = IN_PLACE_OPERATORS[node.target]
    elif node.kwargs.get("out") is not None or (is_pure(node) and not _asks_in_place(node)):
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


def _changes_type(operand: fx.Node, node: fx.Node, spelling: _Spelling) -> bool:
    """Whether the result would not have the operand's number type, which a result written in place has."""
    if spelling.target in _TESTS:
        return True
    own = operand.meta[DTYPE]
    others = [source.meta[DTYPE] for source in node.all_input_nodes]
    return any(isinstance(other, torch.dtype) and torch.promote_types(own, other) != own for other in others)


def _shares_memory(
    operand: fx.Node, node: fx.Node, order: Mapping[fx.Node, int], by_name: Mapping[str, fx.Node]
) -> bool:
    """Whether the operand's memory is read later through an earlier node, or belongs to the weights.

    Later nodes do not matter: those that read the operand will read the result instead.
    """
    shared = {operand}
    pending = [operand]
    while pending:
        for name in pending.pop().meta.get(ALIASES, ()):
            source = by_name[name]
            if source not in shared:
                shared.add(source)
                pending.append(source)
    for other in order:
        if other is node:
            break
        if any(by_name[name] in shared for name in other.meta.get(ALIASES, ())):
            shared.add(other)
    if any(view.op == "get_attr" for view in shared):
        return True
    return any(order[user] > order[node] for view in shared - {operand} for user in view.users)
