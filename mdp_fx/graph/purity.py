"""Which nodes only compute a value, and may go when nobody reads it."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

WRITES = "writes"
"""Key in `node.meta`: the node writes to memory that others read."""

IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def is_pure(node: fx.Node) -> bool:
    """Whether a node only computes its value: it writes to no tensor and is no input or output."""
    if node.op in ("placeholder", "output") or node.meta.get(WRITES):
        return False
    if node.op == "call_module" or node.op == "get_attr":
        return True
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
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
