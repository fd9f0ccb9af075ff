"""What may be chosen: the sizes offered for every group, and the blocks that may go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd

from mdp_fx.errors import InputError, NothingToPruneError
from mdp_fx.graph.axes import Axis, Dim, unordered
from mdp_fx.graph.axis_sizes import kept_size, size_terms
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.channel_groups import ChannelGroup, find_frozen, owner
from mdp_fx.passes.cost_regions import CostRegion
from mdp_fx.passes.residual_blocks import Blocks, ResidualBlock
from mdp_fx.passes.search_space import Dimension

MAX_OPTIONS = 32
"""Kept sizes offered for each dimension, at most."""


@dataclass(frozen=True)
class Analysis:
    """What the analysis passes found in a network.

    Attributes:
        graph: the network, every axis typed.
        groups: its channel groups.
        blocks: its residual blocks.
        regions: its cost regions.
        step: channel step: what is chosen keeps axes multiples of so many entries, see `dimension_steps`.
    """

    graph: PruneGraph
    groups: tuple[ChannelGroup, ...]
    blocks: Blocks
    regions: tuple[CostRegion, ...]
    step: int


@dataclass(frozen=True)
class Choices:
    """What may be chosen.

    Attributes:
        dimensions: options of each group, in the order of the groups; the first is 0 where a block of `blocks` takes
            all that a group has.
        held: names of groups that keep their dense size.
        blocks: names of blocks that may be removed.
    """

    dimensions: tuple[Dimension, ...]
    held: frozenset[str]
    blocks: frozenset[str]

    def smallest(self, axis: Axis, by_dim: Mapping[Dim, Dimension]) -> int:
        """Smallest reachable size of an axis, 0 where a block that goes takes all it has."""
        return self._size(axis, by_dim, ())

    def smallest_left(self, axis: Axis, by_dim: Mapping[Dim, Dimension]) -> int:
        """Smallest reachable size of an axis of which something is left."""
        terms = [()] if self.smallest(axis, by_dim) else [dims for _, dims in size_terms(axis)[1]]
        return min(self._size(axis, by_dim, dims) for dims in terms)

    def _size(self, axis: Axis, by_dim: Mapping[Dim, Dimension], left: Collection[Dim]) -> int:
        """Size of an axis whose dimensions are as small as they can be, those of `left` not 0."""

        def size_of(dim: Dim) -> int:
            dimension = by_dim.get(dim)
            if dimension is None or dimension.name in self.held:
                return dim.size
            return next(size for size in dimension.sizes if size or dim not in left)

        return kept_size(axis, size_of)


def option_sizes(size: int, step: int, most: int = MAX_OPTIONS) -> tuple[int, ...]:
    """Kept sizes offered for a dimension: multiples of `step`, or of its double, and so on, and the dense size.

    Doubling keeps them on the treads of the target's staircase where they become fewer.
    """
    wide = step
    while size > wide * most:
        wide *= 2
    return (*range(wide, size, wide), size)


def dimension_steps(graph: PruneGraph, step: int) -> dict[Dim, int]:
    """The step of every dimension that keeps the sizes of axes multiples of `step`.

    What an axis multiplies a dimension by counts: heads of 8 units each may go one by one, channels by eights.
    """
    steps: dict[Dim, int] = {}

    def unit(axis: Axis, inner: int) -> int:
        """What every size of an axis is a multiple of, as far as `step` is concerned; `inner` is behind the axis."""
        common = 0
        for span in axis.normal.spans:
            behind = inner
            for factor in reversed(span):
                if isinstance(factor, Dim):
                    steps[factor] = max(steps.get(factor, 1), step // gcd(step, behind))
                    behind *= factor.size if factor.size <= step else step
                elif isinstance(factor, int):
                    behind *= factor
                else:
                    behind = unit(unordered(factor), behind)
            common = gcd(common, behind)
        return common or inner

    for _, _, types in graph.stored():
        for axis in types:
            unit(axis, 1)
    return steps


def choose(analysis: Analysis, keep: Sequence[str] = (), only: Sequence[str] = ()) -> Choices:
    """What may be pruned.

    Args:
        analysis: the analysed network.
        keep: patterns of module names to leave alone.
        only: patterns of module names to prune; all where empty.

    Raises:
        InputError: a pattern that no module matches.
        NothingToPruneError: nothing is left; the message says why.
    """
    names = [str(node.target) for node in analysis.graph.module.graph.nodes if node.op in ("call_module", "get_attr")]
    for pattern in [*keep, *only]:
        if not any(_matches(name, pattern) for name in names):
            msg = f"no module of the network matches {pattern!r}: see `mdp-fx inspect` for their names"
            raise InputError(msg)

    def open_to(modules: Sequence[str]) -> bool:
        if any(_matches(name, pattern) for name in modules for pattern in keep):
            return False
        return not only or all(any(_matches(name, pattern) for pattern in only) for name in modules)

    held = frozenset(group.name for group in analysis.groups if not open_to(_makers(group)))
    removable = [
        block
        for block in analysis.blocks.removable
        if open_to(_block_modules(analysis.graph, block)) and held.isdisjoint(block.empties)
    ]
    blocks = frozenset(block.name for block in removable)
    emptied = {name for block in removable for name in block.empties}
    steps = dimension_steps(analysis.graph, analysis.step)
    dimensions = tuple(
        Dimension(group.name, (0,) * (group.name in emptied) + option_sizes(group.size, steps[group.dim]))
        for group in analysis.groups
    )
    if not blocks and all(len(d.sizes) == 1 or d.name in held for d in dimensions):
        raise NothingToPruneError(_why_nothing(analysis, bool(keep or only)))
    return Choices(dimensions, held, blocks)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _makers(group: ChannelGroup) -> list[str]:
    """Modules that make the group's units, rather than read them: a norm's tensors have no other axis."""
    made = [owner(member.tensor) for member in group.members if member.axis == 0 and member.rank > 1]
    return list(dict.fromkeys(made)) or list(group.modules)


def _block_modules(graph: PruneGraph, block: ResidualBlock) -> list[str]:
    inside = set(block.nodes)
    return [str(n.target) for n in graph.module.graph.nodes if n.name in inside and n.op in ("call_module", "get_attr")]


def _why_nothing(analysis: Analysis, patterns: bool) -> str:
    if patterns:
        return "nothing is left to prune: --keep and --only exclude every channel group and block"
    if analysis.groups:
        largest = max(group.size for group in analysis.groups)
        offers = f"--step {analysis.step} offers no smaller size"
        return f"nothing to prune: the largest channel group has {largest} units, {offers}"
    frozen = find_frozen(analysis.graph)
    if not frozen:
        return "nothing to prune: the network has no layer with prunable channels"
    return f"nothing to prune: every channel is frozen, as {frozen[0].where} is ({frozen[0].reason})"
