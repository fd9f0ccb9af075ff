"""What a training run needs before its first step: network, data, teacher, all checked against one another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdp_fx.data import load_function
from mdp_fx.errors import InputError, TrainingError, first_line
from mdp_fx.example_inputs import parameter_type, random_inputs
from mdp_fx.model_source import LoadedModel, load_model
from mdp_fx.passes.base import Stage
from mdp_fx.recipe import Recipe
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.config_file import differing
from mdp_fx.train.distillation import check_teacher
from mdp_fx.train.objective import Loss, classes_of
from mdp_fx.train.pruning import Pruner
from mdp_fx.train.run_state import FILE, load_run
from mdp_fx.training_data import Batches, Shard, load_batches

_FREE = ("log.", "data.workers", "folder", "output", "device")
"""Keys that may change when a run is taken up again: they do not change what it computes."""

_DEFAULT_SHAPE = (3, 224, 224)


@dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        loaded: the network.
        shape: of one example.
        inputs: two random examples.
        classes: outputs of the network.
        train: batches to train on.
        val: batches to validate on, None without them.
        loss: of (outputs, targets), None for cross-entropy.
        epoch_steps: steps in an epoch.
        teacher: the dense network, where it is to teach.
    """

    loaded: LoadedModel
    shape: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    classes: int
    train: Batches
    val: Batches | None
    loss: Loss | None
    epoch_steps: int
    teacher: nn.Module | None


def prepare(config: TrainConfig, shard: Shard, *, prune: bool, trust_pickle: bool, stage: Stage) -> Setup:
    """Loads everything that the settings name.

    Raises:
        MdpFxError: something cannot be read, or does not fit the rest.
    """
    assert config.model is not None
    stage("load the network")
    loaded = load_model(config.model, arch=config.arch, trust_pickle=trust_pickle)
    if not prune and loaded.recipe is None:
        msg = f"{config.model} is no slim network: prune it first (mdp-fx prune, or mdp-fx train)"
        raise InputError(msg)
    shape = _shape(config, loaded.recipe)
    inputs = random_inputs([(2, *shape)], [parameter_type(loaded.module)])
    count = _classes(loaded, inputs)
    teacher = _load_teacher(config, loaded, inputs, prune=prune, trust_pickle=trust_pickle)
    stage("read the data")
    train, val, classes = load_batches(config.data, shape, shard, config.seed)
    if classes is not None and classes > count:
        msg = f"{config.data.train} has {classes} classes, {config.model} has {count} outputs: they must fit"
        raise InputError(msg)
    epoch_steps = len(train) // config.tune.accumulate
    if not epoch_steps:
        msg = f"an epoch of {len(train)} batches has no step of tune.accumulate {config.tune.accumulate}"
        raise InputError(msg)
    if prune:
        config.prune.schedule.check(config.tune.epochs * epoch_steps)
    loss = None if config.tune.loss == "cross-entropy" else load_function(config.tune.loss, "loss")
    return Setup(loaded, shape, inputs, count, train, val, loss, epoch_steps, teacher)


def find_run(folder: Path, resume: bool, force: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from.

    Raises:
        TrainingError: the folder holds a run, and what is to become of it was not said.
        InputError: the folder cannot be one.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file, not the folder of a run: name another one with --folder"
        raise InputError(msg)
    if resume:
        return load_run(folder) if folder.exists() else None
    if (folder / FILE).exists() and not force:
        msg = f"{folder} holds a run already: go on with it (--resume), start anew (--force), or name another --folder"
        raise TrainingError(msg)
    return None


def check_same(old: TrainConfig, new: TrainConfig, folder: Path) -> None:
    """Checks that a run is taken up with the settings that it began with.

    Raises:
        TrainingError: one that changes what it computes differs.
    """
    for name, before, after in differing(old, new):
        if not name.startswith(_FREE):
            msg = (
                f"the run in {folder} was begun with {name} {before}, not {after}: set it back, or start anew (--force)"
            )
            raise TrainingError(msg)


def make_pruner(
    config: TrainConfig, setup: Setup, stage: Stage, progress: Callable[[int, int, str], None] | None
) -> Pruner:
    """What prunes the network while it is trained."""
    prune = config.prune
    images = random_inputs([(prune.batch, *setup.shape)], [parameter_type(setup.loaded.module)])
    return Pruner(
        setup.loaded.module,
        images,
        latency=prune.latency,
        params=prune.params,
        macs=prune.macs,
        target=prune.target,
        threads=prune.threads,
        dtype=prune.dtype,
        fill="analytic" if prune.fill == "analytic" else None,
        method=prune.method,
        importance=prune.importance,
        schedule=prune.schedule,
        masks="soft" if prune.masks == "soft" else "hard",
        step=prune.step,
        keep=prune.keep,
        only=prune.only,
        min_keep=prune.min_keep,
        max_removed=prune.max_removed,
        front_end="auto" if prune.front_end == "auto" else "symbolic" if prune.front_end == "symbolic" else "export",
        seed=config.seed,
        gap=prune.gap,
        time_limit=prune.time_limit,
        name=setup.loaded.name,
        pretrained=setup.loaded.pretrained,
        stage=stage,
        progress=progress,
    )


def _load_teacher(
    config: TrainConfig, loaded: LoadedModel, inputs: tuple[Tensor, ...], *, prune: bool, trust_pickle: bool
) -> nn.Module | None:
    """The dense network, where it is to teach."""
    distill = config.distill
    if not (distill.logits or distill.features):
        return None
    if distill.teacher is not None:
        teacher = load_model(distill.teacher, arch=distill.teacher_arch, trust_pickle=trust_pickle).module
    elif prune:
        teacher = copy.deepcopy(loaded.module)
    else:
        msg = "distillation needs the dense network: name it with --teacher MODEL (distill.teacher)"
        raise InputError(msg)
    check_teacher(teacher, loaded.module, inputs)
    return teacher


def _shape(config: TrainConfig, recipe: Recipe | None) -> tuple[int, ...]:
    """Shape of one example: as set, a slim network's own, or the default.

    Raises:
        InputError: what is set is no shape.
    """
    text = config.data.input
    if text is not None:
        parts = text.split("x")
        if not all(part.isdecimal() and int(part) for part in parts):
            msg = f"data.input {text!r} is not a shape such as 3x224x224"
            raise InputError(msg)
        return tuple(map(int, parts))
    return tuple(recipe.input_shapes[0][1:]) if recipe is not None and recipe.input_shapes else _DEFAULT_SHAPE


def _classes(loaded: LoadedModel, inputs: tuple[Tensor, ...]) -> int:
    """Classes of a network, from a run of it.

    Raises:
        InputError: it rejects the inputs.
    """
    loaded.module.eval()
    try:
        with torch.no_grad():
            outputs = loaded.module(*inputs)
    except Exception as error:  # the network's own code
        shape = "x".join(map(str, inputs[0].shape))
        msg = f"{loaded.name} rejects an input of shape {shape}: {first_line(error)}; set the shape with data.input"
        raise InputError(msg) from error
    return classes_of(outputs)
