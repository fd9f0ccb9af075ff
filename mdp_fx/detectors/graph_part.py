"""One module's part of a graph, as a module of its own that is called as the module was."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.detectors.boundaries import Boundary, NodeName
from mdp_fx.graph.tracer import SHAPE, attribute

_INTERNALS = frozenset(vars(nn.Module()))


class Elsewhere:
    """A network traced on images of two sizes, which tells what follows the size of the image.

    Args:
        here: the nodes of the graph at one size, by name.
        trace: traces it at another size; gives None where there is none.
    """

    def __init__(self, here: Mapping[str, fx.Node], trace: Callable[[], fx.GraphModule | None]) -> None:
        self._here = here
        self._trace = trace
        self._there: Mapping[str, fx.Node] = {}
        self._traced = False

    def varying(self, node: fx.Node) -> list[int] | None:
        """Which leaves of a node's arguments follow the size of the image; None where that cannot be said."""
        leaves = _leaves(node)
        if not any(isinstance(leaf, int | slice) and not isinstance(leaf, bool) for leaf in leaves):
            return []
        if not self._traced:
            made, self._traced = self._trace(), True
            self._there = self._here if made is None else {each.name: each for each in made.graph.nodes}
        if node.name not in self._here or node.name not in self._there:
            return None
        here, there = _leaves(self._here[node.name]), _leaves(self._there[node.name])
        if len(here) != len(there):
            return None
        found = [i for i, (a, b) in enumerate(zip(here, there, strict=True)) if not isinstance(a, fx.Node) and a != b]
        as_here = len(leaves) == len(here) and all(isinstance(here[i], int) and leaves[i] == here[i] for i in found)
        return found if as_here else None

    @property
    def _both(self) -> tuple[Mapping[str, fx.Node], Mapping[str, fx.Node]]:
        return self._here, self._there

    def source(self, node: fx.Node, leaf: int, known: list[fx.Node]) -> tuple[fx.Node, int] | None:
        """The latest of known values that has an axis of the size that a leaf of a node stands for, and that axis."""
        wanted = _leaves(self._here[node.name])[leaf], _leaves(self._there[node.name])[leaf]
        for each in reversed(known):
            here, there = (nodes[each.name].meta.get(SHAPE) if each.name in nodes else None for nodes in self._both)
            if isinstance(here, torch.Size) and isinstance(there, torch.Size):
                for axis, sizes in enumerate(zip(here, there, strict=False)):
                    if sizes == wanted:
                        return each, axis
        return None


def _leaves(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))


def cut(
    module: nn.Module, whole: fx.GraphModule, path: str, call: Boundary, elsewhere: Elsewhere
) -> fx.GraphModule | None:
    """Cuts a module's part out of a graph; sizes of the image in it are read from what it is given.

    Args:
        module: the module, which says how it is called; its other plain attributes are taken over.
        whole: the graph; the part shares its modules and parameters, under their names in the module.
        path: the module's name in the graph.
        call: where its part begins and ends.
        elsewhere: tells what follows the size of the image.

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
    if any(isinstance(leaf, Tensor) for leaf in call.given):
        return None  # A scalar of the images is a constant in the graph.
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
        if not _open(node, env, elsewhere):
            return None
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


def _open(node: fx.Node, env: dict[fx.Node, fx.Node], elsewhere: Elsewhere) -> bool:
    """Reads the sizes of the image in a copied node from values; false where one has no source."""
    varying = elsewhere.varying(node)
    if varying is None:
        return False
    leaves, spec = pytree.tree_flatten((env[node].args, env[node].kwargs))
    for i in varying:
        found = elsewhere.source(node, i, [each for each in env if each is not node])
        if found is None:
            return False
        with env[node].graph.inserting_before(env[node]):
            leaves[i] = env[node].graph.call_method("size", (env[found[0]], found[1]))
    if varying:
        env[node].args, env[node].kwargs = pytree.tree_unflatten(leaves, spec)
    return True


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
