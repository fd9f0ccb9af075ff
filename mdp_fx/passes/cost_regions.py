"""Cost regions: nodes with what a target fuses into them, each a small network that can be measured at any size."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import fx, nn

from mdp_fx.graph.axes import Axis, Dim, concat, free_dims
from mdp_fx.graph.ops.op import tensor_types
from mdp_fx.graph.ops.registry import Cost, cost_of
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.tracer import SHAPE, called_module
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.convolutions import Convolution, find_convolutions
from mdp_fx.passes.isolated_regions import build_region, count_macs, isolate, match_axes, region_key
from mdp_fx.passes.residual_blocks import Blocks

Role = Literal["in", "out"]
Build = Callable[[tuple[int, ...]], tuple[nn.Module, tuple[torch.Tensor, ...]]]

MAX_TABLE_AXES = 3


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
        convolutions: the convolutions in it at given sizes of `axes`.
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
    convolutions: Callable[[tuple[int, ...]], tuple[Convolution, ...]]


def find_cost_regions(graph: PruneGraph, blocks: Blocks, batch: int, step: int = 1) -> tuple[CostRegion, ...]:
    """Partitions the nodes that compute into cost regions, in graph order.

    Args:
        graph: the typed network.
        blocks: its residual blocks.
        batch: the batch size that latency is asked for.
        step: the channel step of the sizes that will be asked for.
    """
    inside = innermost_blocks(blocks)
    taken: set[str] = set()
    regions: list[CostRegion] = []
    used: dict[str, int] = {}
    order = {node: i for i, node in enumerate(graph.module.graph.nodes)}
    weighted = [node for node in order if _weights(graph, node)]
    for node in [*weighted, *(node for node in order if node not in weighted)]:
        if node.name in taken or node.op in ("placeholder", "output", "get_attr") or _cost(graph, node) == "free":
            continue
        nodes = _fused_chain(graph, node, taken, order)
        taken.update(part.name for part in nodes)
        region = _make_region(graph, nodes, batch, step, inside.get(node.name))
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


def _cost(graph: PruneGraph, node: fx.Node) -> Cost:
    if not isinstance(node.meta.get(SHAPE), torch.Size):
        # Sizes, and tuples that others take apart.
        return "free"
    return cost_of(node, called_module(graph.module, node) if node.op == "call_module" else None)


def _fused_chain(graph: PruneGraph, start: fx.Node, taken: set[str], order: Mapping[fx.Node, int]) -> list[fx.Node]:
    """`start` and the entrywise nodes that follow it alone: norm, activation, addition, activation."""
    chain = [start]
    while len(chain[-1].users) == 1:
        tail = chain[-1]
        (user,) = tail.users
        if user.name in taken or user.op == "output" or not _follows(graph, user):
            break
        # The operand of an addition that is computed last carries it: only there are both sides ready.
        if any(order[source] > order[tail] for source in user.all_input_nodes if source.op != "get_attr"):
            break
        chain.append(user)
    return chain


def _follows(graph: PruneGraph, node: fx.Node) -> bool:
    """Whether a node gives each entry from one of every operand, all as large as it is or parameters of one axis."""
    shape = node.meta.get(SHAPE)
    return _cost(graph, node) == "entrywise" and all(
        source.meta[SHAPE] == shape or (source.op == "get_attr" and len(source.meta[SHAPE] or ()) < 2)
        for source in node.all_input_nodes
    )


def _make_region(
    graph: PruneGraph, nodes: list[fx.Node], batch: int, step: int, block: str | None
) -> CostRegion | None:
    isolated = isolate(graph, nodes)
    if isolated is None:
        return None
    axes = match_axes(graph, nodes, isolated)
    chosen = {dim: axis for dim, axis in axes.items() if free_dims(axis)}
    out_types = [axis for tensor in tensor_types(isolated.state.types[nodes[-1].name]) for axis in tensor]
    out_dims = {dim for axis in out_types for dim in free_dims(axis)}
    # A dimension beyond what a table can hold is measured at its dense size.
    dims = tuple(chosen)[:MAX_TABLE_AXES]
    sizing = _Sizing(tuple((dim,) for dim in dims))
    roles: tuple[Role, ...] = tuple("out" if dim in out_dims else "in" for dim in dims)
    sizes_of = tuple(chosen[dim] for dim in dims)
    if chosen and any(len(axis.normal.spans) > 1 and set(chosen).issubset(free_dims(axis)) for axis in out_types):
        # What joins many tensors moves memory: its time follows the total, however that is made up, unless some fill
        # no vector, and are brought into another layout.
        dims = tuple(chosen)
        sizing, roles, sizes_of = _Sizing((dims,), step), ("out",), (concat(*chosen.values()),)
    return CostRegion(
        name=str(nodes[0].target) if nodes[0].op == "call_module" else nodes[0].name,
        key=region_key(isolated, dims, batch, sizing.shared, sizing.step),
        nodes=tuple(node.name for node in nodes),
        axes=sizes_of,
        roles=roles,
        dense_sizes=tuple(sum(dim.size for dim in shared) for shared in sizing.dims),
        block=block,
        build=lambda sizes: build_region(isolated, sizing.spread(sizes), batch),
        macs=lambda sizes: count_macs(isolated, sizing.spread(sizes), batch),
        convolutions=lambda sizes: find_convolutions(isolated, sizing.spread(sizes), batch),
    )


@dataclass(frozen=True)
class _Sizing:
    """Which of a region's dimensions make up each axis of its table.

    Attributes:
        dims: per axis.
        step: the channel step of those that share an axis.
    """

    dims: tuple[tuple[Dim, ...], ...]
    step: int = 1

    @property
    def shared(self) -> tuple[tuple[int, ...], ...]:
        """Dense sizes of those that share an axis, by axis."""
        return tuple(tuple(dim.size for dim in shared) for shared in self.dims if len(shared) > 1)

    def spread(self, sizes: tuple[int, ...]) -> dict[Dim, int]:
        """Sizes of the dimensions."""
        result: dict[Dim, int] = {}
        for shared, size in zip(self.dims, sizes, strict=True):
            parts = parts_of(size, [dim.size for dim in shared], self.step)
            result.update(zip(shared, parts, strict=True))
        return result


def parts_of(size: int, dense: Sequence[int], step: int) -> list[int]:
    """A size made up of parts in proportion to the dense ones, none larger as long as the size is not.

    Each has something if there is enough, and is such as a network may have: a multiple of `step`, or dense. One takes
    what is over, and where there is no step for each, as where branches have gone, they are merely in proportion.
    """
    if size == sum(dense):
        return list(dense)
    held = sum(whole for whole in dense if whole < step)
    after = sum(whole >= step for whole in dense)
    if size - held < after * step:
        step, held, after = 1, 0, len(dense)
    left, weight = (size - held) // step, sum(dense) - held
    parts: list[int] = []
    for whole in dense:
        if whole < step:
            parts.append(whole)
            continue
        after -= 1
        share = min(whole // step, max(min(1, left), min(left - after, round(left * whole / weight))))
        parts.append(share * step)
        left, weight = left - share, weight - whole
    over = size - sum(parts)
    for i in reversed(range(len(parts))):
        more = min(over, dense[i] - parts[i])
        parts[i], over = parts[i] + more, over - more
    parts[-1] += over  # Regions of equal keys stand for each other: another's axis may be larger.
    return parts


class FindCostRegions(Pass):
    """Cuts the network into regions that are measured on their own."""

    requires = ("graph", "blocks")
    ensures = ("regions",)

    def call(self, state: Compilation) -> PassResult:
        """Reads the graph."""
        assert state.graph is not None
        assert state.blocks is not None
        return PassResult(replace(state, regions=find_cost_regions(state.graph, state.blocks, state.batch, state.step)))

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
