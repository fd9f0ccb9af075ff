"""Pruning in steps, with new scores for each: HALP's cost model holds inputs at their size, so it sees one step far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import mdp_fx

AT_ONCE = 0.75
"""Share of the current latency that is asked for in one step."""


def prune_in_steps(
    dense: nn.Module,
    inputs: torch.Tensor,
    share: float,
    *,
    steps: bool,
    score: Callable[[nn.Module], mdp_fx.Scores],
    **options: Any,
) -> list[mdp_fx.PruneResult]:
    """Prunes to a share of the dense latency: at once, or in equal steps with new scores.

    Args:
        dense: left unchanged.
        inputs: that latency counts at.
        share: of the dense latency.
        steps: whether in steps.
        score: gives the scores of a network.
        options: of `mdp_fx.prune`.

    Returns:
        The result of every step, the last of which has the network.

    Raises:
        MdpFxError: a budget cannot be met.
    """
    count = math.ceil(math.log(share) / math.log(AT_ONCE)) if steps else 1
    results: list[mdp_fx.PruneResult] = []
    network, reached = dense, 1.0
    for number in range(1, count + 1):
        wanted = share ** (number / count)
        result = mdp_fx.prune(network, inputs, latency=wanted / reached, scores=score(network), **options)
        results.append(result)
        network, facts = result.module, result.report.latency
        reached *= facts.measured_ms / facts.dense_ms
    return results
