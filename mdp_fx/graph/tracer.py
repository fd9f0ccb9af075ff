"""The tracer: proxies that know the values of their nodes, and the graph that is written while a forward runs.

Shapes are real ints while the model's Python runs, so control flow, asserts and size arithmetic that depend on them
resolve. Only operations on tensors become nodes; every node records the shape of its value. Leaf modules (those of
torch.nn, and those with a typing rule) stay modules under the dense model's names.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import operator
import os
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx.proxy import Attribute
from torch.utils import _pytree as pytree

from mdp_fx.graph.ops.aten import respell
from mdp_fx.graph.ops.registry import has_rule
from mdp_fx.graph.purity import IN_PLACE_OPERATORS, target_name

SHAPE = "shape"
"""Key in `node.meta`: the shape of the node's value, a torch.Size, or a pytree of them."""

DTYPE = "dtype"
"""Key in `node.meta`: the value's torch.dtype, or a pytree of them."""

ALIASES = "aliases"
"""Key in `node.meta`: names of the operands whose memory the node's value shares, found when the node ran."""

LEAF_PACKAGES = ("torch.nn", "torch.ao.nn")


class EvalFlag(int):
    """What `self.training` is while a model is traced: false, and recognised where it ends up as an argument.

    Attributes:
        branches: lines of the model's code that branched on it.
    """

    branches: list[str]

    def __new__(cls) -> EvalFlag:
        flag = super().__new__(cls, 0)
        flag.branches = []
        return flag

    def __bool__(self) -> bool:
        self.branches.append(_user_line())
        return False


def is_eval_flag(value: object) -> bool:
    """Whether an argument of a traced node is the model's `self.training`."""
    return isinstance(value, EvalFlag)


class ValueProxy(fx.Proxy):
    """A proxy that knows the value of its node for the example inputs."""

    def __init__(self, node: fx.Node, tracer: ValueTracer, value: Any) -> None:
        super().__init__(node, tracer)
        self.__dict__["value"] = value

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["value"], name)
        if isinstance(value, torch.Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if name == "shape":
            self.__dict__["tracer"].note_size(self)
        return Attribute(self, name) if callable(value) else value

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        self.__dict__["tracer"].note_size(self)
        return len(self.__dict__["value"])

    def __iter__(self) -> Iterator[Any]:
        self.__dict__["tracer"].note_size(self)
        value = self.__dict__["value"]
        return iter(value) if isinstance(value, dict) else iter([self[i] for i in range(len(value))])  # type: ignore[index]

    def __contains__(self, key: object) -> bool:
        return key in self.__dict__["value"]

    def __bool__(self) -> bool:
        return bool(self.__dict__["tracer"].entries(self))

    def __int__(self) -> int:
        return int(self.__dict__["tracer"].entries(self))

    def __float__(self) -> float:
        return float(self.__dict__["tracer"].entries(self))

    def __index__(self) -> int:
        return int(self.__dict__["tracer"].entries(self))

    def keys(self) -> Any:
        return self.__dict__["value"].keys()


def _define_augmented_assignments() -> None:
    """Writes them as the model wrote them: whoever shares the tensor's memory must see the result."""
    for target, pure in IN_PLACE_OPERATORS.items():

        def assign(self: ValueProxy, other: Any, target: Any = target, name: str = pure.__name__) -> Any:
            return self.tracer.create_proxy("call_function", target, (self, other), {}, name=name)

        setattr(ValueProxy, f"__{target.__name__}__", assign)


_define_augmented_assignments()


def _value(item: Any) -> Any:
    """Replaces proxies by their values, eval flags by False, in nested arguments."""
    if type(item) is ValueProxy:
        return item.__dict__["value"]
    if isinstance(item, EvalFlag):
        return False
    if type(item) in (tuple, list):
        return type(item)(_value(part) for part in item)
    if type(item) is dict:
        return {key: _value(part) for key, part in item.items()}
    if type(item) is slice:
        return slice(_value(item.start), _value(item.stop), _value(item.step))
    return item


_READERS = frozenset("item tolist numpy is_nonzero equal allclose".split())
"""Methods and functions of tensors that give plain Python values of their entries."""


_SIZES = frozenset("size numel nelement".split())
"""Methods and functions of tensors that may give the batch size, or a multiple of it."""


class _AutocastError(Exception):
    """The forward switches automatic number types on."""


class _EntriesReadError(Exception):
    """The forward takes entries of a tensor that depends on the input for a Python value."""


def _user_line() -> str:
    """The line of the model's code that is running."""
    own = tuple(f"{Path(package).parent}{os.sep}" for package in (__file__, torch.__file__))
    frame = next((f for f in reversed(traceback.extract_stack()) if not f.filename.startswith(own)), None)
    if frame is None:
        return "unknown line"
    return f"{Path(frame.filename).name}, line {frame.lineno}: {textwrap.shorten(frame.line or '', 80)}"


def _plain(output: Any) -> Any:
    """A forward's output with records as plain dicts: the slim network must not need the class."""
    if type(output) is ValueProxy:
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        return {name: _plain(value) for name, value in fields.items() if value is not None}
    if isinstance(output, Mapping):
        return {name: _plain(value) for name, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(_plain(part) for part in output)
    return output


def _taken_apart(item: Any) -> Any:
    """Nested arguments in which a proxy of several tensors stands as the list of them: nodes read single tensors."""
    if type(item) is ValueProxy and isinstance(item.__dict__["value"], tuple | list):
        return [item[i] for i in range(len(item.__dict__["value"]))]  # type: ignore[index]
    if type(item) in (tuple, list):
        return type(item)(_taken_apart(part) for part in item)
    if type(item) is dict:
        return {key: _taken_apart(part) for key, part in item.items()}
    return item


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _storages(value: Any) -> set[int]:
    """Addresses of the memory that the tensors in a value use."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if leaf.numel()}


def _shapes(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.shape if isinstance(leaf, torch.Tensor) else None, value)


def _dtypes(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.dtype if isinstance(leaf, torch.Tensor) else None, value)


@contextlib.contextmanager
def _answering_for_values() -> Iterator[None]:
    """Lets `isinstance(x, torch.Tensor)` in a forward answer as it does outside of tracing.

    A proxy that claims to be a tensor by its `__class__` would be taken for one by native code, which crashes on it.
    """
    plain = builtins.isinstance

    def answer(item: object, kinds: Any) -> bool:
        return plain(item, kinds) or (type(item) is ValueProxy and plain(vars(item)["value"], kinds))

    builtins.isinstance = answer
    try:
        yield
    finally:
        builtins.isinstance = plain


class ValueTracer(fx.Tracer):
    """Traces with values; `trace` is the way in."""

    def __init__(self, inputs: dict[str, Any], model: nn.Module) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self._inputs = inputs
        self._running = False
        self._storages: dict[fx.Node, set[int]] = {}
        self._from_input: set[fx.Node] = set()
        self._own = {id(module) for module in model.modules()}
        self._stored = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._reassigned: dict[int, tuple[torch.Tensor, ValueProxy]] = {}
        self.constants: list[str] = []
        self.reads_batch = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _answering_for_values():
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if has_rule(type(m)):
            return True
        # What is made of other modules is looked into, were it made of none.
        made = bool(m._modules) or isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return type(m).__module__.startswith(LEAF_PACKAGES) and not made

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One placeholder per given input; a forward's other arguments keep their defaults."""
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self._inputs]

        def call(*given: Any) -> Any:
            return _plain(root_fn(self.root, *given))

        return call, proxies

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running or id(m) not in self._own:
            # Inside of a node, or made by the forward itself: there is no module to name.
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running:
            return attr_val
        known = type(attr_val) is ValueProxy or id(attr_val) in self._stored
        if isinstance(attr_val, torch.Tensor) and not known:
            # A buffer that the forward has set to another tensor: under its name the network stores the one before.
            if id(attr_val) not in self._reassigned:
                proxy = ValueProxy(self.create_arg(attr_val.clone()), self, attr_val)
                self._reassigned[id(attr_val)] = (attr_val, proxy)
            return self._reassigned[id(attr_val)][1]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if type(a) is ValueProxy:
            return a.node
        if isinstance(a, EvalFlag):
            return a
        if isinstance(a, np.integer | np.floating):
            return a.item()
        made = super().create_arg(a)
        if isinstance(made, fx.Node) and SHAPE not in made.meta:
            # A tensor that the forward made from nothing that is traced: torch.fx stored it as a constant.
            self._note(made, a)
            self.constants.append(str(made.target))
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
            msg = f"its forward runs under autocast ({_user_line()}), which a graph cannot hold; cast the model instead"
            raise _AutocastError(msg)
        if target not in (operator.getitem, getattr):
            args, kwargs = _taken_apart(args), _taken_apart(kwargs)
        if isinstance(target, OpOverload):
            spelling = respell(target, args, kwargs, lambda call: self._run(*call))
            kind, target, args, kwargs = spelling or (kind, target, args, kwargs)
        value = self._run(kind, target, args, kwargs)
        called = target_name(target)
        if called in _READERS:
            self._refuse_input(args)
        elif called in _SIZES and args[1:] != (1,) and not kwargs:
            self.note_size(args[0])
        if kind != "placeholder" and value is not None and not _holds_tensor(value):
            return value
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        self._note(node, value)
        return ValueProxy(node, self, value) if _holds_tensor(value) else value

    def _note(self, node: fx.Node, value: Any) -> None:
        """Keeps what is known of a node's value."""
        node.meta[SHAPE], node.meta[DTYPE] = _shapes(value), _dtypes(value)
        if node.op == "placeholder" or not self._from_input.isdisjoint(node.all_input_nodes):
            self._from_input.add(node)
        # The operands are alive now, so equal addresses mean shared memory.
        self._storages[node] = mine = _storages(value)
        node.meta[ALIASES] = tuple(
            source.name for source in node.all_input_nodes if not mine.isdisjoint(self._storages[source])
        )

    def entries(self, proxy: ValueProxy) -> Any:
        """The value of a proxy that Python is about to read: not one that depends on the input."""
        if isinstance(proxy.__dict__["value"], torch.Tensor):
            self._refuse_input(proxy)
        return proxy.__dict__["value"]

    def note_size(self, proxy: Any) -> None:
        """Keeps in mind that the forward looked at all sizes of a tensor that depends on the input."""
        self.reads_batch |= type(proxy) is ValueProxy and proxy.node in self._from_input

    def _refuse_input(self, args: Any) -> None:
        if any(type(leaf) is ValueProxy and leaf.node in self._from_input for leaf in pytree.tree_leaves(args)):
            msg = f"its forward decides on the entries of a tensor, not on shapes ({_user_line()})"
            raise _EntriesReadError(msg)

    def _run(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return self._inputs[target]
        values, named = _value(args), _value(kwargs)
        self._running = True
        try:
            if kind == "get_attr":
                return attribute(self.root, target)
            if kind == "call_module":
                return self.root.get_submodule(target)(*values, **named)
            if kind == "call_method":
                return getattr(values[0], target)(*values[1:], **named)
            return target(*values, **named)
        finally:
            self._running = False


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
