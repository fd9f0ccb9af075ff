"""Pruning in steps, for methods whose cost model cannot see far: HALP's holds every layer's inputs at their size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import mdp_fx

ONE_SIDED = ("halp", "mgp")
"""Methods that price a layer by its own channels alone: what its inputs save is seen in the next step only."""

AT_ONCE = 0.75
"""Share of the current latency that such a method is asked for in one step."""


def prune_in_steps(
    dense: nn.Module,
    inputs: torch.Tensor,
    share: float,
    *,
    method: str,
    score: Callable[[nn.Module], mdp_fx.Scores],
    **options: Any,
) -> list[mdp_fx.PruneResult]:
    """Prunes to a share of the dense latency: at once, or in equal steps with new scores where the method needs them.

    Returns:
        The result of every step, the last of which has the network.

    Raises:
        MdpFxError: a budget cannot be met.
    """
    count = math.ceil(math.log(share) / math.log(AT_ONCE)) if method in ONE_SIDED else 1
    results: list[mdp_fx.PruneResult] = []
    network, reached = dense, 1.0
    for number in range(1, count + 1):
        wanted = share ** (number / count)
        result = mdp_fx.prune(
            network, inputs, latency=wanted / reached, method=method, scores=score(network), **options
        )
        results.append(result)
        network, facts = result.module, result.report.latency
        reached *= facts.measured_ms / facts.dense_ms
    return results
