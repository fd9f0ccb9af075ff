"""Slices the kept units out of every parameter and buffer, and writes the sizes in the graph again."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn

from mdp_fx.errors import RecipeError
from mdp_fx.graph.axes import BoolArray, Dim, TensorType
from mdp_fx.graph.axis_sizes import kept_mask, kept_size
from mdp_fx.graph.copies import copy_stored
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.emission import SizeOf, emit_sizes


def unit_masks(
    groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]], emptied: Collection[str] = ()
) -> dict[Dim, BoolArray]:
    """Turns kept indices by group name into masks by dimension.

    Args:
        groups: the channel groups.
        kept: indices of the units that stay; groups that are missing keep all.
        emptied: names of groups that keep nothing, whatever `kept` says: a block that is removed takes all they have.

    Raises:
        RecipeError: an unknown group, an index outside of a group, or a group with nothing kept that is not `emptied`.
    """
    by_name = {group.name: group for group in groups}
    masks: dict[Dim, BoolArray] = {}
    for name, indices in kept.items():
        group = by_name.get(name)
        if group is None:
            msg = f"the network has no channel group {name!r}: the recipe belongs to another model"
            raise RecipeError(msg)
        mask = np.zeros(group.size, dtype=bool)
        if len(indices) == 0 and name in emptied:
            continue
        if len(indices) == 0 or min(indices) < 0 or max(indices) >= group.size:
            msg = f"kept indices of group {name!r} must be some of 0..{group.size - 1}"
            raise RecipeError(msg)
        mask[list(indices)] = True
        masks[group.dim] = mask
    return masks | {by_name[name].dim: np.zeros(by_name[name].size, dtype=bool) for name in emptied}


def slice_channels(graph: PruneGraph, masks: Mapping[Dim, BoolArray]) -> fx.GraphModule:
    """Returns a copy of the network that holds the kept units only; `graph` is left unchanged.

    Args:
        graph: the typed dense network.
        masks: units that each dimension keeps; dimensions that are missing keep all.
    """
    memo: dict[int, object] = {}
    for _, tensor, types in graph.stored():
        sliced = slice_tensor(tensor, types, masks)
        if id(tensor) in graph.pointers:
            # Positions among the kept entries.
            kept = torch.from_numpy(kept_mask(graph.pointers[id(tensor)], masks)).to(tensor.device)
            sliced = (kept.cumsum(0) - 1)[sliced]
        memo[id(tensor)] = (
            nn.Parameter(sliced, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced
        )
    return _written(graph, memo, lambda dim: int(masks[dim].sum()) if dim in masks else dim.size)


def dense_network(graph: PruneGraph) -> fx.GraphModule:
    """The network with its sizes written from types, and nothing dropped: it has the graph's own parameters."""
    return _written(graph, {id(tensor): tensor for tensor in graph.module.parameters()}, lambda dim: dim.size)


def _written(graph: PruneGraph, memo: dict[int, object], size_of: SizeOf) -> fx.GraphModule:
    """A copy of the network at the sizes of its dimensions; `memo` has the tensors that take the place of its own."""
    nodes = copy.deepcopy(graph.module.graph)
    stored = copy_stored(graph.module, nodes, memo)
    emit_sizes(nodes, stored, graph.emissions, size_of, graph.batch_source)
    nodes.lint()
    return fx.GraphModule(stored, nodes, type(graph.module).__name__).train(graph.module.training)


def slice_tensor(tensor: torch.Tensor, types: TensorType, masks: Mapping[Dim, BoolArray]) -> torch.Tensor:
    """A copy of the entries of `tensor` whose units are all kept."""
    result = tensor.detach()
    for i, axis in enumerate(types):
        mask = kept_mask(axis, masks)
        if not mask.all():
            result = result.index_select(i, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device))
    return result.clone() if result.data_ptr() == tensor.data_ptr() else result


class SliceChannels(Pass):
    """Slices the kept units out of a copy of the network."""

    requires = ("graph", "groups", "blocks", "kept", "removed_blocks")
    ensures = ("slim",)
    rewrites = True

    def call(self, state: Compilation) -> PassResult:
        """Makes the slim network; one that is there already holds the kept units only."""
        assert state.graph is not None
        if state.slim is not None:
            return PassResult(state)
        masks = _masks(state)
        slim = slice_channels(state.graph, masks)
        return PassResult(replace(state, slim=slim), modified=not all(mask.all() for mask in masks.values()))

    def verify(self, state: Compilation) -> None:
        """Every stored tensor has the shape that its type says."""
        assert state.graph is not None
        assert state.slim is not None
        kept = {dim: int(mask.sum()) for dim, mask in _masks(state).items()}
        stored = dict(state.slim.named_parameters()) | dict(state.slim.named_buffers())
        for name, _, types in state.graph.stored():
            shape = [kept_size(axis, lambda dim: kept.get(dim, dim.size)) for axis in types]
            assert name not in stored or list(stored[name].shape) == shape, f"{name} should have shape {shape}"


def _masks(state: Compilation) -> dict[Dim, BoolArray]:
    assert state.groups is not None
    assert state.blocks is not None
    assert state.kept is not None
    assert state.removed_blocks is not None
    return unit_masks(state.groups, state.kept, state.blocks.emptied(state.removed_blocks))
