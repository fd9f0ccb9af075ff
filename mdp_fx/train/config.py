"""The settings of a training run: every key with its type, default, limits and meaning.

The dataclasses are the one place that says so: reading, checking and `mdp-fx train --show-config` are made from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mdp_fx.errors import InputError
from mdp_fx.train.schedule import CURVES, Schedule


def key(
    default: Any, doc: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A documented key of a section.

    Args:
        default: value where the key is not given.
        doc: what it means.
        choices: words that it may be.
        low: smallest number that it may be.
        high: largest one.
    """
    return field(default=default, metadata={"doc": doc, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from."""

    train: str | None = key(None, "training data: imagefolder:PATH or package.module:make_loader")
    val: str | None = key(None, "validation data, in the same forms")
    val_share: float = key(0.0, "share of the training images held out for validation, by seed", low=0, high=0.9)
    input: str | None = key(None, "shape of one example, such as 3x224x224; a slim network's own, else 3x224x224")
    batch: int = key(128, "examples in a batch of one process", low=1)
    workers: int = key(4, "processes that load the images of an image folder", low=0)
    augment: str = key(
        "crop-flip",
        "of training images in a folder: random resized crops and flips (ImageNet), crops of the padded image and "
        "flips (CIFAR), or none",
        choices=("crop-flip", "pad-flip", "none"),
    )
    crop_area: float = key(0.08, "smallest share of the area that crop-flip takes", low=0.01, high=1)
    resize: float = key(256 / 224, "validation images are resized to this many times the input, then cropped", low=1)
    epoch_batches: int | None = key(None, "batches of one process in an epoch; all by default", low=1)
    val_batches: int | None = key(None, "batches of one process in a validation; all by default", low=1)


@dataclass(frozen=True)
class PruneConfig:
    """What goes, and when."""

    latency: str | None = key(None, "budget on the target: 30% of the dense latency, or 12.5ms")
    params: str | None = key(None, "budget of parameters: 60%, or 4M")
    macs: str | None = key(None, "budget of multiply-accumulates: 60%, or 300M")
    target: str = key("onnxruntime:cpu", "where latency counts, see `mdp-fx targets`")
    batch: int = key(1, "batch size that latency counts at", low=1)
    threads: int | None = key(None, "processor threads of the target; one per core by default", low=1)
    dtype: str = key("float32", "number format that the target runs in", choices=("float32", "float16", "bfloat16"))
    fill: str | None = key(None, "how convolutions that a table lacks are estimated", choices=("analytic",))
    method: str = key("mdp", "how to choose", choices=("mdp", "mgp", "mdlm", "halp", "uniform"))
    importance: str | None = key(
        None, "what units are worth, see `mdp-fx score`; taylor by default, taylor-input with soft masks"
    )
    steps: int = key(1, "pruning steps; each solves again on the network as it is then", low=1)
    curve: str = key("exp2", "latency that the steps ask for on the way to the budget", choices=CURVES)
    start: int = key(0, "iterations of training before anything else", low=0)
    gather: int = key(40, "iterations over which importance is gathered before every pruning step", low=1)
    every: int | None = key(None, "iterations from one pruning step to the next; those of gather by default", low=1)
    masks: str = key("hard", "pruned weights stay zero, or are updated on and may come back", choices=("hard", "soft"))
    step: int = key(8, "channels are kept in multiples of this", low=1)
    keep: tuple[str, ...] = key((), "patterns of module names to leave alone")
    only: tuple[str, ...] = key((), "patterns of module names to prune")
    min_keep: float | None = key(None, "share of its units that every channel group keeps", low=0, high=1)
    max_removed: int | None = key(None, "most blocks to remove", low=0)
    gap: float = key(1e-3, "relative optimality gap that the solver may stop at", low=0, high=1)
    time_limit: float = key(20.0, "seconds for each call of the solver", low=0.01)
    front_end: str = key("auto", "what makes the graph", choices=("auto", "symbolic", "export"))
    recalibrate: int = key(0, "training batches over which batch-norm statistics are taken anew after pruning", low=0)

    @property
    def schedule(self) -> Schedule:
        """When structures are chosen."""
        return Schedule(self.steps, self.curve, self.start, self.gather, self.every)


@dataclass(frozen=True)
class TuneConfig:
    """How the weights are trained, while pruning and after it."""

    epochs: int = key(10, "epochs in all, those of pruning included", low=1)
    optimizer: str = key("sgd", "what updates the weights", choices=("sgd", "adamw"))
    rate: float = key(
        0.1, "highest learning rate, for steps of data.batch x processes x tune.accumulate examples", low=0
    )
    schedule: str = key(
        "cosine", "from the highest rate to the final one, after the warm-up", choices=("cosine", "linear", "points")
    )
    points: tuple[tuple[float, float], ...] = key(
        (), "for points: [epoch, share of the highest rate] pairs, with straight lines between them"
    )
    final_rate: float = key(0.0, "rate at the end, as a share of the highest one", low=0, high=1)
    warmup: float = key(0.0, "epochs over which the rate grows linearly to the highest one", low=0)
    momentum: float = key(0.9, "of sgd", low=0, high=1)
    nesterov: bool = key(False, "Nesterov's momentum in sgd")
    weight_decay: float = key(1e-4, "of weights", low=0)
    norm_weight_decay: float = key(0.0, "of biases and of the scales and shifts of norms", low=0)
    clip: float | None = key(None, "largest norm of the gradients; none by default", low=1e-6)
    accumulate: int = key(1, "batches whose gradients make one step", low=1)
    loss: str = key("cross-entropy", "cross-entropy, or package.module:function of (outputs, targets)")
    label_smoothing: float = key(0.0, "share of a label that is spread over all classes", low=0, high=1)
    mixup: float = key(0.0, "alpha of mixup; 0 is off", low=0)
    cutmix: float = key(0.0, "alpha of cutmix; 0 is off. With mixup as well, each batch draws one of them", low=0)
    ema: float = key(0.0, "decay of a moving average of the weights, which is evaluated and written; 0 is off", low=0)


@dataclass(frozen=True)
class DistillConfig:
    """What the dense network teaches."""

    teacher: str | None = key(None, "the dense network, as MODEL; by default, in a full run, the one that is pruned")
    teacher_arch: str | None = key(None, "the network of the teacher's state dict")
    logits: float = key(0.0, "weight of its outputs beside the labels, from 0 to 1", low=0, high=1)
    temperature: float = key(4.0, "by which its outputs are softened", low=0.01)
    features: float = key(0.0, "weight of its features at the kept units; 0 is off", low=0)


@dataclass(frozen=True)
class LogConfig:
    """What is written on the way."""

    every: int = key(50, "steps between two lines of the log", low=1)
    checkpoint: int | None = key(None, "steps between two checkpoints; one per epoch by default", low=1)
    evaluate: int = key(1, "epochs between two validations", low=1)
    estimate: int = key(8, "validation batches for the estimate of accuracy before and after pruning; 0 is off", low=0)
    tensorboard: bool = key(True, "also log for TensorBoard")


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    model: str | None = key(None, "the network: a file, torchvision:NAME, timm:NAME or package.module:factory")
    arch: str | None = key(None, "the network of a state dict: torchvision:NAME, timm:NAME, package.module:factory")
    output: str | None = key(None, "slim network to write")
    folder: str | None = key(None, "folder of the run's checkpoint and logs; <output>-run by default")
    seed: int = key(0, "seed of everything random", low=0, high=2**32 - 1)
    device: str = key("auto", "where to train; auto is a GPU where there is one", choices=("auto", "cpu", "cuda"))
    precision: str | None = key(
        None,
        "number format of the forward pass; what `accelerate launch` says, else float32",
        choices=("float32", "float16", "bfloat16"),
    )
    data: DataConfig = field(default_factory=DataConfig, metadata={"doc": "the examples"})
    prune: PruneConfig = field(default_factory=PruneConfig, metadata={"doc": "what goes, and when"})
    tune: TuneConfig = field(default_factory=TuneConfig, metadata={"doc": "how the weights are trained"})
    distill: DistillConfig = field(default_factory=DistillConfig, metadata={"doc": "what the dense network teaches"})
    log: LogConfig = field(default_factory=LogConfig, metadata={"doc": "what is written on the way"})

    def check(self) -> None:
        """Checks what one key alone does not show.

        Raises:
            InputError: keys contradict one another, or one that is needed is missing.
        """
        for name, value in {"model": self.model, "output": self.output, "data.train": self.data.train}.items():
            if value is None:
                raise InputError(f"the key {name} is missing: set it in the config file or with --set {name}=...")
        tune, distill = self.tune, self.distill
        if self.data.val is not None and self.data.val_share:
            raise InputError("data.val and data.val_share are two ways to say the same: leave one of them out")
        if tune.schedule == "points" and (
            not tune.points or any(a[0] >= b[0] for a, b in zip(tune.points, tune.points[1:], strict=False))
        ):
            raise InputError("tune.schedule points needs tune.points with ascending epochs, such as [[0, 0.1], [5, 1]]")
        if any(share < 0 for _, share in tune.points):
            raise InputError("tune.points has a share below 0: the rate would climb up the loss")
        if tune.points and tune.schedule != "points":
            raise InputError(f"tune.points is for tune.schedule points, not {tune.schedule}")
        if tune.schedule == "points" and (tune.warmup or tune.final_rate):
            name = "warmup" if tune.warmup else "final_rate"
            raise InputError(
                f"tune.{name} is not for tune.schedule points, whose points say all of the rate: leave it out"
            )
        if tune.warmup > tune.epochs:
            raise InputError(f"tune.warmup of {tune.warmup:g} epochs is longer than tune.epochs {tune.epochs}")
        if tune.ema >= 1:
            raise InputError(f"tune.ema {tune.ema:g} must be below 1, such as 0.999")
        if tune.nesterov and (tune.optimizer != "sgd" or not tune.momentum):
            raise InputError("tune.nesterov needs tune.optimizer sgd with tune.momentum above 0")
        if tune.loss != "cross-entropy" and (tune.label_smoothing or tune.mixup or tune.cutmix):
            raise InputError("label smoothing, mixup and cutmix are for tune.loss cross-entropy")
        if distill.teacher_arch is not None and distill.teacher is None:
            raise InputError("distill.teacher_arch is the network of distill.teacher, which is not set")
        if distill.teacher is not None and not (distill.logits or distill.features):
            raise InputError("distill.teacher teaches nothing: set distill.logits or distill.features")
        _ = self.prune.schedule  # checks itself
