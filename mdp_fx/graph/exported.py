"""The other front end: torch.export follows forwards that symbolic tracing cannot.

Its graph is replayed through the tracer, so what comes out looks as if it had been traced: the same spellings, the same
modules under the same names, the same facts at every node. Modules that tracing keeps whole, and functions that follow
`self.training`, are marked while torch.export runs and replayed as one call: they follow train mode in the slim one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from mdp_fx.errors import first_line
from mdp_fx.graph.marks import ENTER, LEAVE, MarkedCall, Marks
from mdp_fx.graph.ops.aten import is_check
from mdp_fx.graph.proxy import ValueProxy
from mdp_fx.graph.purity import target_name
from mdp_fx.graph.trace import Traced, attempt, named_inputs, record
from mdp_fx.graph.tracer import ValueTracer, attribute
from mdp_fx.graph.user_code import raised_at, spelled

_VMAP = "torch._functorch.predispatch"
"""Where the functions come from that torch.export leaves in the graph of a forward that uses torch.vmap."""

_REGIONS = (torch.ops.higher_order.wrap_with_autocast, torch.ops.higher_order.wrap_with_set_grad_enabled)
"""What runs a part of a graph under a setting; the setting comes first."""


class _ExportError(Exception):
    """torch.export cannot follow the forward, or its graph cannot be replayed."""


def export(model: nn.Module, example_inputs: tuple[Any, ...], *, open_batch: bool = True) -> Traced:
    """Captures `model` with torch.export; see `trace`, which it equals otherwise.

    Args:
        model: any module; left unchanged.
        example_inputs: positional arguments of its forward. Axis 0 of every tensor is the batch.
        open_batch: False bakes the batch of the inputs in.

    Raises:
        InputError: the network rejects the inputs.
        ModelError: it runs, but torch.export cannot follow its forward.
    """
    return attempt(_export, "exported", model, example_inputs, open_batch=open_batch)


def _export(shadow: nn.Module, copies: tuple[Any, ...], inputs: tuple[Any, ...], batch: int | None) -> Traced:
    marks = Marks()
    tracer = _Replay(named_inputs(shadow, copies), shadow)

    def follow() -> fx.Graph:
        with marks.on(tracer, shadow):
            program = _program(shadow, copies)
        tracer.follow(program, marks.calls, copies)
        return tracer.trace(shadow)

    return record(tracer, shadow, follow, inputs, batch, "export")


def _program(shadow: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    try:
        with _quiet():
            program = torch.export.export(shadow, inputs, strict=False)
            if any(getattr(node.target, "__module__", "") == _VMAP for node in program.graph.nodes):
                program = program.run_decompositions({})
    except GuardOnDataDependentSymNode as error:
        msg = f"its forward decides on the entries of a tensor, not on shapes{raised_at(error)}"
        raise _ExportError(msg) from error
    except Exception as error:
        msg = f"{first_line(error)}{raised_at(error)}"
        raise _ExportError(msg) from error
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints its graph and warns before it fails; one line is what we tell."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _written_at(node: fx.Node) -> str:
    """The line of the model's code that a node of an exported graph comes from."""
    found = re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    return spelled(*found[-1]) if found else "unknown line"


# Replaying ---------------------------------------------------------------------------------------------------------


class _Replay(ValueTracer):
    """Traces an exported program instead of a forward."""

    def follow(self, program: ExportedProgram, calls: list[MarkedCall], inputs: tuple[Any, ...]) -> None:
        """Says what to replay.

        Args:
            program: what torch.export made of the model.
            calls: those that are kept whole, by the number of their marks.
            inputs: the inputs that it was exported with.
        """
        self._program = program
        self._calls = calls
        self._paths = [path for path, _ in pytree.tree_leaves_with_path(inputs)]
        self._entered: dict[int, list[Any]] = {}
        self._current: fx.Node | None = None
        targets = [node.target for node in program.graph.nodes]
        self._writes = any(isinstance(target, OpOverload) and target._schema.is_mutable for target in targets)

    def call_root(self, *given: Any) -> Any:
        """Runs the program in the model's place."""
        signature = self._program.graph_signature
        inputs = iter([_descend(given, path) for path in self._paths])
        known: dict[fx.Node, Any] = {}
        stored: dict[fx.Node, str] = {}
        names: dict[str, Any] = {}
        placeholders = self._program.graph.find_nodes(op="placeholder")
        for node, spec in zip(placeholders, signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                names[node.name] = known[node] = next(inputs)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                stored[node] = str(spec.target)
            else:
                known[node] = self._program.constants[str(spec.target)]
        outputs = self._values_of(self._program.graph_module, known, stored)
        results: list[Any] = []
        for value, made in zip(outputs, signature.output_specs, strict=True):
            if made.kind is OutputKind.USER_OUTPUT:
                results.append(value)
            elif made.kind is OutputKind.USER_INPUT_MUTATION:
                names[str(made.target)].copy_(value)
            else:
                attribute(self.root, str(made.target)).copy_(value)
        return pytree.tree_unflatten(results, self._program.call_spec.out_spec)

    def _values_of(self, module: fx.GraphModule, known: dict[fx.Node, Any], stored: dict[fx.Node, str]) -> Any:
        """Runs a graph: what it gives.

        Args:
            module: the graph.
            known: values of its placeholders, and of more nodes afterwards.
            stored: the names of what the other placeholders stand for in the model.
        """

        def value(node: fx.Node) -> Any:
            if node not in known and node in stored:
                known[node] = attribute(self.root, stored[node])
            elif node not in known:
                known[node] = self._compute(module, node, value)
            return known[node]

        inside: int | None = None
        for node in module.graph.nodes:
            if node.op == "output":
                return _filled(node.args[0], value)
            if node.op != "call_function":
                continue
            if inside is None:
                value(node)
                inside = node.args[0] if node.target is ENTER else None
            elif node.target is LEAVE and node.args[0] == inside:
                value(node)
                inside = None
        return None

    def _compute(self, module: fx.GraphModule, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        if node.op == "get_attr":
            return attribute(module, str(node.target))
        target: Any = node.target
        self._current = node
        if target is LEAVE:
            # What the call did is not looked at.
            return self._call_again(int(node.args[0]))  # type: ignore[arg-type]
        args, kwargs = _filled(node.args, value), _filled(dict(node.kwargs), value)
        if target is ENTER:
            self._entered[args[0]] = args[1]
            return args[1]
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if target in _REGIONS:
            return self._region(node, args)
        if isinstance(target, HigherOrderOperator):
            args = pytree.tree_map(self._as_node, args)
        elif isinstance(target, OpOverload):
            if is_check(target):
                return None
            self._refuse_reading(node, (args, kwargs))
            if not self._writes and not _proxies((args, kwargs)):
                return target(*args, **kwargs)
            # Nodes are named after what is computed, in place or not, as the tracer names them.
            return self.create_proxy("call_function", target, args, kwargs, name=target_name(target).rstrip("_"))
        return self.create_proxy("call_function", target, args, kwargs)

    def where(self) -> str:
        """The line of the model's code that an exported node comes from."""
        return _written_at(self._current) if self._current else super().where()

    def _call_again(self, number: int) -> list[Any]:
        call = self._calls[number]
        leaves = list(call.leaves)
        for place, tensor in zip(call.tensors, self._entered[number], strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        made = self.create_proxy(call.kind, call.target, args, kwargs)
        return [_descend(made, path) for path in call.results]

    def _region(self, node: fx.Node, args: tuple[Any, ...]) -> Any:
        at = next(i for i, part in enumerate(args) if isinstance(part, fx.GraphModule))
        region: fx.Graph = args[at].graph
        if node.target is _REGIONS[0] and args[2]:
            where = _written_at(next(inner for inner in region.nodes if inner.op == "call_function"))
            msg = f"its forward runs under autocast ({where}), which a graph cannot hold; cast the model instead"
            raise _ExportError(msg)
        operands = zip(region.find_nodes(op="placeholder"), args[at + 1 :], strict=True)
        return self._values_of(args[at], dict(operands), {})

    def _as_node(self, part: Any) -> Any:
        """A graph that an operator runs, as an attribute of the model."""
        if not isinstance(part, fx.GraphModule):
            return part
        name = f"_graph_{sum(name.startswith('_graph_') for name, _ in self.root.named_children())}"
        self.root.add_module(name, part)
        node = self.create_node("get_attr", name, (), {})
        self._note(node, part)
        return ValueProxy(node, self, part)

    def _refuse_reading(self, node: fx.Node, arguments: Any) -> None:
        """No number may be taken from the entries of what depends on the input: it would be baked in."""
        reads = all("Tensor" not in str(result.type) for result in node.target._schema.returns)  # type: ignore[union-attr]
        if reads and any(proxy.node in self._from_input for proxy in _proxies(arguments)):
            msg = f"its forward decides on the entries of a tensor, not on shapes ({_written_at(node)})"
            raise _ExportError(msg)


def _proxies(arguments: Any) -> list[ValueProxy]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if type(leaf) is ValueProxy]


def _filled(item: Any, value: Callable[[fx.Node], Any]) -> Any:
    """Nested arguments of a node with values in place of nodes."""
    if isinstance(item, fx.Node):
        return value(item)
    if isinstance(item, list):
        return [_filled(part, value) for part in item]
    if isinstance(item, tuple):
        return tuple(_filled(part, value) for part in item)
    if isinstance(item, dict):
        return {key: _filled(part, value) for key, part in item.items()}
    return item


def _descend(whole: Any, path: pytree.KeyPath) -> Any:
    """The part of a nested value at a path."""
    for key in path:
        whole = key.get(whole)
    return whole
