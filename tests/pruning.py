"""Random pruning of a network, and its comparison with the zeroed dense one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.graph.verify import Reference, check_types
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.residual_blocks import Blocks
from mdp_fx.passes.slice_channels import unit_masks
from mdp_fx.pipeline import analyse, rewrite

Norm = nn.modules.batchnorm._BatchNorm


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives norms and weights that start as zeros or ones random values: untouched they would let 0 = 0 pass."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, Norm):
            if module.running_mean is not None and module.running_var is not None:
                fill(module.running_mean, -0.3, 0.3)
                fill(module.running_var, 0.6, 1.5)
            if module.affine:
                fill(module.weight, 0.6, 1.4)
                fill(module.bias, -0.3, 0.3)
    for parameter in model.parameters():
        first = float(parameter.detach().flatten()[0]) if parameter.is_floating_point() and parameter.numel() else None
        if first is not None and bool((parameter == first).all()):
            fill(parameter, first - 0.3, first + 0.3)
    return model


def layer_macs(model: nn.Module, inputs: tuple[Any, ...]) -> list[int]:
    """Multiply-accumulates of every call of a convolution or linear layer, by hooks that look at real outputs."""
    found: list[int] = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        found.append(weight.numel() * out.numel() // out.shape[1 if isinstance(layer, nn.Conv2d) else -1])

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return found


def random_kept(groups: Sequence[ChannelGroup], rng: np.random.Generator, share: float = 0.5) -> dict[str, list[int]]:
    """Random units of every group, at least one: each group draws its own share, a half of `share` to all of it.

    Groups of one size must come apart: where they should have been coupled, equal shares would hide it.
    """
    counts = [max(1, round(rng.uniform(share / 2, share) * group.size)) for group in groups]
    if share < 1 and all(count == group.size for count, group in zip(counts, groups, strict=True)):
        # Groups of one or two units, of which something must go.
        counts = [1] * len(counts)
    return {group.name: random_units(group, count, rng) for group, count in zip(groups, counts, strict=True)}


def random_units(group: ChannelGroup, count: int, rng: np.random.Generator) -> list[int]:
    """So many units of a group, sorted."""
    return sorted(int(unit) for unit in rng.choice(group.size, count, replace=False))


def random_removed(blocks: Blocks, rng: np.random.Generator, share: float = 0.5) -> list[str]:
    """Random removable blocks, never all operands of one addition."""
    removed = [block.name for block in blocks.removable if rng.random() < share]
    for together in blocks.exclusive:
        if set(together) <= set(removed):
            removed.remove(str(rng.choice(together)))
    return removed


def flows(blocks: Blocks, removed: Iterable[str]) -> dict[str, str]:
    """Which operand each addition passes on when blocks are removed."""
    names = set(removed)
    return {b.join: b.kept for b in blocks.removable if b.name in names and b.kept is not None}


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def reference(analysis: Analysis, kept: Mapping[str, Sequence[int]], removed: Iterable[str]) -> Reference:
    """The dense network with all that was dropped set to zero, built without the rewriter."""
    removed = tuple(removed)
    masks = unit_masks(analysis.groups, kept, analysis.blocks.emptied(removed))
    return Reference(analysis.graph, masks, flows(analysis.blocks, removed))


def joined(parts: Sequence[Any]) -> list[Tensor]:
    """Outputs of several batches as those of one."""
    return [torch.cat(values) for values in zip(*map(tensors, parts), strict=True)]


def error(expected: Any, actual: Any) -> float:
    """Largest absolute difference, over the largest value where that is above one."""
    pairs = list(zip(tensors(expected), tensors(actual), strict=True))
    assert pairs
    worst = 0.0
    for one, other in pairs:
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
        assert torch.isfinite(other).all()
        scale = max(1.0, float(one.detach().abs().max()))
        worst = max(worst, float((one - other).detach().abs().max()) / scale)
    return worst


Pruned: TypeAlias = tuple[Analysis, fx.GraphModule, Reference, list[str]]
"""(analysis, slim network, reference, removed blocks)."""


def prune_randomly(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    seed: int,
    share: float = 0.5,
    *,
    block_share: float = 0.5,
    front_end: Choice = "auto",
) -> Pruned:
    """Analyses a network, prunes it at random, and builds the reference."""
    rng = np.random.default_rng(seed)
    analysis = analyse(model, inputs, front_end=front_end)
    check_types(analysis.graph)
    kept = random_kept(analysis.groups, rng, share)
    removed = random_removed(analysis.blocks, rng, block_share)
    return analysis, rewrite(analysis, kept, removed), reference(analysis, kept, removed), removed


def parity_error(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    seed: int,
    share: float = 0.5,
    *,
    front_end: Choice = "auto",
    fixed_batch: bool = False,
) -> float:
    """Prunes a network at random: the float64 difference to its reference; see `pruned_error`."""
    model, wide = doubled(model, inputs)
    pruned = prune_randomly(model, wide, seed, share, front_end=front_end)
    return pruned_error(model, wide, pruned, fixed_batch=fixed_batch)


def doubled(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in eval mode and its inputs, in float64; whole numbers stay what they are."""
    wide = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    return copy.deepcopy(model).double().eval(), wide


def others_like(value: Tensor) -> Tensor:
    """Other examples of the same kind."""
    return value.flip(0) + 0.5 if value.is_floating_point() else value.flip(0, 1)


def pruned_error(model: nn.Module, wide: tuple[Tensor, ...], pruned: Pruned, *, fixed_batch: bool = False) -> float:
    """The difference of a pruned network to its reference, on another batch than the traced one.

    With `fixed_batch` the network may tie the batch to a constant, and is compared on the traced one then.

    The original's own output must equal the trace's, and a pruned network's must be something else and not all zero.
    """
    analysis, slim, zeroed, removed = pruned
    # The trace bakes its batch in, the slim network must not: the reference reads twice as many rows in two parts.
    parts = [wide, tuple(map(others_like, wide))]
    if fixed_batch and analysis.graph.batch is None:
        parts = parts[:1]
    whole = tuple(torch.cat(values) for values in zip(*parts, strict=True))
    with torch.no_grad():
        for part in parts:
            assert error(model(*part), analysis.graph.module(*part)) <= 1e-12, "the trace is another network"
        expected = joined([zeroed.run(*part) for part in parts])
        dense, actual = model(*whole), slim(*whole)
    # One of several outputs may be zero: a layer norm over a single kept unit is.
    assert any(bool(value.count_nonzero()) for value in tensors(actual))
    if removed or any(group.size > 1 for group in analysis.groups):
        assert error(dense, actual) > 1e-9, "pruning changed nothing"
    return error(expected, actual)
