"""Every way to prune a network to a share of its measured latency."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

import mdp_fx
from bench.common import MET
from bench.resnet_cifar import convolve_shortcuts, select_shortcuts
from bench.steps import prune_in_steps, steps_to
from mdp_fx.errors import MdpFxError

OURS = ("mdp", "mgp", "mdlm", "halp", "uniform")
RANDOM = "random"
"""mdp by random importance."""

IN_STEPS = {"halp": ("halp", 0.9), "mdp-steps": ("mdp", 0.75)}
"""Pruned in steps, see bench/steps.py: method, and the least share of the latency that a step asks for. HALP's cost
model holds inputs: its smallest network takes 0.85 of the latency. mdp so beside mdp at once."""

THEIRS = ("group-l2", "taylor", "isomorphic")
"""Torch-Pruning, bisected to the latency."""

SCHEDULED = {"mdp-30": ("mdp", "hard"), "mdp-30-soft": ("mdp", "soft"), "halp-30": ("halp", "hard")}
"""In 30 steps while the network is trained: method and kind of mask."""

IMPORTANCE = "taylor"
"""HALP's and MDP's: the absolute sum of gradient times parameter over a coupled group."""

STEPS = 30
UNSCHEDULED = (*OURS, "mdp-steps", RANDOM, *THEIRS)
SMALL = ("mdp", "uniform", RANDOM, *THEIRS)
"""halp takes five minutes to find that its cost model cannot get to 30 % of that network."""
METHODS = (*UNSCHEDULED, *SCHEDULED)
THREADS = 1
SEARCHING = 4.0
"""Seconds of timing of a network that may be it; what it is at last is timed anew."""
_PATH = 80
_PER_STEP = 2
_HIGHEST = 0.95
_TRIES = 3

Batches = Iterable[tuple[Tensor, Tensor]]


def latency_share(dense: nn.Module, slim: nn.Module, inputs: Tensor, time_limit: float = 20.0) -> dict[str, Any]:
    """The latency of a network beside the dense one's, timed in turn on ONNX Runtime's CPU provider, one thread."""
    first, second = mdp_fx.bench({"dense": dense, "slim": slim}, inputs, threads=THREADS, time_limit=time_limit)
    return {"share": second.ratio, "interval": second.interval, "dense_ms": first.median_ms, "ms": second.median_ms}


def prune(
    method: str, dense: nn.Module, inputs: Tensor, share: float, batches: Batches, step: int, seed: int
) -> nn.Module:
    """A pruned network that takes `share` of the dense latency.

    Where it takes less, as mgp's do, whose tables hold inputs at their size, more is asked for, and where it takes
    more, less: methods are compared at the same measured latency. In steps, each of which is measured, it is not asked
    for again.

    Args:
        method: one of `OURS` and `IN_STEPS`, or `RANDOM`.
        dense: the trained network, on the CPU; left unchanged.
        inputs: of the batch that latency counts at.
        share: of the dense latency.
        batches: of (inputs, labels) on the CPU, for importance.
        step: channel step.
        seed: of `RANDOM`.
    """
    searched, each = IN_STEPS.get(method, ("mdp" if method == RANDOM else method, share))
    kind, data = ("random", None) if method == RANDOM else (IMPORTANCE, batches)

    def score(network: nn.Module) -> mdp_fx.Scores:
        return mdp_fx.score(network, inputs, importance=kind, data=data, seed=seed)

    options: dict[str, Any] = {"method": searched, "threads": THREADS, "step": step}
    lowest, highest = (limit * share for limit in MET)
    asked, too_little, too_much = share, 0.0, 1.0
    found: dict[float, nn.Module] = {}
    for _ in range(1 if method in IN_STEPS else _TRIES):
        try:
            results = prune_in_steps(dense, inputs, asked, steps=steps_to(asked, each), score=score, **options)
        except MdpFxError:
            if not found:
                raise
            break
        network = results[-1].module
        measured = latency_share(dense, network, inputs, SEARCHING)["share"]
        found[measured] = network
        if lowest <= measured <= highest:
            break
        if measured < share:
            too_little = asked
        else:
            too_much = asked
        asked *= share / measured
        if not too_little < asked < too_much:
            asked = (too_little + too_much) / 2
    return found[max((measured for measured in found if measured <= highest), default=min(found))]


class TorchPruning:
    """Torch-Pruning's way from the dense network to the smallest one in `_PATH` steps, bisected by measured latency.

    One ratio over all groups (group-l2, taylor), or over those of the same form (isomorphic, arXiv 2407.04616). In one
    step it leaves a layer whole that would lose all channels; in many, a layer stops at its largest ratio.

    It takes a channel pad for an operation that leaves channels alone, and ends with a network that does not run: it
    gets the shortcuts as convolutions, and what it leaves of them is written as a selection of channels again.

    Args:
        method: one of `THEIRS`.
        dense: the trained network, on the CPU; left unchanged.
        inputs: of the batch that latency counts at.
        batches: of (inputs, labels), for taylor and isomorphic: `_PER_STEP` of them for every step, in turn.
        step: channel step.
    """

    def __init__(self, method: str, dense: nn.Module, inputs: Tensor, batches: Batches, step: int) -> None:
        self._dense, self._inputs = dense, inputs
        self._path: list[nn.Module] = []
        self._shares: dict[int, float] = {}
        network = copy.deepcopy(dense).eval()
        convolve_shortcuts(network)
        network.requires_grad_(True)  # Its Taylor importance needs a gradient of every layer.
        by_gradient, source = method != "group-l2", itertools.cycle(batches)
        kinds = torch_pruning.importance
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                network,
                inputs,
                importance=kinds.GroupTaylorImportance() if by_gradient else kinds.GroupMagnitudeImportance(p=2),
                pruning_ratio=_HIGHEST,
                max_pruning_ratio=_HIGHEST,
                iterative_steps=_PATH,
                global_pruning=True,
                isomorphic=method == "isomorphic",
                round_to=step,
                ignored_layers=[module for module in network.modules() if isinstance(module, nn.Linear)][-1:],
            )
            for _ in range(_PATH):
                network.zero_grad(set_to_none=True)
                for images, labels in itertools.islice(source, _PER_STEP if by_gradient else 0):
                    torch.autograd.backward(F.cross_entropy(network(images), labels))
                pruner.step()
                network.zero_grad(set_to_none=True)
                self._path.append(copy.deepcopy(network))
                select_shortcuts(self._path[-1])

    def at(self, share: float) -> nn.Module:
        """The network on the way that is nearest to this share of the dense latency, at most `MET[1]` of it.

        Raises:
            MdpFxError: none is so small.
        """
        low, high = -1, len(self._path) - 1
        while high - low > 1 or high not in self._shares:
            middle = high if high not in self._shares else (low + high) // 2
            self._measure(middle)
            if middle == high and self._shares[high] > share:
                msg = f"the smallest network takes {self._shares[high]:.0%} of the latency, not {share:.0%}"
                raise MdpFxError(msg)
            if self._shares[middle] <= share:
                high = middle
            else:
                low = middle
        highest = MET[1] * share
        if low >= 0 and self._shares[low] <= highest and self._shares[low] - share < share - self._shares[high]:
            high = low
        return copy.deepcopy(self._path[high])

    def _measure(self, number: int) -> None:
        if number not in self._shares:
            found = latency_share(self._dense, self._path[number], self._inputs, SEARCHING)
            self._shares[number] = found["share"]


def faults(method: str, work: Callable[[], nn.Module]) -> tuple[nn.Module | None, str | None]:
    """What `work` gives, or why it gives nothing: that a method cannot is a result too."""
    try:
        return work(), None
    except MdpFxError as error:
        return None, str(error)
    except Exception as error:
        if method not in THEIRS:
            raise
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
