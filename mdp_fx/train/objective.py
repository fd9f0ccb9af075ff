"""What training minimises: a loss on labels, mixed examples, and what a teacher adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from mdp_fx.errors import DataError, TrainingError
from mdp_fx.train.config import TuneConfig

Loss = Callable[[Any, Any], Tensor]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_DIVERGED = (
    "training has stopped, the last checkpoint is kept; lower tune.rate, or set tune.clip or a longer tune.warmup, and "
    "go on with --resume --force, or anew with --force where it had gone astray by then"
)


class Teaching(Protocol):
    """What a teacher adds to a loss."""

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, loss: Tensor) -> Tensor:
        """The loss with the teacher's part."""
        ...


def classes_of(outputs: Any) -> int:
    """Classes of a classifier's outputs: the size of axis 1 of their first tensor.

    Raises:
        DataError: it has none.
    """
    logits = first_tensor(outputs)
    if logits.ndim < 2:
        msg = f"the network's output has shape {tuple(logits.shape)}, no classes: name a tune.loss of your own"
        raise DataError(msg)
    return logits.shape[1]


def first_tensor(outputs: Any) -> Tensor:
    """The first tensor of a network's output.

    Raises:
        DataError: there is none.
    """
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            return leaf
    msg = f"the network returns a {type(outputs).__name__} without a tensor: name a tune.loss of your own"
    raise DataError(msg)


def split_batch(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The positional inputs and the targets of a batch.

    Raises:
        DataError: it is not (inputs, targets).
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        several = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        msg = f"a batch of data must be (inputs, targets), found a {type(batch).__name__}{several}"
        raise DataError(msg)
    inputs, targets = batch
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), targets


def check_labels(inputs: tuple[Any, ...], targets: Any, shape: tuple[int, ...], classes: int) -> None:
    """Checks a batch before it is trained on.

    Args:
        inputs: positional inputs of the network.
        targets: labels, shape (N,).
        shape: of one example.
        classes: of the network.

    Raises:
        DataError: there are no examples, they have another shape, or the labels lie outside of the classes.
    """
    if not inputs:
        msg = "a batch of data has no inputs: it must be (inputs, targets)"
        raise DataError(msg)
    images = inputs[0]
    if not isinstance(images, Tensor) or tuple(images.shape[1:]) != shape:
        found = "x".join(map(str, images.shape)) if isinstance(images, Tensor) else type(images).__name__
        msg = f"a batch of data has shape {found}, the network takes Nx{'x'.join(map(str, shape))}; see data.input"
        raise DataError(msg)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.shape != images.shape[:1]:
        what = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        msg = f"the targets of a batch must be whole-number labels of shape ({len(images)},), found {what}"
        raise DataError(msg)
    if not len(targets):
        msg = "a batch of data has no examples: leave empty batches out"
        raise DataError(msg)
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        msg = f"labels {low}..{high} of a batch lie outside of the network's {classes} classes (0..{classes - 1})"
        raise DataError(msg)


class Mixing:
    """Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) by torchvision; with both, each batch draws one."""

    def __init__(self, config: TuneConfig, classes: int) -> None:
        self._transform: Callable[..., Any] | None = None
        if not (config.mixup or config.cutmix):
            return  # Needs no torchvision then.
        from torchvision.transforms import v2

        kinds = [(v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)]
        chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        self._transform = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), and labels (N,) or shares of the classes (N, classes)."""
        if self._transform is None:
            return images, labels
        mixed: tuple[Tensor, Tensor] = self._transform(images, labels)
        return mixed


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy of a classifier's outputs, in float32; targets are labels or shares of the classes."""

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(first_tensor(outputs).float(), targets, label_smoothing=label_smoothing)

    return loss


def not_finite(value: float, step: int, layer: str | None) -> TrainingError:
    """Why a run stops whose loss is no number any more.

    Args:
        value: the loss.
        step: number of the step that gave it.
        layer: the first layer without finite values, where it is known.
    """
    where = f" (the first layer without finite values is {layer})" if layer else ""
    return TrainingError(f"the loss is {value} at step {step}{where}: {_DIVERGED}")


def weights_not_finite(name: str, step: int) -> TrainingError:
    """Why a run stops whose weights are no numbers any more, those named `name` first, after so many steps."""
    return TrainingError(f"{name} is not finite after step {step}: {_DIVERGED}")


def data_not_finite(step: int) -> TrainingError:
    """Why a run stops that is given no numbers, in the step of that number."""
    return TrainingError(
        f"the data of step {step} holds values that are not finite: training has stopped, the last checkpoint is kept; "
        "mend data.train, and go on with --resume"
    )


def all_finite(batch: Any) -> Tensor:
    """Whether all tensors of a batch are finite, a truth value where they are: nothing waits for it.

    Of others than plain ones (sparse, nested, in eight bits) nothing is known.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    plain = [leaf for leaf in leaves if leaf.layout == torch.strided and not leaf.is_nested and leaf.dtype in _FLOATS]
    return torch.stack([leaf.isfinite().all() for leaf in plain]).all() if plain else torch.tensor(True)
