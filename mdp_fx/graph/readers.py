"""Who reads which stored tensor of a traced network."""

from __future__ import annotations

from torch import fx

from mdp_fx.graph.tracer import attribute, called_module


def readers_of(module: fx.GraphModule) -> dict[int, list[fx.Node]]:
    """The nodes that read each parameter, buffer and constant, by the tensor's identity, in order."""
    found: dict[int, list[fx.Node]] = {}
    for node in module.graph.nodes:
        stored: list[object] = []
        if node.op == "get_attr":
            stored = [attribute(module, str(node.target))]
        elif node.op == "call_module":
            owner = called_module(module, node)
            stored = [*owner.parameters(), *owner.buffers()]
        for tensor in stored:
            found.setdefault(id(tensor), []).append(node)
    return found
