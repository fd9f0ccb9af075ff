"""The tracer: proxies that know the values of their nodes, and the graph that is written while a forward runs.

Shapes are real ints while the model's Python runs, so control flow, asserts and size arithmetic that depend on them
resolve. Only operations on tensors become nodes; every node records the shape of its value. Leaf modules (those of
torch.nn, and those with a typing rule) stay modules under the dense model's names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from mdp_fx.graph.eval_flag import EvalFlag
from mdp_fx.graph.held_state import version
from mdp_fx.graph.ops.aten import respell
from mdp_fx.graph.ops.registry import has_rule
from mdp_fx.graph.proxy import TracedCreators, ValueProxy, answering_for_values, taken_apart
from mdp_fx.graph.purity import target_name
from mdp_fx.graph.reads import FACTS, SIZES, ShapeWatch, decisive
from mdp_fx.graph.user_code import user_line

SHAPE = "shape"
"""Key in `node.meta`: the shape of the node's value, a torch.Size, or a pytree of them."""

DTYPE = "dtype"
"""Key in `node.meta`: the value's torch.dtype, or a pytree of them."""

ALIASES = "aliases"
"""Key in `node.meta`: names of the operands whose memory the node's value shares, found when the node ran."""

LINE = "line"
"""Key in `node.meta`: the line of the model's code that made the node."""

LEAF_PACKAGES = ("torch.nn", "torch.ao.nn")


def _value(item: Any) -> Any:
    """Replaces proxies by their values, eval flags by False, in nested arguments."""
    if type(item) is ValueProxy:
        return item.__dict__["value"]
    if isinstance(item, EvalFlag):
        return False
    if type(item) in (tuple, list):
        return type(item)(_value(part) for part in item)
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*map(_value, item))
    if type(item) is dict:
        return {key: _value(part) for key, part in item.items()}
    if type(item) is slice:
        return slice(_value(item.start), _value(item.stop), _value(item.step))
    return item


class _AutocastError(Exception):
    """The forward switches automatic number types on."""


class MadeTensorWrittenError(Exception):
    """The forward writes to a tensor that the graph holds as a constant."""

    def __init__(self, line: str = "after it has read it") -> None:
        super().__init__(f"its forward writes to a tensor that is no buffer of the network ({line})")


class _EntriesReadError(Exception):
    """The forward takes entries of a tensor that depends on the input for a Python value."""


def plain_output(output: Any) -> Any:
    """A forward's output with records as plain dicts: the slim network must not need the class."""
    if type(output) is ValueProxy:
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        return {name: plain_output(value) for name, value in fields.items() if value is not None}
    if isinstance(output, Mapping):
        return {name: plain_output(value) for name, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(plain_output(part) for part in output)
    return output


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _storages(value: Any) -> set[int]:
    """Addresses of the memory that the tensors in a value use."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    for leaf in leaves:
        if leaf.layout is not torch.strided:
            msg = f"its forward makes a tensor of {leaf.layout} layout, which a graph cannot hold ({user_line()})"
            raise TypeError(msg)
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if leaf.numel()}


def _versions(args: Any) -> list[tuple[torch.Tensor, int]]:
    """The tensors in nested arguments, each with its version."""
    leaves = [_value(leaf) for leaf in pytree.tree_leaves(args)]
    return [(leaf, version(leaf)) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _leaves(args: Any) -> Iterator[Any]:
    """What nested arguments hold, in slices too."""
    for leaf in pytree.tree_leaves(args):
        yield from (leaf.start, leaf.stop, leaf.step) if isinstance(leaf, slice) else (leaf,)


def _shapes(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.shape if isinstance(leaf, torch.Tensor) else None, value)


def _dtypes(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.dtype if isinstance(leaf, torch.Tensor) else None, value)


class ValueTracer(fx.Tracer):
    """Traces with values; `trace` is the way in."""

    def __init__(self, inputs: dict[str, Any], model: nn.Module, *, creators: bool = False) -> None:
        super().__init__()
        self._creators = creators
        self.proxy_buffer_attributes = True
        self._inputs = inputs
        self.running = False
        self._storages: dict[fx.Node, set[int]] = {}
        self._from_input: set[fx.Node] = set()
        self._open: set[fx.Node] = set()
        self._watch = ShapeWatch()
        self._own = {id(module) for module in model.modules()}
        self._stored = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._reassigned: dict[int, tuple[torch.Tensor, ValueProxy]] = {}
        self._plain = {id(value) for module in model.modules() for value in vars(module).values()}
        self.constants: dict[str, tuple[torch.Tensor, int]] = {}
        self.unregistered: set[str] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with answering_for_values(), TracedCreators(self) if self._creators else contextlib.nullcontext():
            graph = super().trace(root, concrete_args)
        for tensor, before in self.constants.values():
            if version(tensor) != before:
                raise MadeTensorWrittenError
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One placeholder per given input; a forward's other arguments keep their defaults."""
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self._inputs]

        def call(*given: Any) -> Any:
            return plain_output(self.call_root(*given))

        return call, proxies

    def call_root(self, *given: Any) -> Any:
        """Calls the model itself: its hooks are part of it, and a forward that it alone has."""
        return self.root(*given)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.running or m is self.root or id(m) not in self._own:
            # The model, inside of a node, or made by the forward itself: there is no module to name.
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.running or type(attr_val) is ValueProxy:
            return attr_val
        if isinstance(attr_val, torch.Tensor) and id(attr_val) not in self._stored:
            # A buffer that the forward has set to another tensor: under its name the network stores the one before.
            if id(attr_val) not in self._reassigned:
                node = self.create_arg(attr_val.detach().clone())
                proxy = ValueProxy(node, self, attr_val)
                self._storages[node] = _storages(attr_val)
                if isinstance(attr_val, nn.Parameter):
                    self.unregistered.add(str(node.target))
                self._reassigned[id(attr_val)] = (attr_val, proxy)
            return self._reassigned[id(attr_val)][1]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if type(a) is ValueProxy:
            return a.node
        if isinstance(a, EvalFlag):
            return a.passed()
        if isinstance(a, np.integer | np.floating):
            return a.item()
        try:
            made = super().create_arg(a)
        except NotImplementedError as error:
            msg = f"its forward gives a {type(a).__name__} to a call, which a graph cannot hold ({user_line()})"
            raise TypeError(msg) from error
        if isinstance(made, fx.Node) and SHAPE not in made.meta:
            # A tensor that comes from nothing that is traced: torch.fx stored it as a constant. Or a named tuple.
            self._note(made, _value(a))
            if isinstance(a, torch.Tensor) and id(a) not in self._stored:
                self.constants.setdefault(str(made.target), (a, version(a)))
                if id(a) in self._plain:
                    self.unregistered.add(str(made.target))
        return made

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            msg = f"its forward runs under autocast ({user_line()}), which a graph cannot hold; cast the model instead"
            raise _AutocastError(msg)
        if target not in (operator.getitem, getattr):
            args, kwargs = taken_apart(args), taken_apart(kwargs)
        if target == "__setitem__":
            kind, target = "call_function", operator.setitem
        if isinstance(target, OpOverload):
            spelling = respell(target, args, kwargs, lambda call: self._run(*call))
            kind, target, args, kwargs = spelling or (kind, target, args, kwargs)
        before = _versions((args, kwargs))
        value = self._run(kind, target, args, kwargs)
        called = target_name(target)
        if kind != "placeholder" and value is not None and not _holds_tensor(value):
            self._refuse_entries(called, (args, kwargs))
            return value
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        self._note(node, value)
        if self._watch.seen and self._reads_input(decisive(called, args, kwargs)):
            self._open.add(node)
        self._note_writes(node, [tensor for tensor, writes in before if version(tensor) != writes])
        return ValueProxy(node, self, value) if _holds_tensor(value) else value

    def _note(self, node: fx.Node, value: Any) -> None:
        """Keeps what is known of a node's value."""
        node.meta[SHAPE], node.meta[DTYPE] = _shapes(value), _dtypes(value)
        node.meta[LINE] = self.where()
        if node.op == "placeholder" or not self._from_input.isdisjoint(node.all_input_nodes):
            self._from_input.add(node)
        if not self._open.isdisjoint(node.all_input_nodes) and getattr(value, "ndim", 1) != 0:
            self._open.add(node)
        # The operands are alive now, so equal addresses mean shared memory.
        self._storages[node] = mine = _storages(value)
        node.meta[ALIASES] = tuple(
            source.name for source in node.all_input_nodes if not mine.isdisjoint(self._storages[source])
        )

    def _note_writes(self, node: fx.Node, written: list[torch.Tensor]) -> None:
        """Keeps what a node's call has done to tensors that it was given."""
        memory = _storages(written)
        if not memory:
            return
        touched = [other for other, storages in self._storages.items() if not memory.isdisjoint(storages)]
        if any(other.op == "get_attr" and other.target in self.constants for other in touched):
            raise MadeTensorWrittenError(self.where())
        if not self._from_input.isdisjoint(node.all_input_nodes):
            self._from_input.update(touched)

    def where(self) -> str:
        """The line of the model's code that makes the current node."""
        return user_line()

    def entries(self, proxy: ValueProxy) -> Any:
        """The value of a proxy that Python is about to read: not one that depends on the input."""
        if isinstance(proxy.__dict__["value"], torch.Tensor):
            self._refuse_input(proxy)
        return proxy.__dict__["value"]

    def _reads_input(self, args: Any) -> bool:
        """Whether one of nested arguments is a tensor that depends on the input."""
        return any(
            type(leaf) is ValueProxy and leaf.node in self._from_input and isinstance(_value(leaf), torch.Tensor)
            for leaf in _leaves(args)
        )

    def _refuse_input(self, args: Any) -> None:
        if self._reads_input(args):
            msg = f"its forward decides on the entries of a tensor, not on shapes ({user_line()})"
            raise _EntriesReadError(msg)

    def _refuse_entries(self, called: str, args: Any) -> None:
        """Lets a call give Python a plain value only if no entries that depend on the input are behind it."""
        if called not in FACTS:
            self._refuse_input(args)
        for leaf in pytree.tree_leaves(args) if called in SIZES else ():
            if type(leaf) is ValueProxy:
                self.refuse_open_sizes(leaf)

    def refuse_open_sizes(self, proxy: ValueProxy) -> None:
        """Refuses a look at the sizes of a tensor whose shape depends on entries of the input."""
        if proxy.node in self._open:
            msg = f"its forward decides on the entries of a tensor, by a size that depends on them ({user_line()})"
            raise _EntriesReadError(msg)

    def length(self, proxy: ValueProxy) -> int:
        """The length of a proxy's value."""
        several = type(_value(proxy)) in (tuple, list)
        # What takes a tensor apart gives as many parts as its shape says.
        if not several or not self._open.isdisjoint(proxy.node.all_input_nodes):
            self.refuse_open_sizes(proxy)
        return len(_value(proxy))

    def _run(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return self._inputs[target]
        values, named = _value(args), _value(kwargs)
        self.running = True
        self._watch.seen = False
        try:
            if kind == "get_attr":
                return attribute(self.root, target)
            if kind == "call_module":
                return self.root.get_submodule(target)(*values, **named)
            with self._watch:
                if kind == "call_method":
                    return getattr(values[0], target)(*values[1:], **named)
                return target(*values, **named)
        finally:
            self.running = False


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of a module stays one node."""
    if has_rule(type(module)):
        return True
    # What is made of other modules is looked into, were it made of none.
    made = bool(module._modules) or isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return type(module).__module__.startswith(LEAF_PACKAGES) and not made


def called_module(root: nn.Module, node: fx.Node) -> nn.Module:
    """The module that a node calls; by far faster than `get_submodule`."""
    module: Any = root
    for part in str(node.target).split("."):
        module = module._modules[part]
    called: nn.Module = module
    return called


def attribute(root: nn.Module, target: str) -> Any:
    """The attribute that a dotted path names."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value
