"""Our passes and Torch-Pruning's, timed on the same network: both halve every channel group."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mdp_fx.passes.base import Compilation, run_passes, silent
from mdp_fx.passes.channel_groups import ChannelGroup, FindChannelGroups
from mdp_fx.passes.residual_blocks import FindResidualBlocks
from mdp_fx.pipeline import FRONT_END, REWRITES, Stopwatch

Halve = Callable[[Sequence[ChannelGroup]], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Run:
    """One pruning of a network.

    Attributes:
        network: the pruned network.
        seconds: the whole run.
        passes: seconds of every pass by its name, where there are passes.
    """

    network: nn.Module
    seconds: float
    passes: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Parameters that are left."""
        return count(self.network)


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def first_half(groups: Sequence[ChannelGroup]) -> dict[str, list[int]]:
    """The first half of every group's units."""
    return {group.name: list(range(max(1, group.size // 2))) for group in groups}


def ours(model: nn.Module, inputs: tuple[Any, ...], halve: Halve = first_half) -> Run:
    """Trace, normalise, types, groups, blocks and rewrite."""
    watch = Stopwatch(silent)
    begin = time.perf_counter()
    passes = (*FRONT_END, FindChannelGroups(), FindResidualBlocks())
    state = run_passes(passes, Compilation(model, inputs), stage=watch)
    assert state.groups is not None
    slim = run_passes(REWRITES, replace(state, kept=halve(state.groups), removed_blocks=()), stage=watch).slim
    assert slim is not None
    watch("")
    return Run(slim, time.perf_counter() - begin, watch.seconds)


def theirs(model: nn.Module, inputs: tuple[Any, ...], classifiers: Collection[str] = ()) -> Run:
    """Torch-Pruning's build and step.

    Args:
        model: the dense network, left unchanged.
        inputs: positional arguments of its forward.
        classifiers: names of the layers that make the network's outputs; the last linear layer where none is known.
    """
    model = copy.deepcopy(model)
    ignored = [module for name, module in model.named_modules() if name in classifiers]
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=ignored or [module for module in model.modules() if isinstance(module, nn.Linear)][-1:],
            output_transform=_differentiable,
        )
        pruner.step()
    return Run(model, time.perf_counter() - begin)


def _differentiable(outputs: Any) -> list[Tensor]:
    """The outputs from which Torch-Pruning can walk back, whatever they are nested in."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
