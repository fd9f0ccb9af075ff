"""Every way to prune a network to a share of its measured latency."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

import mdp_fx
from mdp_fx.errors import MdpFxError

OURS = ("mdp", "mgp", "mdlm", "halp", "uniform")
RANDOM = "random"
"""mdp by random importance."""

THEIRS = ("group-l2", "taylor", "isomorphic")
"""Torch-Pruning, one global ratio bisected to the latency."""

SCHEDULED = {"mdp-30": "hard", "mdp-30-soft": "soft"}
"""mdp in 30 steps while it is trained, by kind of mask."""

STEPS = 30
METHODS = (*OURS, RANDOM, *THEIRS, *SCHEDULED)
THREADS = 1
_BISECTIONS = 8
_NEAR = 0.01
"""A share of the dense latency that is this near to the one asked for, and below it, is near enough."""

_HIGHEST = 0.97

Batches = Iterable[tuple[Tensor, Tensor]]


def latency_share(dense: nn.Module, slim: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """The latency of a network beside the dense one's, timed in turn on ONNX Runtime's CPU provider, one thread."""
    first, second = mdp_fx.bench({"dense": dense, "slim": slim}, inputs, threads=THREADS)
    return {"share": second.ratio, "interval": second.interval, "dense_ms": first.median_ms, "ms": second.median_ms}


def prune(method: str, dense: nn.Module, inputs: Tensor, share: float, batches: Batches, step: int) -> nn.Module:
    """A pruned network that takes `share` of the dense latency.

    Args:
        method: one of `OURS`, `RANDOM` and `THEIRS`.
        dense: the trained network, on the CPU; left unchanged.
        inputs: of the batch that latency counts at.
        share: of the dense latency.
        batches: of (inputs, labels) on the CPU, for importance.
        step: channel step.
    """
    if method in THEIRS:
        return _bisected(method, dense, inputs, share, list(batches), step)
    random = method == RANDOM
    result = mdp_fx.prune(
        dense,
        inputs,
        latency=share,
        threads=THREADS,
        method="mdp" if random else method,
        importance="random" if random else "taylor",
        data=None if random else batches,
        step=step,
    )
    return result.module


def _bisected(
    method: str, dense: nn.Module, inputs: Tensor, share: float, batches: list[tuple[Tensor, Tensor]], step: int
) -> nn.Module:
    """Torch-Pruning's network of the largest latency that was found at or below the one asked for."""
    low, high = 0.0, _HIGHEST
    found: tuple[float, nn.Module] | None = None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        network = _torch_pruning(method, dense, inputs, ratio, batches, step)
        now = latency_share(dense, network, inputs)["share"]
        if now > share:
            low = ratio
            continue
        high = ratio
        if found is None or now > found[0]:
            found = now, network
        if share - now < _NEAR:
            break
    if found is None:
        msg = f"no ratio below {_HIGHEST} takes {share:.0%} of the latency"
        raise MdpFxError(msg)
    return found[1]


def _torch_pruning(
    method: str, dense: nn.Module, inputs: Tensor, ratio: float, batches: list[tuple[Tensor, Tensor]], step: int
) -> nn.Module:
    """One ratio over all groups (group-l2, taylor), or over those of the same form (isomorphic, arXiv 2407.04616)."""
    network = copy.deepcopy(dense).eval()
    importance: Any = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    if method != "group-l2":
        importance = torch_pruning.importance.GroupTaylorImportance()
        for images, labels in batches:
            torch.autograd.backward(F.cross_entropy(network(images), labels) / len(batches))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            network,
            inputs,
            importance=importance,
            pruning_ratio=ratio,
            global_pruning=True,
            isomorphic=method == "isomorphic",
            round_to=step,
            ignored_layers=[module for module in network.modules() if isinstance(module, nn.Linear)][-1:],
        )
        pruner.step()
    network.zero_grad(set_to_none=True)
    return network


def faults(work: Callable[[], nn.Module]) -> tuple[nn.Module | None, str | None]:
    """What `work` gives, or why it gives nothing: a method that cannot is a result too."""
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - of the other library, whatever it is
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
