"""The masked dense network against the zeroed dense network and the sliced one, in both modes, and its gradients."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.passes.slice_channels import unit_masks
from mdp_fx.passes.soft_mask import masked_network
from mdp_fx.pipeline import analyse, rewrite
from tests.graph.random_networks import random_network
from tests.pruning import doubled, error, random_kept, random_removed, randomise, reference
from tests.zoo import ZOO, Specimen

SEEDS = range(int(os.environ.get("MDP_FX_SEEDS", "40")))
FLOAT64_LIMIT = 1e-9


def masked_errors(model: nn.Module, inputs: tuple[Tensor, ...], seed: int, *, soft: bool) -> tuple[float, float]:
    """Differences of a randomly masked network to the zeroed dense one and to the sliced one."""
    model, wide = doubled(model, inputs)
    analysis = analyse(model, wide)
    rng = np.random.default_rng(seed)
    kept, removed = random_kept(analysis.groups, rng), random_removed(analysis.blocks, rng)
    masked = masked_network(analysis.graph, analysis.blocks, soft=soft)
    with torch.no_grad():
        assert error(analysis.graph.module(*wide), masked.module(*wide)) <= 1e-12, "open masks change nothing"
        masked.set(unit_masks(analysis.groups, kept, analysis.blocks.emptied(removed)), removed)
        found = masked.module(*wide)
        return (
            error(reference(analysis, kept, removed).run(*wide), found),
            error(rewrite(analysis, kept, removed)(*wide), found),
        )


def check(model: nn.Module, inputs: tuple[Tensor, ...], seed: int, soft: bool) -> None:
    zeroed, sliced = masked_errors(model, inputs, seed, soft=soft)
    assert zeroed <= FLOAT64_LIMIT
    assert sliced <= FLOAT64_LIMIT


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_masked_is_sliced_on_the_zoo(specimen: Specimen, soft: bool) -> None:
    torch.manual_seed(0)
    model = randomise(specimen.make())
    for seed in range(3):
        check(model, specimen.inputs(), seed, soft)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_masked_is_sliced_on_random_networks(seed: int, soft: bool) -> None:
    network = random_network(seed)
    check(randomise(network, seed), network.inputs(seed), seed, soft)
