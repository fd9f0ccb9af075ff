"""Steps of training on Hugging Face Accelerate: one process or many, on processors or GPUs, in any number format."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, MdpFxError, TrainingError, first_line
from mdp_fx.train.config import TuneConfig
from mdp_fx.train.objective import (
    Loss,
    Mixing,
    Teaching,
    all_finite,
    check_labels,
    cross_entropy,
    data_not_finite,
    split_batch,
    weights_not_finite,
)
from mdp_fx.train.optimization import make_optimizer, rate_factor

_PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}

_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where every process has the whole network, optimizer and gradients, as what is saved and scored here asks for."""

_PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one, which measures latency tables; NCCL's own limit is 10 minutes."""


def make_accelerator(device: str, precision: str | None) -> Accelerator:
    """What places and wraps networks.

    Args:
        device: "cpu", "cuda" or "auto".
        precision: "float32", "float16" or "bfloat16"; None for what `accelerate launch` says, else float32.

    Raises:
        InputError: a GPU was asked for and there is none, the format needs one, or the launcher asked for what does not
            work here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "no GPU or driver is found"
        msg = f"device cuda was asked for, but {built}: train with --device cpu, or set this machine's GPU up"
        raise InputError(msg)
    # Accelerate keeps its settings for the life of the process; another run in it may have others.
    AcceleratorState._reset_state()
    if not torch.distributed.is_initialized():
        PartialState._reset_state()
    # Without a GPU, and without being told so, Accelerate takes each process of a launcher for one that is alone.
    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=None if precision is None else _PRECISIONS[precision],
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    except (ValueError, ImportError) as error:
        msg = f"cannot train in {precision or 'this number format'} here: {first_line(error)}"
        raise InputError(msg) from error
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        msg = f"{started} processes were started, and {accelerator.num_processes} work together: check the launcher"
        raise InputError(msg)
    if accelerator.distributed_type not in _WHOLE:
        msg = (
            f"training in the form {accelerator.distributed_type.value} is not supported: launch plain multi-GPU or CPU"
        )
        raise InputError(msg)
    if (accelerator.device.type == "cpu") != cpu:
        msg = f"this process trains on {accelerator.device.type} already, device {device} needs another process"
        raise InputError(msg)
    if accelerator.gradient_accumulation_steps != 1:
        msg = "gradients are accumulated by tune.accumulate: launch without --gradient_accumulation_steps"
        raise InputError(msg)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        msg = "float16 training needs a GPU: set precision to bfloat16 or float32"
        raise InputError(msg)
    return accelerator


def precision_of(accelerator: Accelerator) -> str:
    """The number format that an accelerator computes in."""
    return next(name for name, theirs in _PRECISIONS.items() if theirs == accelerator.mixed_precision)


class Trainer:
    """Trains one network step by step.

    Args:
        accelerator: see `make_accelerator`.
        module: the network; moved to the accelerator's device.
        config: how to train.
        epoch_steps: steps in an epoch.
        shape: of one example, checked on every batch where there are labels.
        classes: outputs of a classifier; not needed with a loss of one's own.
        loss: of (outputs, targets); None for cross-entropy on labels.
        average: whether the moving average of the weights is kept, where the config has one.

    Attributes:
        module: the network itself, without wrappers.
        step: steps done.
        teaching: what a teacher adds to the loss, or None.
        after_backward: called with the scale of the loss when the gradients of a step are complete.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        config: TuneConfig,
        *,
        epoch_steps: int,
        shape: tuple[int, ...],
        classes: int | None,
        loss: Loss | None = None,
        average: bool = True,
        step: int = 0,
    ) -> None:
        self.module, self.step = module, step
        self.teaching: Teaching | None = None
        self.after_backward: Callable[[float], None] | None = None
        self._accelerator, self._config, self._shape = accelerator, config, shape
        self._classes = classes if loss is None else None
        self._loss = loss or cross_entropy(config.label_smoothing)
        mixed = bool(config.mixup or config.cutmix)
        self._mixing = Mixing(config, self._classes) if mixed and self._classes is not None else None
        self._factor = rate_factor(config, epoch_steps)
        module.to(accelerator.device)
        # Before the network is wrapped: the average is of the bare one.
        self._average: AveragedModel | None = None
        if config.ema and average:
            self._average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        accelerator.free_memory()
        self._wrapped, self._optimizer = accelerator.prepare(module, make_optimizer(module, config))

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and to write: the moving average where there is one."""
        if self._average is not None and self._average.n_averaged:
            averaged: nn.Module = self._average.module
            return averaged
        return self.module

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self._config.rate * self._factor(self.step)

    def train_step(self, batches: Iterator[Any]) -> float:
        """One step on the next batches.

        Returns:
            The loss, a mean over batches and processes; where it is not finite the step was not taken.

        Raises:
            DataError: a batch does not fit.
            TrainingError: the network or the loss failed on a batch, or it holds values that are not finite.
        """
        self._wrapped.train()
        total, count = torch.zeros((), device=self._accelerator.device), self._config.accumulate
        sound = torch.ones_like(total, dtype=torch.bool)
        for number in range(count):
            inputs, targets = split_batch(next(batches))
            if self._classes is not None:
                check_labels(inputs, targets, self._shape, self._classes)
                targets = targets.long()
            inputs, targets = pytree.tree_map(self._place, (inputs, targets))
            sound = sound & all_finite((inputs, targets))
            alone = self._accelerator.no_sync(self._wrapped) if number < count - 1 else contextlib.nullcontext()
            with alone, self._told(inputs):
                if self._mixing is not None:
                    image, targets = self._mixing(inputs[0], targets)
                    inputs = (image, *inputs[1:])
                outputs = self._wrapped(*inputs)
                loss = self._loss(outputs, targets)
                if self.teaching is not None:
                    loss = self.teaching(inputs, outputs, loss)
                total += loss.detach() / count
                self._accelerator.backward(loss / count)
        value = float(self._accelerator.reduce(total, "mean"))
        if not torch.isfinite(torch.tensor(value)):
            if self._accelerator.reduce((~sound).float(), "sum"):
                raise data_not_finite(self.step + 1)
            return value
        scaler = self._accelerator.scaler
        if self.after_backward is not None:
            self.after_backward(1.0 if scaler is None else scaler.get_scale())
        if self._config.clip is not None:
            self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self._config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.update_parameters(self.module)
        self.step += 1
        return value

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, moving average and gradient scaler."""
        scaler = self._accelerator.scaler
        return {
            "step": self.step,
            "module": _tensors(self.module),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else _tensors(self._average),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, with the settings of this trainer.

        Raises:
            TrainingError: it belongs to another network or other settings.
        """
        try:
            self.module.load_state_dict(state["module"])
            settings = [{k: v for k, v in each.items() if k != "params"} for each in self._optimizer.param_groups]
            self._optimizer.load_state_dict(state["optimizer"])
            for group, mine in zip(self._optimizer.param_groups, settings, strict=True):
                group.update(mine)
            if self._average is not None:
                self._average.load_state_dict(state["average"])
            if self._accelerator.scaler is not None and state["scaler"] is not None:
                self._accelerator.scaler.load_state_dict(state["scaler"])
            self.step = int(state["step"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            msg = f"the checkpoint belongs to another network or other settings: {first_line(error)}"
            raise TrainingError(msg) from error

    def check_finite(self) -> None:
        """Checks the weights and the statistics, before they are written.

        Raises:
            TrainingError: some are not finite.
        """
        for name, value in itertools.chain(self.module.named_parameters(), self.module.named_buffers()):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise weights_not_finite(name, self.step)

    def bare(self) -> nn.Module:
        """The network to write, on the CPU and without what Accelerate put around its forward."""
        network = self.evaluated
        if network is self.module:
            self._accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        return network.cpu()

    def _place(self, value: Any) -> Any:
        return value.to(self._accelerator.device, non_blocking=True) if isinstance(value, Tensor) else value

    @contextlib.contextmanager
    def _told(self, inputs: tuple[Any, ...]) -> Iterator[None]:
        """Says which step failed, and on what."""
        try:
            yield
        except MdpFxError:
            raise
        except torch.OutOfMemoryError as error:
            msg = f"no memory for step {self.step + 1}: lower data.batch and raise tune.accumulate"
            raise TrainingError(msg) from error
        except Exception as error:  # the network's or the loss's own code
            shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs if isinstance(value, Tensor))
            msg = (
                f"step {self.step + 1} failed on inputs of shape {shapes}: {type(error).__name__}: {first_line(error)}"
            )
            raise TrainingError(msg) from error


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
