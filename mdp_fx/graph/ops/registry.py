"""The registry of typing rules, and what happens to an op without one.

A rule is one function for one idea (convolution, concatenation, ...). It returns the types of the node's value; where
the node carries sizes as literals it says through `Op.emit` how to write them from types. The rewriter knows no op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from mdp_fx.graph.axes import Axis, constant, is_batch
from mdp_fx.graph.ops.op import ARGUMENT_NAMES, Inference, Op, Types, Zeros, stored_at, tensor_types

Rule: TypeAlias = Callable[[Op], Types]

Cost: TypeAlias = Literal["free", "entrywise", "computing"]
"""What an op does at inference: it only names or views memory ("free"), it gives each entry from one entry of every
operand and parameters of the entry's channel ("entrywise"), or it does more than that ("computing")."""


class TypingRuleError(Exception):
    """A fault of ours: a typing rule raised where it should have frozen what it cannot follow."""


@dataclass(frozen=True)
class _Entry:
    rule: Rule
    names: tuple[str, ...]
    zeros: Zeros
    cost: Cost
    operands: int


_MODULES: dict[type[nn.Module], _Entry] = {}
_MODULE_PATHS: dict[str, _Entry] = {}
_FUNCTIONS: dict[Callable[..., Any], _Entry] = {}
_METHODS: dict[str, _Entry] = {}


def rule(
    *targets: type[nn.Module] | Callable[..., Any] | str,
    args: str = "input",
    zeros: Zeros = "own",
    cost: Cost = "computing",
) -> Callable[[Rule], Rule]:
    """Registers a rule.

    Args:
        *targets: module classes, functions, ".name" for a tensor method, or "package.module.Class" for a class of an
            optional package.
        args: the names of the arguments in positional order. For modules those that are not passed to forward are
            attributes of the module: all behind the first, or behind a bar ("input1 input2 | weight").
        zeros: where the value is zero for dropped units.
        cost: what the op does at inference.

    Raises:
        ValueError: one of the targets has a rule already.
    """

    def decorate(function: Rule) -> Rule:
        operands = len(args.partition("|")[0].split()) if "|" in args else 1
        entry = _Entry(function, tuple(args.replace("|", " ").split()), zeros, cost, operands)
        for target in targets:
            table: dict[Any, _Entry] = _FUNCTIONS
            key: Any = target
            if isinstance(target, str):
                table, key = (_METHODS, target[1:]) if target.startswith(".") else (_MODULE_PATHS, target)
            elif isinstance(target, type) and issubclass(target, nn.Module):
                table = _MODULES
            if key in table:
                msg = f"{target} has a typing rule already"
                raise ValueError(msg)
            table[key] = entry
        return function

    return decorate


_COMPUTING = ("__call__", "forward", "_conv_forward")


def _find(target: Any) -> _Entry | None:
    if isinstance(target, str):
        return _METHODS.get(target)
    if isinstance(target, type):
        for base in target.__mro__:
            entry = _MODULES.get(base) or _MODULE_PATHS.get(f"{base.__module__}.{base.__qualname__}")
            if entry is not None:
                # A subclass that overrides what is computed is something else.
                same = all(getattr(target, name, None) is getattr(base, name, None) for name in _COMPUTING)
                return entry if same else None
        return None
    return _FUNCTIONS.get(target) if callable(target) and getattr(target, "__hash__", None) else None


def has_rule(target: Any) -> bool:
    """Whether a module class, a function or a method name has a typing rule."""
    return _find(target) is not None


def _entry_of(node: fx.Node, module: nn.Module | None) -> _Entry | None:
    """The rule of a node, which calls `module` if it calls one."""
    if node.kwargs.get("out") is not None:
        # A result that is written into another operand ties the two: no rule says so.
        return None
    if module is None:
        return _find(node.target)
    return None if does_more(module) else _find(type(module))


def cost_of(node: fx.Node, module: nn.Module | None) -> Cost:
    """What a node, which calls `module` if it calls one, does at inference."""
    entry = _entry_of(node, module)
    return entry.cost if entry is not None else "computing"


def infer_node(node: fx.Node, state: Inference) -> None:
    """Types one node; an op without a rule freezes what it reads."""
    if node.op == "get_attr":
        tensor = stored_at(state.module, node)
        state.types[node.name] = state.tensor_type(tensor) if isinstance(tensor, torch.Tensor) else None
        if isinstance(tensor, nn.Parameter):
            state.zeros[node.name] = state.tensor_type(tensor)
        return
    entry = _entry_of(node, state.modules[str(node.target)] if node.op == "call_module" else None)
    op = Op(node, state, entry.names, entry.operands) if entry else Op(node, state, ())
    if entry is None or _is_opaque(op, entry):
        state.types[node.name] = _unknown(op, state)
        return
    try:
        types = entry.rule(op)
    except Exception as error:
        msg = f"the typing rule of {op.where} fails ({node.meta.get('line', 'unknown line')}): {error}"
        raise TypingRuleError(msg) from error
    if op.unread or not _fits(types, op.shapes):
        for facts in (state.emissions, state.zeros, state.others, state.norms):
            facts.pop(node.name, None)
        types = freeze_operands(op, "operands that the typing rule does not know")
    else:
        op.spread_zeros(entry.zeros)
        op.settle_zeros(types)
    state.types[node.name] = types


def _fits(types: Types, shapes: Any) -> bool:
    """Whether types have the sizes of the recorded shapes."""
    if isinstance(shapes, torch.Size):
        sizes = [axis.size for axis in types] if isinstance(types, tuple) else None
        return types is None or sizes == list(shapes)
    if isinstance(shapes, dict):
        return isinstance(types, dict) and all(_fits(types.get(key), part) for key, part in shapes.items())
    if isinstance(shapes, list | tuple):
        return len(types) == len(shapes) and all(map(_fits, types, shapes))
    return True


def does_more(module: nn.Module) -> bool:
    """Whether calling a module runs more than its class's forward on its own tensors: hooks, parametrisations."""
    hooked = module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    return parametrize.is_parametrized(module) or bool(hooked)


def _is_opaque(op: Op, entry: _Entry) -> bool:
    """Whether a rule cannot read its operands: the first one has no types, or one has a name that it does not know."""
    first = op.value(entry.names[0])
    known = {*entry.names, *ARGUMENT_NAMES}
    foreign = any(isinstance(value, fx.Node) and name not in known for name, value in op.node.kwargs.items())
    return foreign or (isinstance(first, fx.Node) and op.types_of(first) is None)


def _unknown(op: Op, state: Inference) -> Types:
    why = f"no typing rule for {op.kind}"
    if op.node.op == "call_module":
        why += " with hooks or parametrisations" if does_more(state.modules[str(op.node.target)]) else ""
    return freeze_operands(op, why)


def freeze_operands(op: Op, why: str) -> Types:
    """Freezes all that a node reads. Its value is constant but for the batch, if that is axis 0 of an operand."""
    for tensor in op.module_tensors():
        op.freeze(tensor, why)
    batch: Axis | None = None
    for operand in op.node.all_input_nodes:
        for tensor in tensor_types(op.types_of(operand)):
            if tensor and is_batch(tensor[0]):
                batch = tensor[0]
                op.freeze(tensor[1:], why)
            else:
                op.freeze(tensor, why)
    return constants(op.shapes, batch)


def constants(shapes: Any, batch: Axis | None = None) -> Types:
    """Constant types for recorded shapes; a leading axis of the batch's size is taken for the batch."""
    if isinstance(shapes, torch.Size):
        return tuple(
            batch if i == 0 and batch is not None and size == batch.size else constant(size)
            for i, size in enumerate(shapes)
        )
    if isinstance(shapes, dict):
        return {key: constants(part, batch) for key, part in shapes.items()}
    if isinstance(shapes, list | tuple):
        return [constants(part, batch) for part in shapes]
    return None
