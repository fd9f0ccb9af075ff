"""Front end: a model and example inputs become a torch.fx graph in which every node knows the shape of its value."""

from __future__ import annotations

import contextlib
import functools
import inspect
import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn
from torch._functorch import vmap
from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, MdpFxError, ModelError, first_line
from mdp_fx.graph.copies import copy_network
from mdp_fx.graph.eval_flag import EvalFlag
from mdp_fx.graph.forward import copied_tensors, run_once
from mdp_fx.graph.held_state import held_tensors
from mdp_fx.graph.proxy import ValueProxy
from mdp_fx.graph.tracer import MadeTensorWrittenError, ValueTracer
from mdp_fx.graph.user_code import is_fault_of_ours, raised_at, user_line

FrontEnd: TypeAlias = Literal["symbolic", "export"]


@dataclass(frozen=True)
class Traced:
    """A traced network.

    Attributes:
        module: the graph, in eval mode; parameters are the model's own tensors (not copies).
        example_inputs: the inputs it was traced with, the batch repeated to at least two where the model allows it.
        batch: size of the batch axis in those inputs, or None where it is baked in.
        constants: names of the tensors that the forward made by itself; they are baked in.
        unregistered: those of them that the model holds, but not as parameters or buffers.
        state: names of attributes that the forward sets to tensors: the graph does not keep them for the next call.
        training_reads: lines of the model's code that decide or compute with `self.training`, which was false.
        front_end: what made the graph.
        why: the reason for that front end.
        fixed: why the batch is baked in, where it was tried to keep it open.
    """

    module: fx.GraphModule
    example_inputs: tuple[Any, ...]
    batch: int | None
    constants: tuple[str, ...]
    unregistered: frozenset[str]
    state: tuple[str, ...]
    training_reads: tuple[str, ...]
    front_end: FrontEnd = "symbolic"
    why: str = "its forward can be traced"
    fixed: str = ""


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
    try:
        return attempt(_trace, "traced", model, example_inputs, open_batch=open_batch)
    except ModelError as error:
        if not isinstance(error.__cause__, MadeTensorWrittenError):
            raise
    # What the forward writes to is made anew in every call: by nodes. Otherwise constants serve as well, and are rarer.
    capture = functools.partial(_trace, creators=True)
    return attempt(capture, "traced", model, example_inputs, open_batch=open_batch)


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
                traced = capture(shadow_of(model), copied_tensors(inputs), inputs, batch)
        except Exception as error:
            # A user's forward may raise anything.
            if is_fault_of_ours(error):
                raise
            failure = error
            continue
        return traced if failure is None else replace(traced, fixed=_told(failure))
    raise _explanation(model, example_inputs, failure, done) from failure


def _told(failure: Exception) -> str:
    """Why a batch is not open, with the line of the model's code."""
    text, line = first_line(failure), raised_at(failure)
    return f"{text}{'' if line in text else line}"


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def shadow_of(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode that shares the model's parameters.

    Forwards that cache or reassign attributes touch only the copy. Buffers are copied: a forward may write to them.
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


def _trace(
    shadow: nn.Module, copies: tuple[Any, ...], inputs: tuple[Any, ...], batch: int | None, *, creators: bool = False
) -> Traced:
    tracer = ValueTracer(named_inputs(shadow, copies), shadow, creators=creators)

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
    flag = EvalFlag(user_line)
    for module in shadow.modules():
        if not tracer.is_leaf_module(module, ""):
            module.training = flag  # type: ignore[assignment]
    buffers = [
        (module, dict(module._buffers), {name: _clone(buffer) for name, buffer in module._buffers.items()})
        for module in shadow.modules()
    ]
    before_it = held_tensors(shadow)
    graph = follow()
    after_it = held_tensors(shadow).items()
    state = tuple(name for name, held in after_it if name not in tracer.constants and held != before_it.get(name))
    _refuse_keywords(graph)
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
    reads = tuple(dict.fromkeys(flag.reads))
    constants, unregistered = tuple(tracer.constants), frozenset(tracer.unregistered)
    return Traced(traced, inputs, batch, constants, unregistered, state, reads, front_end)


def _refuse_keywords(graph: fx.Graph) -> None:
    """Refuses names that the code of a graph cannot spell."""
    for node in graph.nodes:
        words = str(node.target).split(".") if node.op in ("call_module", "get_attr") else []
        for word in filter(keyword.iskeyword, words):
            msg = f"{node.target} is named after a word of Python ({word}), which its code cannot spell: rename it"
            raise ValueError(msg)


def _clone(buffer: torch.Tensor | None) -> torch.Tensor | None:
    return None if buffer is None else buffer.detach().clone()


def named_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Positional inputs by the names that the model's forward has for them."""
    if isinstance(model, torch.jit.ScriptModule):
        msg = "it is a scripted module, not Python: give the network that it was made from"
        raise TypeError(msg)
    own_call = type(model).__call__ is not nn.Module.__call__
    signature = inspect.signature(model.__call__ if own_call else model.forward)
    named: dict[str, Any] = {}
    for name, value in signature.bind(*inputs).arguments.items():
        kind = signature.parameters[name].kind
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
    try:
        run_once(detached_copy(model), example_inputs)
    except InputError as error:
        return error
    return ModelError(f"{type(model).__name__} runs but cannot be {done}: {first_line(failure)}")
