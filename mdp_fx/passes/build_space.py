"""Builds the search space: dimensions, blocks, importance and cost tables as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from mdp_fx.graph.axes import Axis, Dim, free_dims
from mdp_fx.graph.axis_sizes import size_terms
from mdp_fx.graph.readers import readers_of
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.passes.cost_regions import CostRegion, innermost_blocks
from mdp_fx.passes.importance import FloatArray, LayerImportance
from mdp_fx.passes.search_space import (
    Block,
    CostAxis,
    CostModel,
    CostTerm,
    Dimension,
    ImportanceTerm,
    Role,
    SearchSpace,
    SizeTerm,
)

MOST_POINTS = {1: 64, 2: 32, 3: 12}
"""Points of each axis of a latency table, by the number of axes."""

Points = tuple[tuple[int, ...], ...]


def reachable_sizes(analysis: Analysis, choices: Choices, region: CostRegion) -> Points:
    """Sizes that each axis of a region may take, ascending, as long as something of it is left."""
    by_dim = _by_dim(analysis, choices)

    def sizes_of(dim: Dim) -> tuple[int, ...]:
        dimension = by_dim.get(dim)
        if dimension is None or dimension.name in choices.held:
            return (dim.size,)
        return dimension.sizes

    points: list[tuple[int, ...]] = []
    for axis in region.axes:
        constant, terms = size_terms(axis)
        sums = {constant}
        for coefficient, dims in terms:
            products = {coefficient}
            for dim in dims:
                products = {known * size for known in products for size in sizes_of(dim)}
            sums = {known + term for known in sums for term in products}
        points.append(tuple(sorted(size for size in sums if size)))
    return tuple(points)


def thinned(points: Points) -> Points:
    """As many of the sizes as a table holds, evenly, ends included."""
    most = MOST_POINTS[max(1, len(points))]
    return tuple(
        axis if len(axis) <= most else tuple(axis[round(i)] for i in np.linspace(0, len(axis) - 1, most))
        for axis in points
    )


def unit_order(importance: Iterable[LayerImportance], groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """Units of every group from the most important to the least, by the sum over its layers; ties by index."""
    totals = {group.name: np.zeros(group.size) for group in groups}
    for entry in importance:
        totals[entry.group] += entry.values
    return {name: np.argsort(-total, kind="stable") for name, total in totals.items()}


def build_space(
    analysis: Analysis,
    choices: Choices,
    importance: Sequence[LayerImportance],
    latency: Mapping[str, tuple[Points, FloatArray]],
) -> SearchSpace:
    """Puts everything a solver needs into plain data.

    Args:
        analysis: the analysed network.
        choices: what may be chosen.
        importance: scores by layer and group.
        latency: per region name its points and the microseconds there, calibrated; empty without a target.
    """
    inside = innermost_blocks(analysis.blocks, choices.blocks)
    offered = {dimension.name: dimension for dimension in choices.dimensions}
    order = unit_order(importance, analysis.groups)
    terms = []
    for entry in importance:
        cumulative = np.concatenate([[0.0], np.cumsum(entry.values[order[entry.group]])])
        values = tuple(float(cumulative[size]) for size in offered[entry.group].sizes)
        terms.append(ImportanceTerm(entry.layer, entry.group, inside.get(entry.layer), values))
    costs = {
        "params": _params(analysis, choices, inside),
        "macs": CostModel("macs", 0.0, tuple(_macs(analysis, choices, inside))),
    }
    if latency:
        costs["latency"] = CostModel("us", 0.0, tuple(_latency(analysis, choices, inside, latency)))
    parents = {block.name: block.parent for block in analysis.blocks.removable}

    def parent(name: str) -> str | None:
        around = parents[name]
        while around is not None and around not in choices.blocks:
            around = parents[around]
        return around

    return SearchSpace(
        dimensions=choices.dimensions,
        blocks=tuple(
            Block(block.name, parent(block.name), block.empties)
            for block in analysis.blocks.removable
            if block.name in choices.blocks
        ),
        exclusive=tuple(names for names in analysis.blocks.exclusive if choices.blocks.issuperset(names)),
        importance=tuple(terms),
        costs=costs,
        fixed={dimension.name: dimension.dense for dimension in choices.dimensions if dimension.name in choices.held},
    )


def _by_dim(analysis: Analysis, choices: Choices) -> dict[Dim, Dimension]:
    offered = {dimension.name: dimension for dimension in choices.dimensions}
    return {group.dim: offered[group.name] for group in analysis.groups}


def _axis(axis: Axis, role: Role, points: tuple[int, ...], by_dim: Mapping[Dim, Dimension]) -> CostAxis:
    constant, terms = size_terms(axis)
    sized: list[SizeTerm] = []
    for coefficient, dims in terms:
        # Dimensions that only activations have are not offered: they keep their size.
        for dim in dims:
            if dim not in by_dim:
                coefficient *= dim.size
        names = tuple(by_dim[dim].name for dim in dims if dim in by_dim)
        if names:
            sized.append(SizeTerm(coefficient, names))
        else:
            constant += coefficient
    return CostAxis(role, constant, tuple(sized), points)


def _latency(
    analysis: Analysis, choices: Choices, inside: Mapping[str, str], latency: Mapping[str, tuple[Points, FloatArray]]
) -> Iterable[CostTerm]:
    by_dim = _by_dim(analysis, choices)
    for region in analysis.regions:
        points, table = latency[region.name]
        zeros = [choices.smallest(axis, by_dim) == 0 for axis in region.axes]
        axes = tuple(
            _axis(axis, role, (0,) * zero + sizes, by_dim)
            for axis, role, sizes, zero in zip(region.axes, region.roles, points, zeros, strict=True)
        )
        if any(zeros):
            # What has no entries costs nothing.
            table = np.pad(table, [(int(zero), 0) for zero in zeros])
        yield CostTerm(region.name, inside.get(region.nodes[0]), axes, table)


def _macs(analysis: Analysis, choices: Choices, inside: Mapping[str, str]) -> Iterable[CostTerm]:
    """Multiply-accumulates are linear in each size, so the ends of an axis say all.

    Where one axis is both read and made, as in x + conv(x), they are not: every size that is offered is counted.
    """
    by_dim = _by_dim(analysis, choices)
    for region in analysis.regions:
        if not region.macs(region.dense_sizes):
            continue
        points = [_ends(choices.smallest(axis, by_dim), axis.size) for axis in region.axes]
        for i, (axis, ends) in enumerate(zip(region.axes, points, strict=True)):
            if not _linear(region, i, (choices.smallest_left(axis, by_dim), axis.size)):
                dims = [dim for dim in free_dims(axis) if dim in by_dim]
                offered = by_dim[dims[0]].sizes if len(dims) == 1 and len(axis.normal.spans[0]) == 1 else ()
                points[i] = tuple(sorted({*ends, *(size for size in offered if ends[0] <= size)}))
        table = np.empty([len(sizes) for sizes in points])
        for index in np.ndindex(table.shape):
            table[index] = region.macs(tuple(sizes[i] for sizes, i in zip(points, index, strict=True)))
        axes = tuple(
            _axis(axis, role, sizes, by_dim)
            for axis, role, sizes in zip(region.axes, region.roles, points, strict=True)
        )
        yield CostTerm(region.name, inside.get(region.nodes[0]), axes, table)


def _linear(region: CostRegion, place: int, ends: tuple[int, ...]) -> bool:
    """Whether a region's multiply-accumulates at both ends of one axis are in proportion to its size."""
    sizes = [(*region.dense_sizes[:place], size, *region.dense_sizes[place + 1 :]) for size in ends]
    return len({region.macs(at) / size for at, size in zip(sizes, ends, strict=True)}) == 1


def _ends(low: int, high: int) -> tuple[int, ...]:
    return (low, high) if low < high else (high,)


def _params(analysis: Analysis, choices: Choices, inside: Mapping[str, str]) -> CostModel:
    """Entries of every parameter: the product of its axes' sizes.

    What only removed blocks read goes with the last of them; it is counted as if it stayed, so this is never too low.
    """
    by_dim = _by_dim(analysis, choices)
    readers = readers_of(analysis.graph.module)
    constant = 0.0
    terms: list[CostTerm] = []
    for name, tensor, types in analysis.graph.stored():
        if not isinstance(tensor, torch.nn.Parameter):
            continue
        blocks = {inside.get(node.name) for node in readers.get(id(tensor), ())}
        block = blocks.pop() if len(blocks) == 1 else None
        axes = [axis for axis in types if free_dims(axis)]
        rest = float(np.prod([axis.size for axis in types if not free_dims(axis)]))
        points = [_ends(choices.smallest(axis, by_dim), axis.size) for axis in axes]
        table = np.full([len(sizes) for sizes in points], rest)
        for index in np.ndindex(table.shape):
            table[index] *= np.prod([sizes[i] for sizes, i in zip(points, index, strict=True)])
        if not axes and block is None:
            constant += rest
            continue
        typed = tuple(
            _axis(axis, "out" if i == 0 else "in", sizes, by_dim)
            for i, (axis, sizes) in enumerate(zip(axes, points, strict=True))
        )
        terms.append(CostTerm(name, block, typed, table))
    return CostModel("params", constant, tuple(terms))
