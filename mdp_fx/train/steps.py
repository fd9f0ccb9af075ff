"""Pruning in steps without training between them: after each, importance is gathered anew from what is left."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import nn

from mdp_fx.api import PruneResult
from mdp_fx.detectors.subject import subject_of
from mdp_fx.errors import DataError, InputError
from mdp_fx.passes.arguments import check_whole
from mdp_fx.passes.base import Stage, silent
from mdp_fx.passes.importance import Loss, batch_gradients, cross_entropy, guarded
from mdp_fx.pipeline import as_inputs
from mdp_fx.train.pruning import Pruner
from mdp_fx.train.schedule import Schedule


def prune_in_steps(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    *,
    steps: int,
    loss: Loss | None = None,
    batches: int = 50,
    stage: Stage = silent,
    **options: Any,
) -> PruneResult:
    """Prunes in steps of equal factors in latency, by importance that is gathered anew from what each step left.

    Gradients say little about a network at its optimum, and a channel is worth more the fewer are left beside it:
    scores taken once see neither. Nothing is trained; `Pruner` does the same while the caller trains.

    Args:
        model: the trained dense network, no detector; left unchanged.
        example_inputs: a tensor, or the positional arguments of its forward.
        data: batches of (inputs, targets).
        steps: how often to choose; step k of K asks for target^(k / K) of the dense cost.
        loss: of (outputs, targets), cross-entropy by default.
        batches: that importance is gathered over, the same for each step; fewer where `data` has fewer.
        stage: called with the name of each stage as it starts.
        options: the others of `Pruner`, such as latency, target, method and importance.

    Raises:
        InputError: the model is a detector.
        DataError: batches that the network or the loss rejects, or none.
        MdpFxError: one line that says what, where and what to do.
    """
    check_whole("steps", steps, 1)
    check_whole("batches", batches, 1)
    if subject_of(model, as_inputs(example_inputs)).is_part:
        msg = f"{type(model).__name__} is a detector, which is pruned in one step: leave out the steps (--steps)"
        raise InputError(msg)
    known = list(islice(guarded(data), batches))
    if not known:
        msg = "the data has no batches: the loader must yield (inputs, targets)"
        raise DataError(msg)
    schedule = Schedule(steps, "exp2", 0, len(known))
    pruner = Pruner(model, example_inputs, schedule=schedule, stage=stage, **options)
    network = pruner.module.eval().requires_grad_(True)
    parameters = dict(network.named_parameters())
    for _ in range(steps):
        stage("score importance")
        for batch in known:
            for name, gradient in batch_gradients(network, batch, loss or cross_entropy, parameters).items():
                parameters[name].grad = gradient
            pruner.after_backward()
            pruner.step()
    return pruner.finish()
