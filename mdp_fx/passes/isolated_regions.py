"""A cost region as a network of its own: cut out, typed alone, named by a key, built at any size, counted."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx, nn

from mdp_fx.graph.axes import (
    Axis,
    Dim,
    Factor,
    Shuffled,
    Span,
    batch_dims,
    concat,
    free_dims,
    fresh,
    is_batch,
    product,
)
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.graph.copies import copy_stored
from mdp_fx.graph.ops.op import Inference, Types, tensor_types
from mdp_fx.graph.ops.registry import has_rule
from mdp_fx.graph.prune_graph import PruneGraph, infer
from mdp_fx.graph.purity import target_name
from mdp_fx.graph.tracer import DTYPE, SHAPE, attribute, called_module
from mdp_fx.passes.emission import emit_sizes


@dataclass(frozen=True)
class IsolatedRegion:
    """A region cut out of its network and typed alone, so that its own dimensions appear."""

    module: fx.GraphModule
    state: Inference
    inputs: tuple[tuple[Axis, ...], ...]
    dtypes: tuple[torch.dtype, ...]


def isolate(graph: PruneGraph, nodes: list[fx.Node]) -> IsolatedRegion | None:
    """Cuts nodes out of their network; None where one reads what is no tensor."""
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
            inputs[env[source].name] = tuple(_alone(axis, rigid) for axis in graph.types[source.name])
        else:
            return None
        env[source].meta.update({key: source.meta[key] for key in (SHAPE, DTYPE)})
    for node in nodes:
        env[node] = region.node_copy(node, env.__getitem__)
        env[node].name = node.name
    region.output(env[nodes[-1]])
    module = fx.GraphModule(graph.module, region)
    # What need not be zero is frozen in the whole network: here it would hide axes that can be pruned there.
    state = infer(module, inputs, zero_inputs=True)
    return IsolatedRegion(module, state, tuple(inputs.values()), tuple(dtypes))


def _alone(axis: Axis, batch: Dim | None) -> Axis:
    """A fresh axis for one of the whole network: the region's own batch where the network's is, whatever is around."""
    if batch is None or not batch_dims(axis):
        return fresh(axis.size)
    if is_batch(axis):
        return Axis((batch,))
    return concat(*(product(*(_alone(Axis((factor,)), batch) for factor in span)) for span in axis.normal.spans))


def match_axes(graph: PruneGraph, nodes: list[fx.Node], isolated: IsolatedRegion) -> dict[Dim, Axis]:
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


def region_key(
    isolated: IsolatedRegion,
    dims: tuple[Dim, ...],
    batch: int,
    shared: tuple[tuple[int, ...], ...] = (),
    step: int = 1,
) -> str:
    """A readable start and a digest of all that the region's build depends on but the sizes of `dims`.

    `shared` are the dense sizes of dimensions that share an axis, which they do in such proportion and in such steps.
    """
    names = {dim: f"d{i}" for i, dim in enumerate(dims)}

    def spell(axis: Axis) -> str:
        return _spell(axis, names) if free_dims(axis) or batch_dims(axis) else repr(axis.size)

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
        text.append("x".join(map(spell, types)) + f" {dtype}")
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
    if shared:
        text.append(f"parts {shared} in steps of {step}")
    full = "; ".join(text)
    first, *fused = (n for n in isolated.module.graph.nodes if n.op not in ("placeholder", "get_attr", "output"))
    start = [_kind(isolated, first), text[1], f"batch {batch}"]
    if (convolution := isolated.state.convolutions.get(first.name)) is not None:
        sides = ("x".join(map(str, lengths)) for lengths in (convolution.kernel, convolution.stride))
        start += [f"{name} {side}" for name, side in zip(("kernel", "stride"), sides, strict=True)]
        start.append(f"groups {spell(convolution.groups)}")
    if shared and step > 1:
        start.append(f"parts of {step}")
    start += [f"+ {_kind(isolated, node)}" for node in fused]
    return f"{' '.join(start)} {hashlib.sha256(full.encode()).hexdigest()[:16]}"


def _kind(isolated: IsolatedRegion, node: fx.Node) -> str:
    """The class of the module that a node calls, or the name of the function."""
    if node.op == "call_module":
        return type(called_module(isolated.module, node)).__name__
    return target_name(node.target)


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
        if isinstance(factor, Dim):
            return "B" if factor.rigid else names.get(factor, str(factor.size))
        return f"[{_spell(factor, names)}]"

    return "+".join("*".join(map(factor_text, span)) for span in axis.normal.spans)


def build_region(
    isolated: IsolatedRegion, sizes: Mapping[Dim, int], batch: int
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The region at given sizes, in eval mode with random weights, and inputs for it."""
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
        _random_input([kept_size(axis, size_of) for axis in types], dtype, generator)
        for types, dtype in zip(isolated.inputs, isolated.dtypes, strict=True)
    )
    return module.eval(), inputs


def _random_input(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Numbers are random, positions 0, which every table has, and masks true, so that something is left of a row."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.full(shape, dtype is torch.bool, dtype=dtype)


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


def count_macs(isolated: IsolatedRegion, sizes: Mapping[Dim, int], batch: int) -> float:
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
