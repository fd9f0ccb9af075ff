"""What a training run needs before its first step: network, data, teacher, all checked against one another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mdp_fx.data import load_function
from mdp_fx.errors import DataError, InputError
from mdp_fx.example_inputs import DEFAULT_SHAPE, parameter_type, random_inputs
from mdp_fx.graph.forward import run_once
from mdp_fx.model_source import LoadedModel, load_model
from mdp_fx.passes.base import Stage
from mdp_fx.recipe import Recipe
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.distillation import check_teacher
from mdp_fx.train.objective import Loss, check_labels, classes_of, split_batch
from mdp_fx.train.pruning import Pruner
from mdp_fx.training_data import Batches, Shard, load_batches

_IMAGE_AXES = 3  # channels, height, width


@dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        loaded: the network.
        shape: of one example.
        inputs: two random examples.
        classes: outputs of a classifier; None where the loss is one's own, which may be of anything.
        train: batches to train on.
        val: batches to validate on, None without them.
        loss: of (outputs, targets), None for cross-entropy.
        epoch_steps: steps in an epoch.
        teacher: the dense network, where it is to teach.
    """

    loaded: LoadedModel
    shape: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    classes: int | None
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
    shape = _shape(config, loaded.recipe)
    inputs = random_inputs([(2, *shape)], [parameter_type(loaded.module)])
    loss = None if config.tune.loss == "cross-entropy" else load_function(config.tune.loss, "loss")
    if (config.tune.mixup or config.tune.cutmix) and len(shape) != _IMAGE_AXES:
        msg = f"mixup and cutmix mix images, and data.input is {'x'.join(map(str, shape))}: leave them out"
        raise InputError(msg)
    outputs = run_once(loaded.module, inputs, loaded.name, "data.input")
    if isinstance(outputs, list | tuple) and outputs and all(isinstance(each, dict) for each in outputs):
        msg = f"{config.model} is a detector, and this trains classifiers: train it in a loop of your own"
        raise InputError(msg)
    if not prune and loaded.recipe is None:
        msg = f"{config.model} is no slim network: prune it first (mdp-fx prune, or mdp-fx train)"
        raise InputError(msg)
    count = None if loss is not None else classes_of(outputs)
    teacher = _load_teacher(config, loaded, inputs, prune=prune, trust_pickle=trust_pickle)
    stage("read the data")
    train, val, classes = load_batches(config.data, shape, shard, config.seed)
    if classes is not None and count is not None and classes > count:
        msg = f"{config.data.train} has {classes} classes, {config.model} has {count} outputs: they must fit"
        raise InputError(msg)
    epoch_steps = len(train) // config.tune.accumulate
    if not epoch_steps:
        accumulate = config.tune.accumulate
        msg = f"{config.data.train} has {len(train)} batches an epoch, and a step takes {accumulate} (tune.accumulate)"
        raise InputError(msg)
    if prune:
        config.prune.schedule.check(config.tune.epochs * epoch_steps)
    for what, batches in (("training", train), ("validation", val)):
        if batches is not None and not _check_first(loaded, batches, shape, count) and shard.rank == 0:
            msg = f"the {what} data has no batches: the loader must yield (inputs, labels)"
            raise DataError(msg)
    return Setup(loaded, shape, inputs, count, train, val, loss, epoch_steps, teacher)


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
    return tuple(recipe.input_shapes[0][1:]) if recipe is not None and recipe.input_shapes else DEFAULT_SHAPE


def _check_first(loaded: LoadedModel, batches: Batches, shape: tuple[int, ...], classes: int | None) -> bool:
    """Checks the first batch.

    Returns:
        Whether there is one: there may be fewer batches than processes.

    Raises:
        DataError: it cannot be read, or does not fit the network.
    """
    first = next(batches.all(), None)
    if first is None:
        return False
    inputs, targets = split_batch(first)
    if classes is not None:
        check_labels(inputs, targets, shape, classes)
    if inputs and isinstance(inputs[0], Tensor) and not inputs[0].is_floating_point():
        try:
            run_once(loaded.module, inputs, loaded.name)
        except InputError as error:
            dtype = str(inputs[0].dtype).removeprefix("torch.")
            msg = f"a batch of data has {dtype} inputs, which {loaded.name} rejects: give it floating point, scaled"
            raise DataError(msg) from error
    return True
