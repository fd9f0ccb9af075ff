"""Editing a traced graph: nodes made with what the tracer records of their values, and tensors stored in the tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from mdp_fx.graph.ops.registry import does_more
from mdp_fx.graph.purity import is_pure, target_name
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE, attribute, called_module


class WriteOrder:
    """Where the nodes of a graph, as it is when this is made, stand to those that write.

    Attributes:
        nodes: the nodes in order.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = tuple(graph.nodes)
        self._order = {node: i for i, node in enumerate(self.nodes)}
        self._writes = [
            i for node, i in self._order.items() if node.op not in ("placeholder", "output") and not is_pure(node)
        ]

    def writes_between(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether anything is written after `first` and before `last`."""
        return any(self._order[first] < write < self._order[last] for write in self._writes)


class Editor:
    """Makes nodes before a given one.

    Shapes, number types and shared memory of their values are recorded as the tracer would: the node is run on
    operands without data.

    Args:
        module: the network.
        before: the node that the new ones come before.
    """

    def __init__(self, module: fx.GraphModule, before: fx.Node) -> None:
        self._module = module
        self._before = before

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of the method that `target` names."""
        return self._make("call_method" if isinstance(target, str) else "call_function", target, args, kwargs)

    def layer(self, path: str, *args: Any) -> fx.Node:
        """A call of the module at `path`."""
        return self._make("call_module", path, args, {})

    def stored(self, path: str) -> fx.Node:
        """A read of the parameter or buffer at `path`."""
        return self._make("get_attr", path, (), {})

    def _make(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        with self._before.graph.inserting_before(self._before):
            node = self._before.graph.create_node(op, target, args, kwargs)
        operands = {source: empty_like(source) for source in node.all_input_nodes}
        values = fx.map_arg((node.args, node.kwargs), lambda source: operands[source])
        with torch.no_grad():
            value = self._run(node, *values)
        node.meta[SHAPE], node.meta[DTYPE] = value.shape, value.dtype
        node.meta[ALIASES] = tuple(
            source.name for source, operand in operands.items() if _memory(operand) == _memory(value)
        )
        return node

    def _run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "get_attr":
            return attribute(self._module, str(node.target))
        if node.op == "call_module":
            layer = called_module(self._module, node)
            stored = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            return functional_call(layer, {name: _without_data(t) for name, t in stored.items()}, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def empty_like(node: fx.Node) -> Tensor:
    """A tensor without data that has the shape and number type of a node's value."""
    return torch.empty(node.meta[SHAPE], dtype=node.meta[DTYPE], device="meta")


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def op_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls; empty where it calls none."""
    return target_name(node.target) if node.op in ("call_function", "call_method") else ""


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by its position or its name."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def is_tensor(value: object) -> bool:
    """Whether an argument is a node whose value is one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get(SHAPE), torch.Size)


def replace(node: fx.Node, other: fx.Node) -> None:
    """Lets everybody who reads `node` read `other`, and discards what nobody reads any more."""
    for user in list(node.users):
        redirect(user, node, other)
    discard(node)


def redirect(user: fx.Node, node: fx.Node, other: fx.Node) -> None:
    """Lets one reader of `node` read `other`."""
    user.replace_input_with(node, other)
    if ALIASES in user.meta:
        user.meta[ALIASES] = tuple(other.name if name == node.name else name for name in user.meta[ALIASES])


def discard(node: fx.Node) -> None:
    """Erases a node that nobody reads, and what only it read."""
    # What is read twice may have gone with its other reader.
    if node._erased or node.users or not is_pure(node):
        return
    operands = node.all_input_nodes
    node.graph.erase_node(node)
    for operand in operands:
        discard(operand)


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of these very classes and runs nothing beside their forward."""
    return type(layer) in kinds and not does_more(layer)


def free_name(module: nn.Module, wanted: str) -> str:
    """`wanted`, or with a number behind it where the network has something of that name."""
    name, count = wanted, 0
    while _exists(module, name):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _exists(module: nn.Module, path: str) -> bool:
    try:
        attribute(module, path)
    except AttributeError:
        return False
    return True


def store(module: fx.GraphModule, path: str, tensor: Tensor) -> None:
    """Stores a tensor at a dotted path: a Parameter as such, anything else as a buffer."""
    owner_path, _, name = path.rpartition(".")
    if owner_path and not _exists(module, owner_path):
        module.add_submodule(owner_path, nn.Module().eval())
    owner = module.get_submodule(owner_path)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with given parameters, which stay the same objects where they are Parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta").eval()
    layer.weight = as_parameter(weight)
    if bias is not None:
        layer.bias = as_parameter(bias)
    return layer


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """The tensor as a Parameter."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), tensor.requires_grad)


def taken(tensor: Tensor, entries: Tensor) -> nn.Parameter:
    """Some entries of axis 0 of a parameter, in order, as a Parameter; on the same memory where they are a range."""
    first, last = int(entries[0]), int(entries[-1]) + 1
    whole = tensor.detach()
    part = whole[first:last] if last - first == len(entries) else whole[entries.to(tensor.device)]
    return nn.Parameter(part, tensor.requires_grad)


def container(**children: nn.Module) -> nn.Module:
    """A module that only holds others."""
    holder = nn.Module().eval()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder


def forget_unread(module: fx.GraphModule) -> None:
    """Deletes modules, parameters and buffers that no node reads."""
    nodes = [node for node in module.graph.nodes if node.op in ("get_attr", "call_module")]
    read = {str(node.target) for node in nodes}
    called = {id(m) for n in nodes if n.op == "call_module" for m in called_module(module, n).modules()}

    def visit(owner: nn.Module, prefix: str) -> None:
        for name, child in list(owner.named_children()):
            path = prefix + name
            if path in read or id(child) in called:
                continue
            if any(target.startswith(f"{path}.") for target in read):
                visit(child, f"{path}.")
            else:
                delattr(owner, name)
        for stored in (owner._parameters, owner._buffers):
            for name in [name for name in stored if prefix + name not in read]:
                delattr(owner, name)

    visit(module, "")
