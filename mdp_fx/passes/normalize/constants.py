"""Constant subgraphs that are worth a stored tensor: those that write in place, and statistics of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.graph.purity import is_pure
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE, attribute, called_module
from mdp_fx.passes.normalize.edit import Editor, free_name, op_name, redirect, store

_CREATORS = frozenset("new_zeros new_ones new_full".split())
"""What gives a constant of literal sizes, whatever its operand holds."""

_SIZED = _CREATORS | frozenset("expand broadcast_to repeat tile repeat_interleave zeros ones full empty".split())
"""What may give an axis the size of the batch."""

_STATISTICS = frozenset(
    "batch_norm layer_norm group_norm instance_norm rms_norm native_layer_norm native_group_norm normalize norm "
    "vector_norm linalg_vector_norm var_mean std_mean var std mean sum softmax".split()
)
_RANDOM = frozenset("bernoulli multinomial normal poisson rrelu".split())


def constant_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose values no input can change, in order."""
    inputs = [node.meta[SHAPE] for node in graph.find_nodes(op="placeholder")]
    shapes = pytree.tree_leaves(inputs, is_leaf=lambda leaf: isinstance(leaf, torch.Size))
    # A batch of one is a fixed one: any other is traced with at least two examples.
    batches = {shape[0] for shape in shapes if shape} - {1}
    inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    memory = _shared_memory(inner)
    found: dict[fx.Node, None] = dict.fromkeys(inner)
    written: set[fx.Node] = set()
    while True:
        before = len(found)
        known: dict[fx.Node, None] = {}
        for node in found:
            sized = op_name(node) in _SIZED and not batches.isdisjoint(node.meta[SHAPE])
            if node not in written and not sized and all(operand in known for operand in _operands(node)):
                known[node] = None
        found = known
        # What anything else writes to is not constant, under whatever name it is read.
        written = {other for node in inner if node not in found and not is_pure(node) for other in memory[node]}
        if len(found) == before:
            return list(found)


def evaluate(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> dict[fx.Node, Any]:
    """Runs constant nodes, which are given in order with all that they read."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        for node in nodes:
            if not _operands(node):
                for source in node.all_input_nodes:
                    # A creator looks at no more than the number type.
                    interpreter.env.setdefault(source, torch.empty((), dtype=source.meta[DTYPE], device=device))
            interpreter.env[node] = interpreter.run_node(node)
    return interpreter.env


def fold_constants(module: fx.GraphModule) -> bool:
    """Stores the values of constant subgraphs that write in place or standardise weights.

    Everything else that is constant stays as it is, and trainable: position parameters, bias tables. Runs after
    in-place spellings that have another one have it.

    Returns:
        Whether anything changed.
    """
    constants = constant_nodes(module.graph)
    memory = _shared_memory(constants)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    folded: dict[fx.Node, list[fx.Node]] = {}
    for node in constants:
        if node.op != "get_attr" and _outside_readers(node, memory) and isinstance(node.meta[SHAPE], torch.Size):
            cone = _cone(node, constants, memory)
            if _worth_storing(module, node, cone) and _settled(cone, memory, order):
                folded[node] = cone
    if not folded:
        return False
    touched = {part for cone in folded.values() for part in cone}
    values = evaluate(module, [node for node in constants if node in touched])
    for node, cone in folded.items():
        path = _store(module, node, cone, values[node])
        stored = Editor(module, node).stored(path)
        for user in _outside_readers(node, memory):
            redirect(user, node, stored)
    alive: set[fx.Node] = set()
    for node in constants:
        if _outside_readers(node, memory):
            alive.update(_cone(node, constants, memory))
    for node in reversed(constants):
        if node in touched and node not in alive and not node.users:
            module.graph.erase_node(node)
    return True


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes whose entries a node's value depends on."""
    if op_name(node) in _CREATORS:
        return [source for source in node.all_input_nodes if source is not node.args[0]]
    return node.all_input_nodes


def _shared_memory(nodes: Sequence[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """For each of some nodes all of them that are on the same memory; what gives no tensor is on its operand's."""
    by_name = {node.name: node for node in nodes}
    memory: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        memory[node] = {node}
        names = set(node.meta.get(ALIASES, ()))
        if not is_pure(node):
            names |= {operand.name for operand in node.args[:1] if isinstance(operand, fx.Node)}
        for name in names:
            if name in by_name and memory[by_name[name]] is not memory[node]:
                joined = memory[by_name[name]] | memory[node]
                memory.update(dict.fromkeys(joined, joined))
    return memory


def _outside_readers(node: fx.Node, constants: Mapping[fx.Node, Any]) -> list[fx.Node]:
    return [user for user in node.users if user not in constants]


def _cone(node: fx.Node, constants: Sequence[fx.Node], memory: Mapping[fx.Node, set[fx.Node]]) -> list[fx.Node]:
    """All that a constant node's value depends on, and what writes to its memory, in order."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        part = pending.pop()
        if part not in found:
            found.add(part)
            pending += _operands(part)
            pending += [other for other in memory[part] if not is_pure(other)]
    return [part for part in constants if part in found]


def _worth_storing(module: fx.GraphModule, node: fx.Node, cone: Sequence[fx.Node]) -> bool:
    if is_random(module, cone):
        return False
    if not all(is_pure(part) for part in cone):
        return True
    weights = {id(tensor): tensor.numel() for part in cone for tensor in _parameters(module, part)}
    statistics = any(
        op_name(part) in _STATISTICS and not weights.keys().isdisjoint(map(id, _parameters_behind(module, part)))
        for part in cone
    )
    return statistics and node.meta[SHAPE].numel() <= sum(weights.values())


def is_random(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> bool:
    """Whether one of some nodes may draw its value anew each time."""
    for node in nodes:
        layer = called_module(module, node) if node.op == "call_module" else None
        if isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU):
            return True
        if op_name(node) in _RANDOM or "rand" in op_name(node) or "drop" in op_name(node):
            return True
    return False


def _parameters(module: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(called_module(module, node).parameters())
    value = attribute(module, str(node.target)) if node.op == "get_attr" else None
    return [value] if isinstance(value, nn.Parameter) else []


def _parameters_behind(module: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    found, seen, pending = list[nn.Parameter](), set[fx.Node](), [node]
    while pending:
        part = pending.pop()
        if part not in seen:
            seen.add(part)
            found += _parameters(module, part)
            pending += _operands(part)
    return found


def _settled(cone: Sequence[fx.Node], memory: Mapping[fx.Node, set[fx.Node]], order: Mapping[fx.Node, int]) -> bool:
    """Whether all writes come before what reads the result, go to no stored tensor, and are the subgraph's own."""
    for part in cone:
        shared = memory[part]
        readers = [user for other in shared for user in _outside_readers(other, memory)]
        writes = [order[other] for other in shared if not is_pure(other)]
        if any(not is_pure(user) and user.op != "output" for user in readers):
            return False
        if writes and (any(n.op == "get_attr" for n in shared) or any(order[r] < max(writes) for r in readers)):
            return False
    return True


def _store(module: fx.GraphModule, node: fx.Node, cone: Sequence[fx.Node], value: Tensor) -> str:
    """Stores the value of a node under the name of the first parameter in it, else of the first tensor."""
    sources = [part for part in cone if part.op == "get_attr"]
    learned = [tensor for part in cone for tensor in _parameters(module, part)]
    first = next((part for part in sources if _parameters(module, part)), next(iter(sources), node))
    path = free_name(module, f"{first.target if first.op == 'get_attr' else node.name}_folded")
    value = value.detach().clone()
    if learned and value.is_floating_point():
        value = nn.Parameter(value, any(tensor.requires_grad for tensor in learned))
    store(module, path, value)
    return path
