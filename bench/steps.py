"""Pruning in steps with new scores for each, without training between.

Gradients say little about a network at its optimum, and more once some of it is gone; and HALP's cost model, which
holds every layer's inputs at their size, does not see further than a step. `mdp_fx.prune_in_steps` predicts between
steps, and takes no detectors; here every step is measured, which HALP needs to get further, and detectors are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import mdp_fx

ENOUGH = 0.98
"""Of the latency that is reached: what is hardly less is no step."""


def steps_to(share: float, each: float) -> int:
    """Equal steps to a share of the latency, none of which asks for less than `each` of what is there."""
    return math.ceil(math.log(share) / math.log(each))


def prune_in_steps(
    dense: nn.Module,
    inputs: torch.Tensor,
    share: float,
    *,
    steps: int,
    score: Callable[[nn.Module], mdp_fx.Scores],
    **options: Any,
) -> list[mdp_fx.PruneResult]:
    """Prunes to a share of the dense latency, by an equal factor in every step.

    Args:
        dense: left unchanged.
        inputs: that latency counts at.
        share: of the dense latency.
        steps: how many, see `steps_to`.
        score: gives the scores of a network.
        options: of `mdp_fx.prune`.

    Returns:
        The result of every step, the last of which has the network.

    Raises:
        MdpFxError: a budget cannot be met.
    """
    results: list[mdp_fx.PruneResult] = []
    network, reached = dense, 1.0
    for number in range(steps):
        wanted = share ** ((number + 1) / steps)
        if results and wanted > ENOUGH * reached:
            continue  # The step before went further than it was asked to.
        result = mdp_fx.prune(network, inputs, latency=wanted / reached, scores=score(network), **options)
        results.append(result)
        network, facts = result.module, result.report.latency
        reached *= facts.measured_ms / facts.dense_ms
    return results
