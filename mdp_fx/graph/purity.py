"""Which nodes only compute a value, and may go when nobody reads it."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch._ops import OpOverload

WRITES = "writes"
"""Key in `node.meta`: the node writes to memory that others read."""

IN_PLACE_OPERATORS: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, f"{name}_" if name in ("and", "or") else name)
    for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
}
"""Augmented assignments that write to a tensor, and the operators that compute the same."""

_WRITERS = frozenset({"__setitem__", "__set__", *(f"__{target.__name__}__" for target in IN_PLACE_OPERATORS)})
"""Special methods that write to a tensor."""


def target_name(target: Any) -> str:
    """The name of the function or method that a node calls; of an ATen overload that of its operator."""
    if isinstance(target, OpOverload):
        return target._schema.name.rpartition("::")[2]
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def is_pure(node: fx.Node) -> bool:
    """Whether a node only computes its value: it writes to no tensor and is no input or output."""
    if node.op in ("placeholder", "output") or node.meta.get(WRITES):
        return False
    if node.op == "call_module" or node.op == "get_attr":
        return True
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return False
    name = target_name(node.target)
    if name in _WRITERS:
        return False
    if node.target in (operator.and_, operator.or_, operator.not_):
        return True
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        return False
    if node.target is operator.setitem or node.target in IN_PLACE_OPERATORS:
        return False
    return not name.endswith("_") or name.endswith("__") or name == "requires_grad_"


def remove_dead_nodes(graph: fx.Graph) -> bool:
    """Removes pure nodes that nobody reads; torch.fx's own elimination would drop in-place methods too."""
    removed = False
    for node in reversed(graph.nodes):
        if is_pure(node) and not node.users:
            graph.erase_node(node)
            removed = True
    return removed
