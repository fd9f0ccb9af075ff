"""The optimizer and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mdp_fx.errors import InputError
from mdp_fx.train.config import TuneConfig


def make_optimizer(module: nn.Module, config: TuneConfig) -> Optimizer:
    """The optimizer over a network's trainable parameters; vectors (norms, biases) have a weight decay of their own.

    Raises:
        InputError: the network has no trainable parameters.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        msg = "the network has no trainable parameters: all have requires_grad=False"
        raise InputError(msg)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": config.norm_weight_decay},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.rate)
    return SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=config.nesterov)


def rate_factor(config: TuneConfig, epoch_steps: int) -> Callable[[int], float]:
    """The learning rate at a step, as a share of the highest one.

    The rate of step t (from 0) of n, w of which are the warm-up, is (t + 1) / w in the warm-up, as in Goyal et al.
    (arXiv 1706.02677), and after it, with p = (t - w) / (n - w) and final share f, f + (1 - f) (1 + cos(pi p)) / 2
    (cosine, Loshchilov and Hutter, arXiv 1608.03983) or f + (1 - f) (1 - p) (linear). "points" lie on straight lines.

    Args:
        config: the schedule.
        epoch_steps: steps in an epoch.
    """
    if config.schedule == "points":
        epochs, shares = zip(*config.points, strict=True)
        return lambda step: float(np.interp(step / epoch_steps, epochs, shares))
    total, warm = config.epochs * epoch_steps, round(config.warmup * epoch_steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        progress = min(1.0, (step - warm) / max(1, total - warm))
        left = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
        return config.final_rate + (1 - config.final_rate) * left

    return factor
