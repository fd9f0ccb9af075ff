"""What of a model is analysed, pruned and timed: the whole of it, or the tensor part of a detector."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mdp_fx.detectors.observation import first_result, gives_boxes, is_detector, observe
from mdp_fx.detectors.put_back import put_back
from mdp_fx.detectors.tensor_part import TensorPart, join
from mdp_fx.errors import DataError, InputError, ModelError, first_line
from mdp_fx.graph.modes import eval_mode
from mdp_fx.passes.base import Stage, silent
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.importance import Loss
from mdp_fx.pipeline import analyse, first_example, rewrite
from mdp_fx.report.facts import FrozenRow


@dataclass(frozen=True)
class Subject:
    """What the passes see of a model.

    Attributes:
        model: the user's model.
        module: what is traced: the model, or its tensor part.
        inputs: example inputs of `module`.
        given: example inputs of `model`.
        notes: what that decides for good, beside what tracing does.
    """

    model: nn.Module
    module: nn.Module
    inputs: tuple[Any, ...]
    given: tuple[Any, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_part(self) -> bool:
        """Whether the model is a detector, of which a part is traced."""
        return self.module is not self.model

    def analyse(
        self, front_end: Choice = "auto", *, all_examples: bool = True, step: int = 1, stage: Stage = silent
    ) -> Analysis:
        """Runs every analysis pass; the arguments are those of `pipeline.analyse`."""
        found = analyse(
            self.module, self.inputs, front_end=front_end, all_examples=all_examples, step=step, stage=stage
        )
        return replace(found, graph=replace(found.graph, baked_in=(*found.graph.baked_in, *self.notes)))

    def taken_apart(self) -> tuple[FrozenRow, ...]:
        """The modules around those that are traced, which cannot be traced themselves, each with the reason."""
        if not isinstance(self.module, TensorPart):
            return ()
        return tuple(FrozenRow(path, *row) for path, row in self.module.refused.items())

    def runnable(self) -> nn.Module:
        """What can be exported and timed on `inputs`: the model, or the graph of its tensor part."""
        if not self.is_part:
            return self.model
        return rewrite(analyse(self.module, self.inputs), {}, ())

    def returned(self, analysis: Analysis, slim: fx.GraphModule) -> nn.Module:
        """The user's model made slim: the graph itself, or a detector of the same class that holds its layers.

        Raises:
            ModelError: a module of the detector cannot take the sizes that were chosen.
        """
        if not isinstance(self.module, TensorPart):
            return slim
        made = put_back(self.model, self.module, analysis, slim)
        try:
            observe(made, self.given)
        except InputError as error:
            fault = first_line(error.__cause__)
            what = f"the slim {type(made).__name__} fails outside of what was traced: {fault}"
            raise ModelError(
                f"{what}; where it counts on a number of channels, leave them alone with --keep"
            ) from error
        return made

    def scored(self, loss: Loss | None) -> tuple[nn.Module, Loss | None]:
        """What gradients are taken of, and the loss: a detector is trained by the sum of its own losses."""
        if not isinstance(self.module, TensorPart):
            return self.model, loss
        return _Images(self.model), _own_losses(self.model, self.module.regions)


def subject_of(model: nn.Module, inputs: tuple[Any, ...]) -> Subject:
    """What of a model is analysed.

    Args:
        model: the user's model, left unchanged.
        inputs: its example inputs; a detector gets a batch of images, shape (B, C, height, width).

    Raises:
        InputError: a detector does not take images of this size.
        ModelError: nothing of a detector can be traced.
    """
    found = first_result(model, first_example(inputs)) if _takes_images(model, inputs) else None
    if is_detector(found):
        part, given = join(model, inputs)
        boxes = ", ".join(str(value.shape[1]) for value in given[1:])
        notes = (f"the number of rows, such as boxes, that come from outside of what is traced: {boxes} of each image",)
        return Subject(model, part, given, inputs, notes if boxes else ())
    kind = type(model).__name__
    note = f"the forward without labels: the slim network is a graph that gives boxes, not a {kind} that gives losses"
    return Subject(model, model, inputs, inputs, (note,) if gives_boxes(found) else ())


def _takes_images(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    if not isinstance(model, nn.Module):
        return False
    return len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4 and len(inputs[0]) > 0


class _Images(nn.Module):
    """Gives the images of a batch to the loss, which runs the detector on them and their targets."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, *images: Tensor) -> list[Tensor]:
        """The images."""
        return [image for each in images for image in (each if each.ndim == 4 else [each])]


def _own_losses(detector: nn.Module, regions: Collection[str]) -> Loss:
    """The sum of a detector's losses, with what is traced of it, and its norms, as in eval mode."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    traced = {id(module) for path in regions for module in detector.get_submodule(path).modules()}

    def loss(images: Any, targets: Any) -> Tensor:
        if isinstance(images, dict):
            raise DataError("layers of this detector are split by the analysis, not by its losses: use importance l2")
        with eval_mode(detector), torch.random.fork_rng():  # It samples boxes and sizes.
            for module in detector.modules():
                module.training = id(module) not in traced and not isinstance(module, norms)
            torch.manual_seed(0)
            losses = detector(images, targets)
        return torch.stack([value.sum() for value in losses.values()]).sum()

    return loss
