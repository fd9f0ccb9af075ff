"""One module's part of a graph, as a module of its own that is called as the module was."""

from __future__ import annotations

import inspect
import operator
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.detectors.tensor_part import Boundary, NodeName
from mdp_fx.graph.tracer import attribute

_INTERNALS = frozenset(vars(nn.Module()))


def cut(module: nn.Module, whole: fx.GraphModule, path: str, call: Boundary) -> fx.GraphModule | None:
    """Cuts a module's part out of a graph.

    Args:
        module: the module, which says how it is called; its other plain attributes are taken over.
        whole: the graph; the part shares its modules and parameters, under their names in the module.
        path: the module's name in the graph.
        call: where its part begins and ends.

    Returns:
        None where the part reads what the module is not given.
    """
    nodes = {node.name: node for node in whole.graph.nodes}
    if any(isinstance(leaf, NodeName) and leaf not in nodes for leaf in (*call.given, *call.result)):
        return None
    args, kwargs = pytree.tree_unflatten(list(call.given), call.given_spec)
    signature = inspect.signature(module.forward)
    arguments = signature.bind(*args, **kwargs).arguments
    if any(signature.parameters[name].kind in (2, 4) for name in arguments):
        return None  # *args and **kwargs have no placeholder.
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}

    def unpack(value: Any, given: fx.Node) -> None:
        if isinstance(value, NodeName):
            env[nodes[value]] = given
        elif isinstance(value, list | tuple | dict):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                unpack(part, graph.call_function(operator.getitem, (given, key)))

    for name, value in arguments.items():
        unpack(value, graph.placeholder(name))
    results = [nodes[leaf] for leaf in call.result if isinstance(leaf, NodeName)]
    for node in _behind(whole.graph, results, env):
        if node.op == "placeholder":
            return None
        if _reads_batch(node):
            first = next(nodes[leaf] for leaf in call.given if isinstance(leaf, NodeName))
            env[node] = graph.call_method("size", (env[first], 0))
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.op in ("call_module", "get_attr"):
            env[node].target = _inside(str(node.target), path)
    gives = [env[nodes[leaf]] if isinstance(leaf, NodeName) else leaf for leaf in call.result]
    graph.output(pytree.tree_unflatten(gives, call.result_spec))
    for node in reversed(list(graph.nodes)):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
    targets = [str(node.target) for node in whole.graph.nodes if node in env and node.op in ("call_module", "get_attr")]
    made = fx.GraphModule({_inside(t, path): attribute(whole, t) for t in targets}, graph, type(module).__name__)
    for name, value in vars(module).items():
        if name not in _INTERNALS and not hasattr(made, name):
            setattr(made, name, value)
    return made


def _inside(target: str, path: str) -> str:
    """A name in the graph as one in the part."""
    return target.removeprefix(f"{path}.") if target.startswith(f"{path}.") else target.replace(".", "_")


def _reads_batch(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and getattr(node.args[0], "op", "") == "placeholder"


def _behind(graph: fx.Graph, results: list[fx.Node], env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """What results are made of, in the order of the graph, without what is there already."""
    needed: set[fx.Node] = set()
    waiting = [node for node in results if node not in env]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            # The size of the batch is read from what the part is given.
            waiting.extend(() if _reads_batch(node) else (each for each in node.all_input_nodes if each not in env))
    return [node for node in graph.nodes if node in needed]
