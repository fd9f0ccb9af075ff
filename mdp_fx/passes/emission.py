"""Writes sizes again from types: the one place where literals in a graph change."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from mdp_fx.graph.axes import Axis, Dim, batch_dims, free_dims
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.graph.ops.op import Emission, EmittedCall, KeptShare

SizeOf = Callable[[Dim], int]
_Sizes: TypeAlias = dict[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class _OpenSize:
    """A size that follows the batch: `times` entries for each example."""

    times: int


def emit_sizes(
    graph: fx.Graph,
    modules: MutableMapping[str, nn.Module],
    emissions: Mapping[str, Emission],
    size_of: SizeOf,
    source: str | None,
) -> None:
    """Writes every size in a network again that came from a type which is not constant.

    Args:
        graph: edited in place; has the nodes that the emissions name.
        modules: those that the graph calls, by target; edited in place, and more where calls of one differ in size.
        emissions: by node name.
        size_of: kept units of a dimension.
        source: the placeholder whose axis 0 is the batch; sizes that mention the batch are read from it.
    """
    nodes = {node.name: node for node in graph.nodes}
    _resize_modules(graph, modules, emissions, size_of)
    for name, emission in emissions.items():
        node = nodes[name]
        if emission.node is not None and _may_change(emission.node, size_of):
            op, target, args, kwargs = emission.node
            writer = _Writer(node, nodes, size_of, source, shape=target is torch.reshape)
            node.op, node.target = op, target
            node.args, node.kwargs = writer.write(args), writer.write(kwargs)


def _resize_modules(
    graph: fx.Graph, modules: MutableMapping[str, nn.Module], emissions: Mapping[str, Emission], size_of: SizeOf
) -> None:
    owners: list[tuple[nn.Module, _Sizes]] = []
    first: dict[int, _Sizes] = {}
    for node in graph.find_nodes(op="call_module"):
        owner = modules[str(node.target)]
        attributes = emissions[node.name].attributes if node.name in emissions else {}
        sizes = {name: _sizes(axis, size_of) for name, axis in attributes.items() if hasattr(owner, name)}
        if first.setdefault(id(owner), sizes) != sizes:
            # Without a tensor that ties its calls, a module may be of another size at each.
            owner, node.target = copy.copy(owner), f"{node.target}_at_{node.name}"
            modules[node.target] = owner
        owners.append((owner, sizes))
    for owner, sizes in owners:
        for name, size in sizes.items():
            setattr(owner, name, size)


def _sizes(axis: Axis | tuple[Axis, ...], size_of: SizeOf) -> int | tuple[int, ...]:
    if isinstance(axis, Axis):
        return kept_size(axis, size_of)
    return tuple(kept_size(part, size_of) for part in axis)


def _may_change(node: tuple[Any, ...], size_of: SizeOf) -> bool:
    """Whether a rewritten node differs: one whose sizes are all constant stays as the model spelled it."""
    parts = list(_sized(node))
    shares = [part.axis for part in parts if isinstance(part, KeptShare)]
    if shares:
        return any(kept_size(axis, size_of) != axis.size for axis in shares)
    return not parts or any(free_dims(axis) or batch_dims(axis) for axis in parts if isinstance(axis, Axis))


def _sized(value: Any) -> Iterator[Axis | KeptShare]:
    if isinstance(value, Axis | KeptShare):
        yield value
    elif type(value) is slice:
        yield from _sized((value.start, value.stop))
    elif isinstance(value, dict):
        yield from _sized(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _sized(part)


class _Writer:
    def __init__(
        self, node: fx.Node, nodes: Mapping[str, fx.Node], size_of: SizeOf, source: str | None, *, shape: bool
    ) -> None:
        self._node = node
        self._nodes = nodes
        self._size_of = size_of
        self._source = source
        self._shape = shape

    def write(self, value: Any) -> Any:
        """Replaces types by sizes and nodes by those of this graph."""
        if isinstance(value, list):
            sizes = [self._size(part) if isinstance(part, Axis) else part for part in value]
            if self._shape and sum(isinstance(size, _OpenSize) for size in sizes) == 1:
                sizes = [-1 if isinstance(size, _OpenSize) else size for size in sizes]
            return [self.write(size) for size in sizes]
        if isinstance(value, tuple):
            return tuple(self.write(part) for part in value)
        if isinstance(value, dict):
            return {key: self.write(part) for key, part in value.items()}
        if type(value) is slice:
            return slice(self.write(value.start), self.write(value.stop), value.step)
        if isinstance(value, fx.Node):
            return self._nodes[value.name]
        if isinstance(value, Axis):
            return self.write(self._size(value))
        if isinstance(value, KeptShare):
            return kept_size(value.axis, self._size_of) / value.axis.size
        if isinstance(value, EmittedCall):
            args, kwargs = self.write(value.args), self.write(value.kwargs)
            with self._node.graph.inserting_before(self._node):
                return self._node.graph.call_function(value.target, args, kwargs)
        return self._read_batch(value) if isinstance(value, _OpenSize) else value

    def _size(self, axis: Axis) -> int | _OpenSize:
        batch = batch_dims(axis)
        if not batch:
            return kept_size(axis, self._size_of)
        return _OpenSize(kept_size(axis, lambda dim: 1 if dim in batch else self._size_of(dim)))

    def _read_batch(self, size: _OpenSize) -> fx.Node:
        graph = self._node.graph
        with graph.inserting_before(self._node):
            batch = graph.call_method("size", (self._nodes[str(self._source)], 0))
            return batch if size.times == 1 else graph.call_function(operator.mul, (batch, size.times))
