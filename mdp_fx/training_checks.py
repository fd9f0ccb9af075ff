"""What a training run looks at on the way: how accurate a network is, and whether a layer of it has collapsed."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from mdp_fx.report.training import Accuracy
from mdp_fx.train.collapse import Collapse, find_collapse
from mdp_fx.train.evaluation import evaluate
from mdp_fx.train.objective import split_batch
from mdp_fx.train.processes import share_buffers
from mdp_fx.train.run_state import random_kept
from mdp_fx.training_setup import Setup

_FALLEN = 0.25
"""Accuracy has fallen far where less than this share of it is left."""


class Checks:
    """Looks at networks; what it draws at random does not show outside."""

    def __init__(self, accelerator: Accelerator, setup: Setup) -> None:
        self._accelerator, self._setup = accelerator, setup
        self._probed: tuple[Any, ...] | None = None

    def accuracy(self, network: nn.Module, limit: int | None = None) -> Accuracy | None:
        """Accuracy on the validation data, or so many batches of it; None without any, or with a loss of one's own.

        In several processes the network gets the statistics of the first one, whose network is written.
        """
        if self._setup.val is None or self._setup.classes is None:
            return None
        share_buffers(network)
        with random_kept():
            return evaluate(
                network,
                self._setup.val.all(),
                self._setup.shape,
                device=self._accelerator.device,
                autocast=self._accelerator.autocast,
                total=lambda counts: self._accelerator.reduce(counts.to(self._accelerator.device), "sum"),
                limit=limit,
            )

    def collapse(self, network: nn.Module) -> Collapse | None:
        """The layer that has collapsed, on the first batch of the validation data, or else of the training data."""
        if self._probed is None:
            batches = self._setup.train if self._setup.val is None else self._setup.val
            first = next(batches.all(), None)
            self._probed = () if first is None else split_batch(first)[0]
        if not self._probed:  # There are fewer batches than processes.
            return None
        device = self._accelerator.device
        return find_collapse(network, tuple(x.to(device) if isinstance(x, Tensor) else x for x in self._probed))


def fallen(dense: Accuracy | None, pruned: Accuracy | None) -> str | None:
    """A warning where pruning has left little of the accuracy."""
    if dense is None or pruned is None or pruned.top1 >= _FALLEN * dense.top1:
        return None
    return (
        f"pruning took the accuracy from {dense.top1:.1%} to {pruned.top1:.1%}, before any further training: "
        "prune.recalibrate takes the statistics of norms anew, and more prune.steps take less at once"
    )
