"""Front end: a model and example inputs become a torch.fx graph in which every node knows the shape of its value."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn
from torch._functorch import vmap
from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, MdpFxError, ModelError, first_line
from mdp_fx.graph.copies import copy_network
from mdp_fx.graph.tracer import EvalFlag, ValueProxy, ValueTracer

FrontEnd: TypeAlias = Literal["symbolic", "export"]


@dataclass(frozen=True)
class Traced:
    """A traced network.

    Attributes:
        module: the graph, in eval mode; parameters are the model's own tensors (not copies).
        example_inputs: the inputs it was traced with, the batch repeated to at least two where the model allows it.
        batch: size of the batch axis in those inputs, or None where it is baked in.
        constants: names of the tensors that the forward made by itself; they are baked in.
        reads_batch: whether the forward looked at a size that may be the batch's: a number it made of that is baked in.
        training_branches: lines of the model's code that branch on `self.training`; the branch of eval mode was taken.
        front_end: what made the graph.
        why: the reason for that front end.
    """

    module: fx.GraphModule
    example_inputs: tuple[Any, ...]
    batch: int | None
    constants: tuple[str, ...]
    reads_batch: bool
    training_branches: tuple[str, ...]
    front_end: FrontEnd = "symbolic"
    why: str = "its forward can be traced"


Capture: TypeAlias = Callable[[nn.Module, tuple[Any, ...], tuple[Any, ...], int | None], Traced]
"""Makes a graph of (shadow of the model, inputs that it may write to, the inputs, size of their batch)."""


def trace(model: nn.Module, example_inputs: tuple[Any, ...], *, open_batch: bool = True) -> Traced:
    """Traces `model` on `example_inputs`.

    A batch of one is traced as two, so that its axis cannot be mistaken for a literal 1.

    Args:
        model: any module; left unchanged.
        example_inputs: positional arguments of its forward. Axis 0 of every tensor is the batch.
        open_batch: False bakes the batch of the inputs in.

    Raises:
        InputError: the network rejects the inputs.
        ModelError: it runs, but its forward cannot be traced.
    """
    return attempt(_trace, "traced", model, example_inputs, open_batch=open_batch)


def attempt(
    capture: Capture, done: str, model: nn.Module, example_inputs: tuple[Any, ...], *, open_batch: bool
) -> Traced:
    """Captures a model with its batch open where it allows it, else baked in; see `trace`.

    Args:
        capture: makes the graph.
        done: what that is called, for messages.
        model: any module; left unchanged.
        example_inputs: positional arguments of its forward.
        open_batch: False bakes the batch of the inputs in.
    """
    batches = {leaf.shape[0] if leaf.ndim else 0 for leaf in pytree.tree_leaves(example_inputs) if _is_tensor(leaf)}
    attempts: list[tuple[tuple[Any, ...], int | None]] = [(example_inputs, None)]
    if open_batch and batches == {1}:
        doubled = pytree.tree_map(lambda leaf: torch.cat([leaf, leaf]) if _is_tensor(leaf) else leaf, example_inputs)
        attempts.insert(0, (doubled, 2))
    elif open_batch and len(batches) == 1:
        attempts.insert(0, (example_inputs, max(batches)))
    failure: Exception | None = None
    for inputs, batch in attempts:
        try:
            with torch.no_grad():
                # A forward may write to its inputs: it gets copies.
                copies = pytree.tree_map(lambda leaf: leaf.clone() if _is_tensor(leaf) else leaf, inputs)
                return capture(_shadow(model), copies, inputs, batch)
        except Exception as error:  # noqa: BLE001 - a user's forward may raise anything; `_explain` reports it
            failure = error
    raise _explanation(model, example_inputs, failure, done) from failure


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def _shadow(model: nn.Module) -> nn.Module:
    """A deep copy that shares the model's parameters: forwards that cache or reassign attributes touch only the copy.

    Buffers are copied, since a forward may write to them.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    return detached_copy(model, memo).eval()


def detached_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model that may hold results of an earlier run, which torch refuses to copy."""
    memo = dict(memo or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy_network(model, memo)


def _trace(shadow: nn.Module, copies: tuple[Any, ...], inputs: tuple[Any, ...], batch: int | None) -> Traced:
    tracer = ValueTracer(named_inputs(shadow, copies), shadow)

    def follow() -> fx.Graph:
        with _through_wrapped_functions(), _refusing_native_code():
            return tracer.trace(shadow)

    return record(tracer, shadow, follow, inputs, batch)


def record(
    tracer: ValueTracer,
    shadow: nn.Module,
    follow: Callable[[], fx.Graph],
    inputs: tuple[Any, ...],
    batch: int | None,
    front_end: FrontEnd = "symbolic",
) -> Traced:
    """What `follow` makes of a model in eval mode, with the tracer; the model's buffers are as they were before."""
    flag = EvalFlag()
    for module in shadow.modules():
        if not tracer.is_leaf_module(module, ""):
            module.training = flag  # type: ignore[assignment]
    buffers = [
        (module, dict(module._buffers), {name: _clone(buffer) for name, buffer in module._buffers.items()})
        for module in shadow.modules()
    ]
    graph = follow()
    for module, own, before in buffers:
        # What the forward wrote to its buffers while it was traced is undone.
        module._buffers.clear()
        module._buffers.update(own)
        for name, buffer in own.items():
            kept = before[name]
            if buffer is not None and kept is not None:
                buffer.copy_(kept)
    for module in shadow.modules():
        module.training = False
    # Unpickling a GraphModule traces its code again: torch.fx's own tracer can, ours needs inputs.
    graph._tracer_cls = fx.Tracer
    traced = fx.GraphModule(tracer.root, graph, type(shadow).__name__)
    traced.eval()
    branches = tuple(dict.fromkeys(flag.branches))
    return Traced(traced, inputs, batch, tuple(tracer.constants), tracer.reads_batch, branches, front_end)


def _clone(buffer: torch.Tensor | None) -> torch.Tensor | None:
    return None if buffer is None else buffer.detach().clone()


def named_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Positional inputs by the names that the model's forward has for them."""
    named: dict[str, Any] = {}
    for name, value in inspect.signature(model.forward).bind(*inputs).arguments.items():
        kind = inspect.signature(model.forward).parameters[name].kind
        named |= {f"{name}_{i}": part for i, part in enumerate(value)} if kind is kind.VAR_POSITIONAL else {name: value}
    return named


@contextlib.contextmanager
def _through_wrapped_functions() -> Iterator[None]:
    """Traces through functions that modules asked torch.fx to keep whole: with values, nothing needs to be hidden."""
    table = _symbolic_trace._wrapped_fns_to_patch
    asked = dict(table)
    table.clear()
    try:
        yield
    finally:
        table.update(asked)


_NATIVE: tuple[tuple[Any, str, str], ...] = (
    (vmap, "_add_batch_dim", "torch.vmap"),
    (torch.autograd.Function, "apply", "an autograd.Function"),
    (torch, "cond", "torch.cond"),
    (torch._C.ScriptFunction, "__call__", "a scripted function"),
    (torch._C.ScriptMethod, "__call__", "a scripted module"),
)
"""Python's ways into native code that takes whatever looks like a tensor for one: (owner, name, what it is)."""


@contextlib.contextmanager
def _refusing_native_code() -> Iterator[None]:
    """Refuses calls that would hand a proxy to native code, which crashes on it."""
    before = [vars(owner)[name] for owner, name, _ in _NATIVE]
    for owner, name, what in _NATIVE:
        setattr(owner, name, _refusing(vars(owner)[name], what))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(_NATIVE, before, strict=True):
            setattr(owner, name, function)


def _refusing(function: Any, what: str) -> Any:
    if isinstance(function, classmethod):
        return classmethod(_refusing(function.__func__, what))

    def checked(*args: Any, **kwargs: Any) -> Any:
        if any(type(leaf) is ValueProxy for leaf in pytree.tree_leaves((args, kwargs))):
            msg = f"its forward calls {what}"
            raise TypeError(msg)
        return function(*args, **kwargs)

    return checked


def _explanation(model: nn.Module, example_inputs: tuple[Any, ...], failure: Exception | None, done: str) -> MdpFxError:
    """Why a trace failed: the inputs' fault if the model alone fails on them too, the tracer's otherwise."""
    shapes = ", ".join(
        "x".join(map(str, leaf.shape)) for leaf in pytree.tree_leaves(example_inputs) if _is_tensor(leaf)
    )
    try:
        with torch.no_grad():
            detached_copy(model).eval()(*copy.deepcopy(example_inputs))
    except Exception as error:  # noqa: BLE001 - as above
        return InputError(
            f"the network rejects an input of shape {shapes}: {first_line(error)}; set the shape with --input CxHxW"
        )
    return ModelError(f"{type(model).__name__} runs but cannot be {done}: {first_line(failure)}")
