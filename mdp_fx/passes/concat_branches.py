"""Branches of concatenations that may go with all their units: the other operands are what is left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from mdp_fx.graph.axes import Axis, Dim, free_dims
from mdp_fx.graph.axis_sizes import kept_size, size_terms
from mdp_fx.graph.ops.op import tensor_types
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.readers import readers_of
from mdp_fx.graph.tracer import DTYPE, SHAPE
from mdp_fx.passes.branches import Branch, Flow
from mdp_fx.passes.channel_groups import ChannelGroup

CONCATENATIONS: tuple[Callable[..., Any], ...] = (torch.cat, torch.concat, torch.concatenate)

MOST_SETS = 256
"""Ways to empty one axis that are told apart; where there are more, something in it stays for good."""

Exclusive = list[frozenset[Branch]]


def joined_by(concatenation: fx.Node) -> list[fx.Node]:
    """What a concatenation joins, where its list is written out."""
    listed = concatenation.args[0] if concatenation.args else concatenation.kwargs.get("tensors")
    parts = listed if isinstance(listed, list | tuple) else ()
    return [part for part in parts if isinstance(part, fx.Node)]


def find_concat_branches(
    graph: PruneGraph, groups: Sequence[ChannelGroup], flow: Flow
) -> tuple[list[Branch], Exclusive]:
    """Finds operands of concatenations that may go with all units that they have where they are joined.

    Args:
        graph: the typed network.
        groups: its channel groups.
        flow: what flows where in it.

    Returns:
        The branches, and the sets of them of which one must stay: together they would leave an axis without entries.
    """
    branches = list(_candidates(graph, flow))
    if not branches:
        return [], []
    places = _places(graph, flow)
    known = {group.dim for group in groups}
    branches = [
        branch if branch.reason else replace(branch, reason=_why_not_empty(branch, places, known))
        for branch in branches
    ]
    _keep_shared_units(branches)
    while True:
        exclusive, crowded = _exclusive([branch for branch in branches if branch.reason is None], places)
        if not crowded:
            return branches, exclusive
        reason = "too many other branches share an axis with it"
        branches = [replace(branch, reason=reason) if branch in crowded else branch for branch in branches]


def _candidates(graph: PruneGraph, flow: Flow) -> Iterator[Branch]:
    for join in flow.order:
        parts = joined_by(join) if join.target in CONCATENATIONS else []
        for operand in parts:
            region = flow.region(operand, join) if parts.count(operand) == 1 else frozenset()
            axis = _joined_axis(graph, operand, join) if region else None
            if axis is None or not free_dims(axis):
                continue
            rest = [part for part in parts if part is not operand]
            reason = flow.why_not(join, operand, rest, region)
            if reason is None and any(part.meta[DTYPE] != join.meta[DTYPE] for part in parts):
                reason = "what it is joined with has another number type"
            elif reason is None and kept_size(axis, lambda dim: dim.size if dim.rigid else 0):
                reason = "some of its units are frozen"
            yield Branch(join, operand, region, None, tuple(free_dims(axis)), reason)


def _joined_axis(graph: PruneGraph, operand: fx.Node, join: fx.Node) -> Axis | None:
    """The axis of an operand at which it is joined: there the result has more entries."""
    sizes = zip(graph.types[operand.name], operand.meta[SHAPE], join.meta[SHAPE], strict=False)
    return next((axis for axis, own, joined in sizes if own != joined), None)


# What would be left without entries -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """An axis, and the nodes that it needs: it is gone when all of them are.

    Attributes:
        axis: its type.
        nodes: the node whose value has it, or all that read the stored tensor that has it.
        name: of that value or tensor.
    """

    axis: Axis
    nodes: frozenset[fx.Node]
    name: str


Places = dict[Dim, list[_Place]]


def _places(graph: PruneGraph, flow: Flow) -> Places:
    """Every axis of the network by the dimensions that it mentions."""
    found: Places = {}
    for node in flow.order:
        own = frozenset((node,))
        for axis in (axis for types in tensor_types(graph.types.get(node.name)) for axis in types):
            for dim in free_dims(axis):
                found.setdefault(dim, []).append(_Place(axis, own, node.name))
    readers = readers_of(graph.module)
    for name, tensor, types in graph.stored():
        for axis in types:
            for dim in free_dims(axis):
                found.setdefault(dim, []).append(_Place(axis, frozenset(readers.get(id(tensor), ())), name))
    return found


def _why_not_empty(branch: Branch, places: Places, known: Collection[Dim]) -> str | None:
    """Why the units of a branch cannot all go, None where they can."""
    empty = set(branch.empties)
    if not empty.issubset(known):
        return "no weight holds its units"
    for dim in branch.empties:
        for place in places[dim]:
            if not place.nodes <= branch.region and not kept_size(place.axis, lambda d: 0 if d in empty else d.size):
                return f"nothing would be left of {place.name} without its units"
    return None


def _keep_shared_units(branches: list[Branch]) -> None:
    """Of branches side by side that have units in common only the first may go: a unit is dropped for one reason."""
    for i, branch in enumerate(branches):
        for other in branches[:i]:
            apart = branch.region.isdisjoint(other.region)
            if branch.reason is None and other.reason is None and apart and set(branch.empties) & set(other.empties):
                branches[i] = replace(branch, reason=f"it has units in common with {other.operand.name}")
                break


def _exclusive(branches: Sequence[Branch], places: Places) -> tuple[Exclusive, frozenset[Branch]]:
    """The smallest sets of branches that leave an axis without entries which all of them together do not remove.

    Returns:
        The sets; and branches that must stay because there are too many such sets.
    """
    by_dim: dict[Dim, list[Branch]] = {}
    for branch in branches:
        for dim in branch.empties:
            by_dim.setdefault(dim, []).append(branch)
    wanted: set[frozenset[frozenset[Branch]]] = set()
    for place in dict.fromkeys(place for dim in by_dim for place in places[dim]):
        constant, terms = size_terms(place.axis)
        parts = {
            frozenset(b for dim in dims for b in by_dim.get(dim, ()) if not place.nodes <= b.region)
            for _, dims in terms
        }
        if not constant and frozenset() not in parts:
            wanted.add(frozenset(parts))
    found: Exclusive = []
    for needed in sorted(wanted, key=len):
        sets = _hitting(needed, found)
        if sets is None:
            return [], min(needed, key=len)
        found = _smallest([*found, *sets])
    order = {branch: i for i, branch in enumerate(branches)}
    return sorted(found, key=lambda members: sorted(order[branch] for branch in members)), frozenset()


def _hitting(parts: Iterable[frozenset[Branch]], found: Exclusive) -> Exclusive | None:
    """The smallest sets that have a branch of every part, without those that hold a set found before."""
    sets: Exclusive = [frozenset()]
    for part in sorted(parts, key=len):
        grown = {one if one & part else one | {branch} for one in sets for branch in part}
        sets = _smallest(one for one in grown if not _nested(one) and not any(known <= one for known in found))
        if len(sets) > MOST_SETS:
            return None
    return sets


def _nested(branches: frozenset[Branch]) -> bool:
    """Whether one of the branches takes the place with it at which another one is joined."""
    return any(branch.join in other.region for branch in branches for other in branches)


def _smallest(sets: Iterable[frozenset[Branch]]) -> Exclusive:
    """The sets that hold no other."""
    unique = list(dict.fromkeys(sets))
    return [one for one in unique if not any(other < one for other in unique)]
