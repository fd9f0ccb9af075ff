"""Channel groups: the dimensions that type inference leaves free, and everything that mentions them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mdp_fx.graph.axes import Dim, IntArray, free_dims
from mdp_fx.graph.axis_sizes import occurrences
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.unify import frozen_reasons
from mdp_fx.passes.base import Compilation, Pass, PassResult


@dataclass(frozen=True)
class Member:
    """One mention of a group in a parameter or buffer.

    Attributes:
        tensor: its name in the network.
        axis: the axis of that tensor.
        units: the group's unit that each entry of the axis belongs to, or -1; shape (entries,).
        rank: number of axes of that tensor.
    """

    tensor: str
    axis: int
    units: IntArray
    rank: int


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels: a free dimension whose units are kept or removed everywhere at once.

    Attributes:
        name: the module that first produces it, made unique by a suffix.
        dim: the dimension.
        members: all its mentions.
    """

    name: str
    dim: Dim
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Units in the dense network."""
        return self.dim.size

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that mention it, in order."""
        return tuple(dict.fromkeys(owner(member.tensor) for member in self.members))


@dataclass(frozen=True)
class FrozenAxis:
    """A part of a stored tensor that cannot be pruned, and why."""

    where: str
    size: int
    reason: str


def owner(tensor: str) -> str:
    """The module that holds a tensor: "layer1.0.conv1" for "layer1.0.conv1.weight"."""
    return tensor.rpartition(".")[0] or tensor


def find_channel_groups(graph: PruneGraph) -> tuple[ChannelGroup, ...]:
    """Returns the channel groups of a typed graph, in the order in which the network stores them."""
    members: dict[Dim, list[Member]] = {}
    for name, _, types in graph.stored():
        for i, axis in enumerate(types):
            for dim, units in occurrences(axis):
                if not dim.rigid:
                    members.setdefault(dim, []).append(Member(name, i, units, len(types)))
    groups: list[ChannelGroup] = []
    used: dict[str, int] = {}
    for dim, mentions in members.items():
        producer = next((member for member in mentions if member.axis == 0), mentions[0])
        name = owner(producer.tensor)
        used[name] = used.get(name, 0) + 1
        suffix = f"#{used[name]}" if used[name] > 1 else ""
        groups.append(ChannelGroup(name + suffix, dim, tuple(mentions)))
    return tuple(groups)


def find_frozen(graph: PruneGraph) -> tuple[FrozenAxis, ...]:
    """Returns the out axes that are frozen, wholly or in part, each with its first reason."""
    rows: list[FrozenAxis] = []
    for name, _, types in graph.stored():
        if len(types) < 2 or types[0].size == 1:
            continue
        for size, reason in frozen_reasons(types[0]):
            rows.append(FrozenAxis(owner(name), size, reason))
    return tuple(rows)


class FindChannelGroups(Pass):
    """Collects the dimensions that stayed free."""

    requires = ("graph",)
    ensures = ("groups",)

    def call(self, state: Compilation) -> PassResult:
        """Reads the types."""
        assert state.graph is not None
        return PassResult(replace(state, groups=find_channel_groups(state.graph)))

    def verify(self, state: Compilation) -> None:
        """The groups are closed: whatever stored tensor mentions a free dimension is a member of its group."""
        assert state.graph is not None
        assert state.groups is not None
        named = [group.name for group in state.groups]
        assert len(set(named)) == len(named), f"groups share names: {named}"
        members = {(group.dim, member.tensor, member.axis) for group in state.groups for member in group.members}
        for name, _, types in state.graph.stored():
            for i, axis in enumerate(types):
                for dim in free_dims(axis):
                    assert (dim, name, i) in members, f"axis {i} of {name} mentions {dim!r} and is in no group"
