"""What a target that is a table lets a network choose: sizes on its grid, and the tables of the regions at these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from mdp_fx.errors import NothingToPruneError
from mdp_fx.graph.axes import Axis, Dim, free_dims
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.latency.interpolation import FloatArray
from mdp_fx.latency.table_target import TableTarget
from mdp_fx.passes.build_space import Points
from mdp_fx.passes.choices import Analysis, Choices, dimension_steps
from mdp_fx.passes.cost_regions import CostRegion
from mdp_fx.passes.search_space import Dimension

MOST_SIZES = 32
"""Sizes offered for each dimension, or looked up on each axis: reading a table takes no time, but solving does."""


@dataclass(frozen=True)
class TableOptions:
    """What may be chosen on a table.

    Attributes:
        choices: with the sizes that the table has.
        held: channel groups that could be cut, but not to a size of the table.
    """

    choices: Choices
    held: tuple[str, ...]


def table_options(analysis: Analysis, choices: Choices, target: TableTarget) -> TableOptions:
    """Offers of the multiples of the step those sizes that the table has, for all convolutions that see them together.

    Args:
        analysis: the analysed network.
        choices: what may be chosen where every size can be measured.
        target: the table.

    Raises:
        TargetError: the dense network has a convolution outside of the table, and nothing fills it.
        NothingToPruneError: no group has a smaller size in the table, and no block may go.
    """
    regions = []
    for region in analysis.regions:
        if target.look_up(region, region.dense_sizes).convolutions and target.has(region, region.dense_sizes):
            regions.append(region)
    steps = dimension_steps(analysis.graph, analysis.step)
    sizes = {each.name: each.sizes for each in choices.dimensions}
    for group in analysis.groups:
        seen_by = [region for region in regions if any(group.dim in free_dims(axis) for axis in region.axes)]
        if not seen_by or group.name in choices.held:
            continue
        offered = [*range(steps[group.dim], group.size, steps[group.dim])]
        for region in seen_by:
            offered = [size for size in offered if _fits(region, group.dim, size, target)]
        zero = (0,) if 0 in sizes[group.name] else ()
        sizes[group.name] = (*zero, *thinned(offered, MOST_SIZES - 1), group.size)
    narrowed = _with_sizes(choices, sizes)
    for region in regions:
        narrowed = _inside(analysis, narrowed, region, target)
    before = {each.name: each.sizes for each in choices.dimensions}
    held = tuple(d.name for d in narrowed.dimensions if len(_cuts(d.sizes)) == 0 < len(_cuts(before[d.name])))
    if not narrowed.blocks and all(not _cuts(d.sizes) or d.name in narrowed.held for d in narrowed.dimensions):
        lacks = f"the table of {target.name} has no smaller size for any channel group"
        msg = f"nothing to prune: {lacks}, at --step {analysis.step}"
        raise NothingToPruneError(msg)
    return TableOptions(narrowed, held)


def _cuts(sizes: Sequence[int]) -> Sequence[int]:
    """Sizes below the dense one that leave something."""
    return [size for size in sizes[:-1] if size]


def _with_sizes(choices: Choices, sizes: Mapping[str, tuple[int, ...]]) -> Choices:
    return replace(choices, dimensions=tuple(Dimension(d.name, sizes[d.name]) for d in choices.dimensions))


def thinned(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the sizes, evenly, the first and the last among them."""
    if len(sizes) <= most:
        return tuple(sizes)
    return tuple(sizes[round(place)] for place in np.linspace(0, len(sizes) - 1, most))


def _fits(region: CostRegion, dim: Dim, size: int, target: TableTarget) -> bool:
    """Whether the table has a region where one dimension of the dense network is cut, on its grid if that alone counts.

    An axis that many dimensions add up to has sizes between those of the grid; there the table is interpolated.
    """
    at = tuple(kept_size(axis, lambda each: size if each is dim else each.size) for axis in region.axes)
    alone = all(len(free_dims(axis)) == 1 for axis in region.axes if dim in free_dims(axis))
    return target.has(region, at) and (not alone or target.on_grid(region, at))


def _inside(analysis: Analysis, choices: Choices, region: CostRegion, target: TableTarget) -> Choices:
    """Choices without sizes that a table, a union of grids, has apart but not together; deep cuts go first."""
    sizes = {each.name: each.sizes for each in choices.dimensions}
    names = {group.dim: group.name for group in analysis.groups}
    while True:
        points = region_points(analysis, choices, region, target)
        outside = next((at for at in product(*points) if not target.has(region, at)), None)
        if outside is None:
            return choices
        shares = [size / axis.size for size, axis in zip(outside, region.axes, strict=True)]
        place = int(np.argmin(shares))
        open_dims = _open_dims(region.axes[place], names, choices)
        deepest = min(
            (d for d in open_dims if _cuts(sizes[names[d]])), key=lambda d: _cuts(sizes[names[d]])[0] / d.size
        )
        gone, offered = outside[place], sizes[names[deepest]]
        if len(open_dims) == 1:
            dropped = next(s for s in _cuts(offered) if _size_at(region.axes[place], deepest, s) == gone)
        else:
            dropped = _cuts(offered)[0]
        sizes[names[deepest]] = tuple(size for size in offered if size != dropped)
        choices = _with_sizes(choices, sizes)


def _open_dims(axis: Axis, names: Mapping[Dim, str], choices: Choices) -> list[Dim]:
    """The dimensions of an axis that may be cut."""
    return [dim for dim in free_dims(axis) if dim in names and names[dim] not in choices.held]


def _size_at(axis: Axis, dim: Dim, size: int) -> int:
    return kept_size(axis, lambda each: size if each is dim else each.size)


def region_points(analysis: Analysis, choices: Choices, region: CostRegion, target: TableTarget) -> Points:
    """Sizes at which each axis of a region is looked up, ascending.

    They are those that its dimension offers. Where many dimensions add up to an axis, they are the ends and what the
    table has between: there it is as linear as a search space takes it to be.
    """
    offered = {each.name: each for each in choices.dimensions}
    by_dim = {group.dim: offered[group.name] for group in analysis.groups}
    names = {group.dim: group.name for group in analysis.groups}
    points = []
    for axis in region.axes:
        dims = _open_dims(axis, names, choices)
        if len(dims) == 1:
            dim = dims[0]
            points.append(tuple(sorted({_size_at(axis, dim, size) for size in by_dim[dim].sizes if size})))
            continue
        low = choices.smallest_left(axis, by_dim)
        between = thinned([size for size in target.channels(region) if low < size < axis.size], MOST_SIZES - 2)
        points.append((low, *between, axis.size) if low < axis.size else (axis.size,))
    return tuple(points)


def region_lookups(analysis: Analysis, choices: Choices, target: TableTarget) -> dict[str, tuple[Points, FloatArray]]:
    """Seconds of every region of a network at the sizes in play, by name, as `region_tables` measures them."""
    found: dict[str, tuple[Points, FloatArray]] = {}
    for region in analysis.regions:
        points = region_points(analysis, choices, region, target)
        table = np.empty([len(sizes) for sizes in points])
        for index in np.ndindex(table.shape):
            at = tuple(sizes[i] for sizes, i in zip(points, index, strict=True))
            table[index] = target.look_up(region, at).seconds
        found[region.name] = (points, table)
    return found
