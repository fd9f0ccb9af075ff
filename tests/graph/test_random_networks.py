"""Laws on random networks. MDP_FX_SEEDS sets how many; a failing seed is a network that can be made again by itself."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pytest
import torch

from mdp_fx.graph.axes import Axis
from mdp_fx.graph.axis_sizes import kept_mask, kept_size, size_terms
from mdp_fx.graph.ops.op import Inference, tensor_types
from mdp_fx.graph.ops.registry import infer_node
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.graph.unify import freeze
from mdp_fx.passes.channel_groups import find_channel_groups
from mdp_fx.passes.choices import Analysis
from mdp_fx.pipeline import analyse
from tests.graph.random_networks import random_network
from tests.pruning import parity_error, randomise

SEEDS = range(int(os.environ.get("MDP_FX_SEEDS", "200")))
FLOAT64_LIMIT = 1e-9


def analysed(seed: int) -> Analysis:
    network = random_network(seed)
    return analyse(network.eval(), network.inputs(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_pruned_at_random_it_equals_the_zeroed_dense_network(seed: int) -> None:
    network = random_network(seed)
    share = (0.5, 0.25, 0.8)[seed % 3]
    error = parity_error(randomise(network, seed), network.inputs(seed), seed, share, fixed_batch=network.fixes_batch)
    assert error <= FLOAT64_LIMIT, "\n".join(network.log)


def found(graph: PruneGraph) -> list[Any]:
    """All that the types say of the stored tensors."""
    return [
        (group.name, group.size, [(m.tensor, m.axis, m.units.tolist()) for m in group.members])
        for group in find_channel_groups(graph)
    ]


def infer_again(graph: PruneGraph) -> None:
    """Visits every node a second time, with what the first visit found."""
    state = Inference(graph.module, graph.types, graph.tensors, graph.emissions)
    for node in graph.module.graph.nodes:
        if node.op not in ("placeholder", "output"):
            infer_node(node, state)
    for node in graph.module.graph.find_nodes(op="output"):
        for leaf in node.all_input_nodes:
            for tensor in tensor_types(graph.types[leaf.name]):
                for axis in tensor:
                    freeze(axis, "output of the network")


@pytest.mark.parametrize("seed", SEEDS)
def test_visiting_every_node_twice_changes_nothing(seed: int) -> None:
    graph = analysed(seed).graph
    before = copy.deepcopy(found(graph))
    infer_again(graph)
    assert found(graph) == before


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_types_evaluate_alike_as_masks_sizes_and_polynomials(seed: int) -> None:
    rng = np.random.default_rng(seed)
    analysis = analysed(seed)
    masks = {group.dim: rng.random(group.size) < 0.6 for group in analysis.groups}
    counts = {dim: int(mask.sum()) for dim, mask in masks.items()}
    axes: list[Axis] = [axis for _, _, types in analysis.graph.stored() for axis in types]
    assert axes
    for axis in axes:
        size = int(kept_mask(axis, masks).sum())
        constant_part, terms = size_terms(axis)
        polynomial = constant_part
        for coefficient, dims in terms:
            polynomial += coefficient * int(np.prod([counts.get(dim, dim.size) for dim in dims]))
        assert size == kept_size(axis, lambda dim: counts.get(dim, dim.size)) == polynomial


def test_a_seed_makes_the_same_network_again() -> None:
    one, other = random_network(7), random_network(7)
    assert one.log == other.log
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_most_random_networks_have_something_to_prune() -> None:
    groups = [len(analysed(seed).groups) for seed in range(20)]
    assert np.mean([count > 1 for count in groups]) >= 0.8
