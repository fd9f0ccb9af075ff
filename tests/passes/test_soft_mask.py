"""The masked dense network against the zeroed dense network and the sliced one, in both modes, and its gradients."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.graph.axis_sizes import kept_mask
from mdp_fx.passes.slice_channels import slice_tensor, unit_masks
from mdp_fx.passes.soft_mask import masked_network, summed_by_others
from mdp_fx.pipeline import analyse, rewrite
from tests.graph.random_networks import random_network
from tests.pruning import doubled, error, random_kept, random_removed, randomise, reference, tensors
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


def without_dropout(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    return module.train()


@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_the_masked_network_trains_as_the_sliced_one_would(specimen: Specimen) -> None:
    """In training mode, with hard masks: outputs, and the gradient of every entry that stays."""
    torch.manual_seed(0)
    model, wide = doubled(randomise(specimen.make()), specimen.inputs())
    analysis = analyse(model, wide)
    rng = np.random.default_rng(5)
    kept, removed = random_kept(analysis.groups, rng), random_removed(analysis.blocks, rng)
    units = unit_masks(analysis.groups, kept, analysis.blocks.emptied(removed))
    masked = masked_network(analysis.graph, analysis.blocks, soft=False)
    masked.set(units, removed)
    slim = without_dropout(rewrite(analysis, kept, removed))
    expected = slim(*wide)
    found = without_dropout(masked.module)(*wide)
    assert error(expected, found) <= FLOAT64_LIMIT
    for output in (expected, found):
        sum(each.square().sum() for each in tensors(output)).backward()  # type: ignore[union-attr]
    there = dict(slim.named_parameters())
    checked = 0
    for name, tensor, types in analysis.graph.stored():
        gradient = masked.tensor(name).grad if isinstance(tensor, nn.Parameter) else None
        if gradient is None or name not in there or there[name].grad is None:
            continue
        checked += 1
        assert error(there[name].grad, slice_tensor(gradient, types, units)) <= FLOAT64_LIMIT, name
        inside = torch.zeros_like(gradient)
        index = np.ix_(*(np.flatnonzero(kept_mask(axis, units)) for axis in types))
        inside[tuple(map(torch.from_numpy, index))] = 1
        assert not (gradient * (1 - inside)).any(), f"{name} has a gradient at what is masked"
    assert checked


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_a_copy_is_the_same_network(seed: int) -> None:
    network = random_network(seed)
    model, wide = doubled(randomise(network, seed), network.inputs(seed))
    analysis = analyse(model, wide)
    masked = masked_network(analysis.graph, analysis.blocks, soft=True)
    rng = np.random.default_rng(seed)
    kept, removed = random_kept(analysis.groups, rng), random_removed(analysis.blocks, rng)
    masked.set(unit_masks(analysis.groups, kept, analysis.blocks.emptied(removed)), removed)
    copied = copy.deepcopy(masked.module)
    other = masked_network(analysis.graph, analysis.blocks, soft=True).module
    other.load_state_dict(masked.module.state_dict())
    with torch.no_grad():
        expected = masked.module(*wide)
        assert error(expected, copied(*wide)) == 0
        assert error(expected, other(*wide)) == 0


def test_a_softly_masked_channel_learns_where_it_is_read_and_is_computed_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    analysis = analyse(model.eval(), (torch.randn(2, 3, 4, 4),))
    (group,) = analysis.groups
    masked = masked_network(analysis.graph, analysis.blocks, soft=True)
    masked.set({group.dim: np.array([True, False, True, False])}, ())
    masked.module(torch.randn(2, 3, 4, 4)).sum().backward()
    reading, making = masked.tensor("3.weight").grad, masked.tensor("0.weight").grad
    assert reading is not None
    assert making is not None
    assert reading[:, [1, 3]].abs().min() > 0
    assert not making[[1, 3]].any()
    # Neither its filter nor its norm is masked.
    assert "0.layer.weight" not in masked.module.state_dict()
    assert "3.masks.0.axis_1" in masked.module.state_dict()


def test_a_removed_block_passes_gradients_only_softly() -> None:
    for soft in (False, True):
        torch.manual_seed(0)
        specimen = next(each for each in ZOO if each.name == "plain_residual")
        model = randomise(specimen.make()).eval()
        analysis = analyse(model, specimen.inputs())
        masked = masked_network(analysis.graph, analysis.blocks, soft=soft)
        masked.set({}, ["one"])
        sum(each.sum() for each in tensors(masked.module(*specimen.inputs()))).backward()  # type: ignore[union-attr]
        name = next(name for name, _, _ in analysis.graph.stored() if name.startswith("one.second"))
        gradient = masked.tensor(name).grad
        assert gradient is not None
        assert bool(gradient.any()) == soft


class Attention(nn.Module):
    """Two heads of four over words, behind a layer norm, plus the input; then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 12), nn.LayerNorm(12)
        self.q, self.k, self.v, self.out = (nn.Linear(i, o) for i, o in ((12, 8), (12, 8), (12, 8), (8, 12)))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


def test_what_attention_sums_over_is_masked_everywhere() -> None:
    """Queries times keys has no weight that reads their size: there soft masks are as wide as hard ones."""
    torch.manual_seed(0)
    model, inputs = randomise(Attention()), (torch.randn(2, 5, 6),)
    analysis = analyse(model.eval(), inputs)
    summed = summed_by_others(analysis.graph)
    names = {group.name for group in analysis.groups if group.dim in summed}
    assert {group.size for group in analysis.groups if group.dim in summed} == {4}
    assert "q" in {name.partition("#")[0] for name in names}
    assert "embed" not in names
    for soft in (False, True):
        for seed in range(4):
            check(model, inputs, seed, soft)


def test_most_groups_of_most_networks_are_masked_where_they_are_read() -> None:
    shares = []
    for seed in range(20):
        network = random_network(seed)
        analysis = analyse(network.eval(), network.inputs(seed))
        dims = {group.dim for group in analysis.groups}
        if dims:
            shares.append(len(dims & summed_by_others(analysis.graph)) / len(dims))
    assert np.mean(shares) < 0.5
