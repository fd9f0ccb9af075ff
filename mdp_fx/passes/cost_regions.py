"""Cost regions: nodes with what a target fuses into them, each a small network that can be measured at any size."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import fx, nn

from mdp_fx.graph.axes import Axis, Dim, Factor, Shuffled, Span, batch_dims, concat, free_dims, fresh, kept_size
from mdp_fx.graph.copies import copy_stored
from mdp_fx.graph.ops.registry import Inference, Types, has_rule, tensor_types
from mdp_fx.graph.prune_graph import PruneGraph, infer
from mdp_fx.graph.purity import target_name
from mdp_fx.graph.tracer import DTYPE, SHAPE, attribute, called_module
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.emission import emit_sizes
from mdp_fx.passes.residual_blocks import ADDITIONS, Blocks

Role = Literal["in", "out"]
Build = Callable[[tuple[int, ...]], tuple[nn.Module, tuple[torch.Tensor, ...]]]

MAX_TABLE_AXES = 3

# Nodes that only name or re-arrange memory cost nothing worth a table.
_FREE = frozenset(
    "getitem view reshape flatten unflatten transpose permute squeeze unsqueeze contiguous detach size getattr chunk "
    "split unbind expand select clone to float".split()
)
_FREE_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class CostRegion:
    """A part of the network whose latency is measured on its own.

    Attributes:
        name: the module or node it starts with.
        key: everything a runtime sees of it but the sizes of `axes`: regions with equal keys are interchangeable.
        nodes: names of its nodes.
        axes: the types whose sizes its latency depends on.
        roles: per axis, "in" where only the operand has it, else "out".
        dense_sizes: per axis, its size in the dense network.
        block: the smallest removable block that holds it, or None.
        build: makes the region at given sizes of `axes`, in eval mode with random weights, and inputs for it.
        macs: multiply-accumulates at given sizes of `axes`.
    """

    name: str
    key: str
    nodes: tuple[str, ...]
    axes: tuple[Axis, ...]
    roles: tuple[Role, ...]
    dense_sizes: tuple[int, ...]
    block: str | None
    build: Build
    macs: Callable[[tuple[int, ...]], float]


def find_cost_regions(graph: PruneGraph, blocks: Blocks, batch: int) -> tuple[CostRegion, ...]:
    """Partitions the nodes that compute into cost regions, in graph order.

    Args:
        graph: the typed network.
        blocks: its residual blocks.
        batch: the batch size that latency is asked for.
    """
    inside = innermost_blocks(blocks)
    taken: set[str] = set()
    regions: list[CostRegion] = []
    used: dict[str, int] = {}
    order = {node: i for i, node in enumerate(graph.module.graph.nodes)}
    weighted = [node for node in order if _weights(graph, node)]
    for node in [*weighted, *(node for node in order if node not in weighted)]:
        if node.name in taken or node.op in ("placeholder", "output", "get_attr") or _is_free(graph, node):
            continue
        nodes = _fused_chain(graph, node, taken, order)
        taken.update(part.name for part in nodes)
        region = _make_region(graph, nodes, batch, inside.get(node.name))
        if region is not None:
            regions.append(region)
    place = {node.name: i for node, i in order.items()}
    regions.sort(key=lambda region: place[region.nodes[0]])
    for i, region in enumerate(regions):
        # A module that is called twice is two regions.
        used[region.name] = used.get(region.name, 0) + 1
        if used[region.name] > 1:
            regions[i] = replace(region, name=f"{region.name}#{used[region.name]}")
    return tuple(regions)


def innermost_blocks(blocks: Blocks, offered: Container[str] | None = None) -> dict[str, str]:
    """The smallest removable block around each node that lies in one, by node name; of the offered ones, if given."""
    inside: dict[str, str] = {}
    for block in sorted(blocks.removable, key=lambda block: -len(block.nodes)):
        if offered is None or block.name in offered:
            inside.update(dict.fromkeys(block.nodes, block.name))
    return inside


def _weights(graph: PruneGraph, node: fx.Node) -> bool:
    """Whether a node multiplies by a stored matrix: a convolution, a linear layer."""
    if node.op == "call_module":
        return any(p.ndim > 1 for p in called_module(graph.module, node).parameters(recurse=False))
    return node.op == "call_function" and any(
        source.op == "get_attr" and len(source.meta[SHAPE] or ()) > 1 for source in node.all_input_nodes
    )


def _is_free(graph: PruneGraph, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(called_module(graph.module, node), _FREE_MODULES)
    return target_name(node.target) in _FREE or not isinstance(node.meta.get(SHAPE), torch.Size)


def _fused_chain(graph: PruneGraph, start: fx.Node, taken: set[str], order: Mapping[fx.Node, int]) -> list[fx.Node]:
    """`start` and the entrywise nodes that follow it alone: norm, activation, addition, activation."""
    chain = [start]
    while len(chain[-1].users) == 1:
        tail = chain[-1]
        (user,) = tail.users
        if user.name in taken or user.op == "output" or not _is_entrywise(graph, user, tail):
            break
        # The operand of an addition that is computed last carries it: only there are both sides ready.
        if any(order[source] > order[tail] for source in user.all_input_nodes if source is not tail):
            break
        chain.append(user)
    return chain


def _is_entrywise(graph: PruneGraph, node: fx.Node, tail: fx.Node) -> bool:
    """Whether a node gives one value per entry of `tail`, with at most parameters of one axis."""
    if node.meta.get(SHAPE) != tail.meta[SHAPE] or _weights(graph, node) or _is_free(graph, node):
        return False
    if node.op == "call_module":
        return len(node.all_input_nodes) == 1 and not _resamples(graph, node)
    if node.target in ADDITIONS:
        return all(source.meta[SHAPE] == tail.meta[SHAPE] for source in node.all_input_nodes)
    return len(node.all_input_nodes) == 1 and target_name(node.target) not in (
        "softmax",
        "roll",
    )


def _resamples(graph: PruneGraph, node: fx.Node) -> bool:
    module = called_module(graph.module, node)
    return hasattr(module, "kernel_size") or isinstance(module, nn.Softmax)


# One region as a network of its own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Isolated:
    """A region cut out of its network and typed alone, so that its own dimensions appear."""

    module: fx.GraphModule
    state: Inference
    inputs: tuple[tuple[Axis, ...], ...]
    dtypes: tuple[torch.dtype, ...]


def _make_region(graph: PruneGraph, nodes: list[fx.Node], batch: int, block: str | None) -> CostRegion | None:
    isolated = _isolate(graph, nodes)
    if isolated is None:
        return None
    axes = _match_axes(graph, nodes, isolated)
    chosen = {dim: axis for dim, axis in axes.items() if free_dims(axis)}
    out_types = [axis for tensor in tensor_types(isolated.state.types[nodes[-1].name]) for axis in tensor]
    out_dims = {dim for axis in out_types for dim in free_dims(axis)}
    # A dimension beyond what a table can hold is measured at its dense size.
    dims = tuple(chosen)[:MAX_TABLE_AXES]
    sizing = _Sizing(tuple((dim,) for dim in dims))
    roles: tuple[Role, ...] = tuple("out" if dim in out_dims else "in" for dim in dims)
    sizes_of = tuple(chosen[dim] for dim in dims)
    if len(chosen) > 1 and out_dims.issuperset(chosen) and not any(_weights(graph, node) for node in nodes):
        # What joins many tensors moves memory: its time follows the total, however that is made up.
        dims = tuple(chosen)
        sizing, roles, sizes_of = _Sizing((dims,)), ("out",), (concat(*chosen.values()),)
    return CostRegion(
        name=str(nodes[0].target) if nodes[0].op == "call_module" else nodes[0].name,
        key=_key(isolated, dims, batch),
        nodes=tuple(node.name for node in nodes),
        axes=sizes_of,
        roles=roles,
        dense_sizes=tuple(sum(dim.size for dim in shared) for shared in sizing.dims),
        block=block,
        build=lambda sizes: _build(isolated, sizing.spread(sizes), batch),
        macs=lambda sizes: _macs(isolated, sizing.spread(sizes), batch),
    )


@dataclass(frozen=True)
class _Sizing:
    """Which of a region's dimensions make up each axis of its table."""

    dims: tuple[tuple[Dim, ...], ...]

    def spread(self, sizes: tuple[int, ...]) -> dict[Dim, int]:
        """Sizes of the dimensions; those that share an axis share it in proportion, one unit each if there is any."""
        result: dict[Dim, int] = {}
        for shared, size in zip(self.dims, sizes, strict=True):
            left, weight = size, sum(dim.size for dim in shared)
            for i, dim in enumerate(shared):
                after = len(shared) - i - 1
                result[dim] = max(min(1, size), min(left - after, round(left * dim.size / weight)))
                left, weight = left - result[dim], weight - dim.size
        return result


def _isolate(graph: PruneGraph, nodes: list[fx.Node]) -> _Isolated | None:
    region = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    inputs: dict[str, Types] = {}
    dtypes: list[torch.dtype] = []
    inside = set(nodes)
    rigid = Dim(graph.batch.size, rigid=True) if graph.batch is not None else None
    for source in dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside):
        if source.op == "get_attr":
            env[source] = region.get_attr(str(source.target))
        elif isinstance(source.meta[SHAPE], torch.Size):
            env[source] = region.placeholder(f"x{len(inputs)}")
            dtypes.append(source.meta[DTYPE])
            inputs[env[source].name] = tuple(
                Axis((rigid,)) if rigid and batch_dims(axis) and axis.normal.size == rigid.size else fresh(axis.size)
                for axis in graph.types[source.name]
            )
        else:
            return None
        env[source].meta.update({key: source.meta[key] for key in (SHAPE, DTYPE)})
    for node in nodes:
        env[node] = region.node_copy(node, env.__getitem__)
        env[node].name = node.name
    region.output(env[nodes[-1]])
    module = fx.GraphModule(graph.module, region)
    state = infer(module, inputs)
    return _Isolated(module, state, tuple(inputs.values()), tuple(dtypes))


def _match_axes(graph: PruneGraph, nodes: list[fx.Node], isolated: _Isolated) -> dict[Dim, Axis]:
    """For each dimension of the region alone, the axis of the whole network that it stands for."""
    found: dict[Dim, Axis] = {}
    pairs: list[tuple[Types, Types]] = [(isolated.state.types[node.name], graph.types[node.name]) for node in nodes]
    outer = dict.fromkeys(s for node in nodes for s in node.all_input_nodes if s not in nodes and s.op != "get_attr")
    pairs += [(local, graph.types[source.name]) for local, source in zip(isolated.inputs, outer, strict=True)]
    pairs += [(local, graph.tensors[key]) for key, local in isolated.state.tensors.items() if key in graph.tensors]
    for local_types, global_types in pairs:
        for local, whole in zip(tensor_types(local_types), tensor_types(global_types), strict=True):
            for local_axis, global_axis in zip(local, whole, strict=True):
                for dim, axis in _match(local_axis.normal, global_axis.normal):
                    found.setdefault(dim, axis)
    return found


def _match(local: Axis, whole: Axis) -> list[tuple[Dim, Axis]]:
    if len(local.spans) != 1:
        return []
    span = local.spans[0]
    if len(span) == 1:
        return [(span[0], whole)] if isinstance(span[0], Dim) and not span[0].rigid else []
    if len(whole.spans) != 1:
        return []
    pairs: list[tuple[Dim, Axis]] = []
    rest: Span = whole.spans[0]
    for factor in reversed(span):
        part, rest = _take(rest, factor)
        if part is None:
            return []
        if isinstance(factor, Dim) and not factor.rigid:
            pairs.append((factor, part))
    return pairs


def _take(span: Span, factor: Factor) -> tuple[Axis | None, Span]:
    """The trailing factors of `span` whose product has the size of `factor`, and what is left."""
    wanted = factor if isinstance(factor, int) else factor.size
    for at in range(len(span), -1, -1):
        part = Axis(span[at:])
        if part.size == wanted:
            return part, span[:at]
        last = span[at] if at < len(span) else None
        if part.size > wanted:
            inner = part.size // _size(last)
            if isinstance(last, int) and part.size % wanted == 0 and wanted % inner == 0:
                return Axis((wanted // inner, *span[at + 1 :])), (*span[:at], part.size // wanted)
            return None, span
    return None, span


def _size(factor: Factor | None) -> int:
    return factor if isinstance(factor, int) else factor.size if factor is not None else 1


def _key(isolated: _Isolated, dims: tuple[Dim, ...], batch: int) -> str:
    """A readable start and a digest of all that the region's build depends on but the sizes of `dims`."""
    names = {dim: f"d{i}" for i, dim in enumerate(dims)}

    def spell(axis: Axis) -> str:
        return repr(kept_size(axis, lambda dim: dim.size)) if not free_dims(axis) else _spell(axis, names)

    def spell_tensor(tensor: torch.Tensor) -> str:
        types = isolated.state.tensors.get(id(tensor))
        return "x".join(map(spell, types)) if types is not None else str(tuple(tensor.shape))

    def written(value: Any) -> str:
        if isinstance(value, Axis):
            return spell(value)
        if isinstance(value, fx.Node):
            return rename[value.name]
        if isinstance(value, dict):
            return str({name: written(part) for name, part in value.items()})
        return str([written(part) for part in value]) if isinstance(value, list | tuple) else repr(value)

    rename = {node.name: f"n{i}" for i, node in enumerate(isolated.module.graph.nodes)}
    text = [f"batch {batch}"]
    for types, dtype in zip(isolated.inputs, isolated.dtypes, strict=True):
        text.append("x".join("B" if batch_dims(axis) else spell(axis) for axis in types) + f" {dtype}")
    for node in isolated.module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        emission = isolated.state.emissions.get(node.name)
        if node.op == "call_module":
            module = called_module(isolated.module, node)
            sized = emission.attributes if emission is not None else {}
            text.append(f"{_spell_module(module, set(sized))}{{{','.join(written(size) for size in sized.values())}}}")
            for _, tensor in [*module.named_parameters(), *module.named_buffers()]:
                text.append(f"{tensor.dtype} {spell_tensor(tensor)}")
        elif node.op == "get_attr":
            text.append(spell_tensor(attribute(isolated.module, str(node.target))))
        else:
            args, kwargs = (node.args, node.kwargs) if emission is None or emission.node is None else emission.node[2:]
            text.append(f"{node.op} {target_name(node.target)} {written(args)} {written(kwargs)}")
    full = "; ".join(text)
    first = next(n for n in isolated.module.graph.nodes if n.op not in ("placeholder", "get_attr"))
    kind = (
        type(called_module(isolated.module, first)).__name__ if first.op == "call_module" else target_name(first.target)
    )
    return f"{kind} {text[1] if len(text) > 1 else ''} {hashlib.sha256(full.encode()).hexdigest()[:16]}"


def _spell_module(module: nn.Module, sized: set[str]) -> str:
    """A module's class and plain attributes but those that follow sizes, and those of the modules inside of it."""
    plain = {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name not in sized and isinstance(value, int | float | str | tuple | None)
    }
    return f"{type(module).__name__}{plain}{[_spell_module(child, sized) for child in module.children()]}"


def _spell(axis: Axis, names: Mapping[Dim, str]) -> str:
    def factor_text(factor: Factor) -> str:
        if isinstance(factor, int):
            return str(factor)
        if isinstance(factor, Shuffled):
            return f"~[{_spell(factor.axis, names)}]"
        return names.get(factor, str(factor.size)) if isinstance(factor, Dim) else f"[{_spell(factor, names)}]"

    return "+".join("*".join(map(factor_text, span)) for span in axis.normal.spans)


def _build(isolated: _Isolated, sizes: Mapping[Dim, int], batch: int) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)

    def size_of(dim: Dim) -> int:
        return batch if dim.rigid else sizes.get(dim, dim.size)

    memo: dict[int, object] = {}
    for name, tensor in [*isolated.module.named_parameters(), *isolated.module.named_buffers()]:
        types = isolated.state.tensors.get(id(tensor))
        shape = [kept_size(axis, size_of) for axis in types] if types is not None else list(tensor.shape)
        memo[id(tensor)] = _random_like(name, tensor, shape, generator)
        if id(tensor) in isolated.state.pointers:
            memo[id(tensor)] = torch.arange(shape[0])
    nodes = copy.deepcopy(isolated.module.graph)
    stored = copy_stored(isolated.module, nodes, memo)
    emit_sizes(nodes, stored, isolated.state.emissions, size_of, None)
    module = fx.GraphModule(stored, nodes)
    inputs = tuple(
        torch.randn([kept_size(axis, size_of) for axis in types], generator=generator).to(dtype)
        for types, dtype in zip(isolated.inputs, isolated.dtypes, strict=True)
    )
    return module.eval(), inputs


def _random_like(name: str, tensor: torch.Tensor, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Weights of ordinary size: zeros and denormal numbers have timings of their own."""
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    fan_in = max(1, torch.Size(shape).numel() // max(1, shape[0])) if shape else 1
    value = torch.randn(shape, generator=generator) / fan_in**0.5
    if tensor.ndim == 1:
        value = value.abs() + 0.5  # Variances must be positive; means, scales and shifts may be.
    value = value.to(tensor.dtype)
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _macs(isolated: _Isolated, sizes: Mapping[Dim, int], batch: int) -> float:
    """Multiply-accumulates as the typing rules count them.

    A module without a rule counts every entry of its stored matrices once per position of its result.
    """

    def size_of(dim: Dim) -> int:
        return batch if dim.rigid else sizes.get(dim, dim.size)

    total = 0.0
    for node in isolated.module.graph.nodes:
        for axes in isolated.state.macs.get(node.name, ()):
            total += prod(kept_size(axis, size_of) for axis in axes)
        if node.op == "call_module" and not has_rule(type(called_module(isolated.module, node))):
            entries = sum(p.numel() for p in called_module(isolated.module, node).parameters() if p.ndim > 1)
            results = tensor_types(isolated.state.types[node.name])
            total += entries * prod(kept_size(axis, size_of) for axis in results[0][:-1]) if results else 0
    return total


class FindCostRegions(Pass):
    """Cuts the network into regions that are measured on their own."""

    requires = ("graph", "blocks")
    ensures = ("regions",)

    def call(self, state: Compilation) -> PassResult:
        """Reads the graph."""
        assert state.graph is not None
        assert state.blocks is not None
        return PassResult(replace(state, regions=find_cost_regions(state.graph, state.blocks, state.batch)))

    def verify(self, state: Compilation) -> None:
        """No node is counted twice, and no region reaches over the edge of a block."""
        assert state.blocks is not None
        assert state.regions is not None
        inside = innermost_blocks(state.blocks)
        counted: set[str] = set()
        for region in state.regions:
            assert counted.isdisjoint(region.nodes), f"region {region.name} shares nodes with another"
            counted.update(region.nodes)
            assert region.block == inside.get(region.nodes[0]), f"region {region.name} is in another block"
