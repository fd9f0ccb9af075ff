"""A torch.fx GraphModule as plain data, and back without its original classes.

torch.fx turns a graph into Python source and runs it, so everything that a file contributes to that source is checked
here: functions and methods come from the tables of `safe_names`, and names are identifiers.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from mdp_fx import safe_names
from mdp_fx.errors import ModelError
from mdp_fx.module_data import TreeEncoder, check_name, decode_tree
from mdp_fx.plain_values import decode, encode

_GRAPH = "GraphModule"


def describe(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describes a GraphModule.

    Args:
        module: its call_module targets are modules of torch.nn, torchvision or timm, or subclasses that do not change
            what these compute.

    Returns:
        The description (nested lists, dicts, strings and numbers), and the tensors it refers to by name.

    Raises:
        ModelError: a module, function or argument, named in the message, has no plain form.
    """
    if type(module.graph._codegen) is not fx.graph.CodeGen:
        raise ModelError("the graph has its own calling convention (torch.export), which cannot be saved")
    nodes, called, read = _describe_graph(module)
    tree = TreeEncoder(module, called, read)
    return {"name": type(module).__name__, "nodes": nodes, "modules": tree.records}, tree.tensors


def describe_network(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describes a network that runs its own classes' code: modules of torch.nn, torchvision or timm, and graphs.

    Returns:
        As `describe` does.

    Raises:
        ModelError: a module or an attribute, named in the message, has no plain form.
    """
    tree = TreeEncoder(module, {id(module)}, {}, graphs=_describe_graph)
    return {"modules": tree.records}, tree.tensors


def rebuild_network(data: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """Rebuilds what `describe_network` described.

    Raises:
        ModelError: as for `rebuild`.
    """
    with _checking():
        return decode_tree(data["modules"], tensors, graphs=lambda root, nodes: _rebuild_graph(root, nodes, _GRAPH))


def rebuild(data: Any, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """Rebuilds a GraphModule from the description that `describe` made.

    Raises:
        ModelError: the description is damaged, needs what this torch does not have, or asks for anything but tensor
            functions and the modules of torch.nn, torchvision and timm.
    """
    with _checking():
        name = data["name"] if str(data["name"]).isidentifier() else _GRAPH
        return _rebuild_graph(decode_tree(data["modules"], tensors), data["nodes"], name)


@contextmanager
def _checking() -> Iterator[None]:
    """Tells what goes wrong with a description as what it is: damage."""
    try:
        yield
    except ModelError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SyntaxError) as error:
        raise ModelError(f"the description of the graph is damaged ({type(error).__name__}: {error})") from error


def _rebuild_graph(root: nn.Module, records: list[Any], name: str) -> fx.GraphModule:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for record in records:
        nodes[record["name"]] = _rebuild_node(graph, record, nodes, root)
    graph.lint()
    module = fx.GraphModule(root, graph, name)
    _take_over(module, root)
    return module


def _registered(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return (module._parameters, module._buffers, module._modules)


def _take_over(module: fx.GraphModule, root: nn.Module) -> None:
    """Gives the GraphModule the tree of `root` as it is: torch.fx copies only what the graph names, in its order."""
    for mine, other in zip(_registered(module), _registered(root), strict=True):
        mine.clear()
        mine.update(other)
    module._non_persistent_buffers_set = set(root._non_persistent_buffers_set)
    internal = vars(nn.Module())
    vars(module).update({name: value for name, value in vars(root).items() if name not in internal})


def _describe_graph(module: fx.GraphModule) -> tuple[list[Any], set[int], dict[int, set[str]]]:
    """The nodes of a graph, ids of the modules that it calls, and plain attributes that it reads, by id of module."""
    called: set[int] = set()
    read: dict[int, set[str]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            called.add(id(module.get_submodule(node.target)))
        elif node.op == "get_attr":
            path, _, name = node.target.rpartition(".")
            owner = module.get_submodule(path)
            if name != "training" and not any(name in part for part in _registered(owner)):
                read.setdefault(id(owner), set()).add(name)
    return [_describe_node(node) for node in module.graph.nodes], called, read


def _describe_node(node: fx.Node) -> dict[str, Any]:
    def special(value: object) -> list[Any] | None:
        return ["node", value.name] if isinstance(value, fx.Node) else None

    target = safe_names.name_of_function(node.target) if node.op == "call_function" else str(node.target)
    if target is None:
        raise ModelError(f"node {node.name} calls {_name(node.target)}, which cannot be saved")
    record = {"op": node.op, "name": node.name, "target": target, "wrapped": bool(node.meta.get("is_wrapped"))}
    try:
        record["args"] = encode(node.args, special)
        record["kwargs"] = encode(dict(node.kwargs), special)
    except ModelError as error:
        raise ModelError(f"node {node.name} cannot be saved: it has {error}") from error
    _check_identifier(node.name)
    _check_target(node.op, target, node.args)
    return record


def _rebuild_node(graph: fx.Graph, record: Any, nodes: dict[str, fx.Node], root: nn.Module) -> fx.Node:
    op, name, target = record["op"], record["name"], record["target"]
    _check_identifier(name)
    if name in nodes:
        raise ModelError(f"two nodes are named {name!r}")
    special = {"node": lambda payload: nodes[payload]}
    args = decode(record["args"], special)
    kwargs = decode(record["kwargs"], special)
    for key in kwargs:
        _check_identifier(key)
    called = _check_target(op, target, args)
    if op in ("get_attr", "call_module"):
        _check_path(root, target, op == "call_module")
    node = graph.create_node(op, called, args, kwargs, name)
    if record["wrapped"] and op == "call_function":
        node.meta["is_wrapped"] = True  # torch.fx pickles a graph by tracing it again, and must not enter this function
    return node


def _check_target(op: Any, target: Any, args: Any) -> str | Callable[..., Any]:
    """What a node's target stands for, if a file may name it.

    Raises:
        ModelError: it may not.
    """
    if not isinstance(target, str):
        raise ModelError(f"the target {str(target)[:60]!r} is no name")
    if op == "call_function":
        function = safe_names.function_named(target)
        if function is None:
            raise ModelError(f"function {target[:80]} is not known or not allowed in a file")
        if function is builtins.getattr and not (len(args) > 1 and args[1] in safe_names.TENSOR_ATTRIBUTES):
            raise ModelError(f"getattr of {str(args[1:2])[:60]} is not allowed in a file")
        return function
    if op == "call_method":
        if target not in safe_names.tensor_methods():
            raise ModelError(f"method {target[:60]!r} is not known or not allowed in a file")
    elif op == "placeholder":
        _check_identifier(target.removeprefix("*").removeprefix("*"))
    elif op in ("get_attr", "call_module"):
        for part in target.split("."):
            check_name(part, "module")
    elif op != "output":
        raise ModelError(f"unknown kind of node {str(op)[:40]!r}")
    return target


def _check_identifier(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ModelError(f"{str(name)[:60]!r} is not usable as a name in a graph")


def _check_path(root: nn.Module, target: str, is_module: bool) -> None:
    """Checks that a dotted target leads to what a record gave: no attribute of a class or of Python itself."""
    *path, last = target.split(".")
    owner: nn.Module | None = root
    for part in path:
        owner = None if owner is None else owner._modules.get(part)
    found = False
    if owner is not None:
        plain = set(vars(owner)) - set(vars(nn.Module())) | {"training"}
        found = last in owner._modules if is_module else last in plain or any(last in d for d in _registered(owner))
    if not found:
        raise ModelError(f"the graph uses {target[:80]!r}, which is not in the file")


def _name(function: object) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}".lstrip(".")
