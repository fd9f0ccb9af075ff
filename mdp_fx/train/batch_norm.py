"""Batch-norm statistics of a network whose channels, or weights, changed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import DataError
from mdp_fx.graph.modes import eval_mode


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, loader: Iterable[Any], batches: int) -> int:
    """Takes running means and variances anew: the plain average over batches, in place of the old ones.

    Everything else runs as in eval mode, and the mode of every module is restored. Where the forward fails, the old
    statistics stay.

    Args:
        model: a network; one without batch norms that track statistics is left as it is.
        loader: batches of (inputs, targets), of (inputs,), or of inputs; a list or tuple of inputs is the positional
            arguments.
        batches: at most this many batches are read.

    Returns:
        Batches that were read.

    Raises:
        DataError: the loader has no batch.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return 0
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    before = [
        (norm, norm.momentum, {name: value.clone() for name, value in norm.state_dict().items()}) for norm in norms
    ]
    done, whole = 0, False
    with eval_mode(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # The average over all batches, each counting the same.
                norm.training = True
            for batch in islice(loader, batches):
                inputs = batch[0] if isinstance(batch, list | tuple) else batch
                inputs = pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, inputs)
                model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)
                done += 1
            whole = done > 0
        finally:
            for norm, momentum, state in before:
                norm.momentum = momentum
                if not whole:
                    norm.load_state_dict(state)
    if not done:
        raise DataError("batch-norm statistics need data: the loader has no batches")
    return done
