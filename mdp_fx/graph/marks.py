"""Marks in an exported graph: which part of it one call made, so that the call can be told from what it did.

What symbolic tracing keeps whole is marked: modules with a meaning of their own, and functions that are given the
model's `self.training`, which torch.export would turn into the constant that it is at the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mdp_fx.graph.eval_flag import EvalFlag, is_eval_flag
from mdp_fx.graph.tracer import ValueTracer

_LIBRARY = torch.library.Library("mdp_fx", "FRAGMENT")  # type: ignore[no-untyped-call]


def _define(name: str) -> OpOverload:
    """An operator that copies tensors; `call` is the number of the call whose operands or results they are."""
    _LIBRARY.define(f"{name}(int call, Tensor[] values) -> Tensor[]")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(  # type: ignore[no-untyped-call]
        name, lambda call, values: [value.clone() for value in values], "CompositeExplicitAutograd"
    )
    overload: OpOverload = getattr(torch.ops.mdp_fx, name).default
    # A module that works in place may be called for nothing but what it does to its operand.
    fx.node.has_side_effect(overload)
    return overload


ENTER, LEAVE = _define("enter"), _define("leave")


@dataclass
class MarkedCall:
    """A call that is kept whole: tensors among its arguments are left out of `leaves`, their places are `tensors`."""

    kind: str
    target: Any
    leaves: list[Any]
    spec: pytree.TreeSpec
    tensors: list[int]
    results: list[pytree.KeyPath] = field(default_factory=list)


class Marks(TorchFunctionMode):
    """Marks calls in the exported graph: what lies between `enter` and `leave` is what the call did.

    Attributes:
        calls: by the number that its marks have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[MarkedCall] = []
        # Numbers of the calls that are running; None for one inside of another.
        self._running: list[int | None] = []

    @contextlib.contextmanager
    def on(self, tracer: ValueTracer, model: nn.Module) -> Iterator[None]:
        """Marks the modules of a model that the tracer keeps whole, and functions that follow `self.training`."""
        hooks: list[Any] = []
        for path, module in model.named_modules():
            if path and tracer.is_leaf_module(module, path):
                hooks.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
                hooks.append(module.register_forward_hook(lambda *call: self._leave(call[-1]), with_kwargs=True))
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Keeps a function whole that is given the model's `self.training`."""
        arguments = (args, kwargs or {})
        if not any(map(is_eval_flag, pytree.tree_leaves(arguments))):
            return func(*args, **arguments[1])
        args, named = pytree.tree_map(
            lambda leaf: False if is_eval_flag(leaf) else leaf, self._enter("call_function", func, arguments)
        )
        return self._leave(func(*args, **named))

    def _before(self, path: str) -> Callable[..., Any]:
        return lambda _, args, kwargs: self._enter("call_module", path, (args, kwargs))

    def _enter(self, kind: str, target: Any, arguments: Any) -> Any:
        leaves, spec = pytree.tree_flatten(arguments)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if self._running or not tensors or torch.compiler.is_dynamo_compiling():
            self._running.append(None)
            return arguments
        self._running.append(len(self.calls))
        copies = iter(ENTER(len(self.calls), [leaves[i] for i in tensors]))
        kept = [leaf.passed() if isinstance(leaf, EvalFlag) else leaf for leaf in leaves]
        self.calls.append(MarkedCall(kind, target, kept, spec, tensors))
        return pytree.tree_unflatten([next(copies) if i in tensors else leaf for i, leaf in enumerate(leaves)], spec)

    def _leave(self, output: Any) -> Any:
        number = self._running.pop()
        if number is None:
            return output
        found, spec = pytree.tree_flatten_with_path(output)
        call = self.calls[number]
        call.results = [path for path, leaf in found if isinstance(leaf, torch.Tensor)]
        marked = iter(LEAVE(number, [leaf for _, leaf in found if isinstance(leaf, torch.Tensor)]))
        return pytree.tree_unflatten(
            [next(marked) if isinstance(leaf, torch.Tensor) else leaf for _, leaf in found], spec
        )
