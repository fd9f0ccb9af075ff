"""The proxies that a forward is given while it is traced: they stand for nodes, and know the nodes' values."""

from __future__ import annotations

import builtins
import contextlib
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.proxy import Attribute
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mdp_fx.graph.purity import IN_PLACE_OPERATORS

if TYPE_CHECKING:
    from mdp_fx.graph.tracer import ValueTracer


class ValueProxy(fx.Proxy):
    """A proxy that knows the value of its node for the example inputs."""

    def __init__(self, node: fx.Node, tracer: ValueTracer, value: Any) -> None:
        super().__init__(node, tracer)
        self.__dict__["value"] = value

    def __getattr__(self, name: str) -> Any:
        whole = self.__dict__["value"]
        value = getattr(whole, name)
        if isinstance(value, torch.Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if isinstance(whole, dict) and name in ("keys", "values", "items"):
            # They give what is in the dict, which must be proxies.
            return lambda: getattr({key: name == "keys" or self[key] for key in whole}, name)()  # type: ignore[index]
        if name in ("shape", "nbytes"):
            self.__dict__["tracer"].refuse_open_sizes(self)
        return Attribute(self, name) if callable(value) else value

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        return int(self.__dict__["tracer"].length(self))

    def __iter__(self) -> Iterator[Any]:
        value = self.__dict__["value"]
        return iter(value) if isinstance(value, dict) else iter([self[i] for i in range(len(self))])  # type: ignore[index]

    def __contains__(self, key: object) -> bool:
        return key in self.__dict__["tracer"].entries(self)

    def __bool__(self) -> bool:
        return bool(self.__dict__["tracer"].entries(self))

    def __int__(self) -> int:
        return int(self.__dict__["tracer"].entries(self))

    def __float__(self) -> float:
        return float(self.__dict__["tracer"].entries(self))

    def __format__(self, spec: str) -> str:
        return format(self.__dict__["tracer"].entries(self), spec) if spec else str(self)

    def __index__(self) -> int:
        return int(self.__dict__["tracer"].entries(self))


def _define_augmented_assignments() -> None:
    """Writes them as the model wrote them: whoever shares the tensor's memory must see the result."""
    for target, pure in IN_PLACE_OPERATORS.items():

        def assign(self: ValueProxy, other: Any, target: Any = target, name: str = pure.__name__) -> Any:
            return self.tracer.create_proxy("call_function", target, (self, other), {}, name=name)

        setattr(ValueProxy, f"__{target.__name__}__", assign)


_define_augmented_assignments()


def taken_apart(item: Any) -> Any:
    """Nested arguments in which a proxy of several tensors stands as the list of them: nodes read single tensors."""
    if type(item) is ValueProxy and isinstance(item.__dict__["value"], tuple | list):
        return list(item)
    if type(item) in (tuple, list):
        return type(item)(taken_apart(part) for part in item)
    if type(item) is dict:
        return {key: taken_apart(part) for key, part in item.items()}
    return item


class TracedCreators(TorchFunctionMode):
    """Makes nodes of calls that create tensors from nothing, so that writes to these tensors are traced too."""

    def __init__(self, tracer: ValueTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls a function, as a node if it creates a tensor."""
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        made = func(*args, **kwargs)
        if self._tracer.running or not isinstance(made, torch.Tensor):
            return made
        if any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return made
        return self._tracer.create_proxy("call_function", func, args, kwargs)


@contextlib.contextmanager
def answering_for_values() -> Iterator[None]:
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
