"""How well a detector detects: average precision, by torchmetrics and the evaluation code of COCO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from mdp_fx.errors import DataError, InputError, first_line
from mdp_fx.graph.modes import eval_mode


class DetectionScores(TypedDict):
    """Average precision of a detector, each between 0 and 1.

    Attributes:
        map_50: mean over the classes at an overlap of 0.5.
        map: mean over the classes and over the overlaps 0.5, 0.55 ... 0.95.
        map_50_per_class: average precision at 0.5 by class, of the classes that the data have objects of.
        images: how many were looked at.
    """

    map_50: float
    map: float
    map_50_per_class: dict[str, float]
    images: int


def evaluate(
    model: nn.Module, loader: Iterable[Any], *, classes: Sequence[str] | None = None, batches: int | None = None
) -> DetectionScores:
    """Average precision of a detector.

    It is COCO's: precision interpolated at 101 recalls, at most 100 boxes an image (Pascal VOC's own code differs by
    about a point). Objects that are marked as difficult (iscrowd) count neither for nor against.

    Args:
        model: a detector as torchvision has them: from a list of images it gives, in eval mode, a dictionary with
            boxes, scores and labels for each. It is left in the mode that it was in.
        loader: batches of (images, targets), such as `mdp_fx.detection_data.voc_loader` makes; targets have boxes,
            labels that count from 1, and maybe iscrowd.
        classes: their names, from label 1 on; by default those of the loader's dataset.
        batches: at most this many are read; all by default.

    Raises:
        DataError: there are no images, or batches are not of that form.
        InputError: the model gives no boxes, or a package is missing.
    """
    metric = _metric()
    names = classes if classes is not None else getattr(getattr(loader, "dataset", None), "classes", ())
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = 0
    with eval_mode(model):
        for done, batch in enumerate(loader):
            if done == batches:
                break
            inputs, targets = _checked(batch)
            found = _detect(model, [image.to(device) for image in inputs])
            _check_labels(found, len(names))
            metric.update(found, [_truth(each) for each in targets])
            images += len(targets)
    if not images:
        raise DataError("the data have no images to evaluate on")
    return _scores(metric.compute(), names, images)


def _metric() -> Any:
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(backend="pycocotools", extended_summary=True, class_metrics=True)
    except ImportError as error:
        msg = "average precision needs torchmetrics and pycocotools: pip install 'mdp-fx[detection]'"
        raise InputError(msg) from error
    metric.warn_on_many_detections = False  # the best hundred of an image are what COCO counts
    return metric


def _checked(batch: Any) -> tuple[list[Tensor], Sequence[Mapping[str, Tensor]]]:
    """Images and targets of a batch, as many of one as of the other."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        images, targets = batch
        if isinstance(images, Tensor | list | tuple) and isinstance(targets, list | tuple):
            alike = len(images) == len(targets)
            if alike and all(isinstance(each, Mapping) and {"boxes", "labels"} <= set(each) for each in targets):
                return list(images), targets
    raise DataError("a batch for a detector must be (images, targets) with boxes and labels in each target")


def _detect(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    try:
        with torch.no_grad():
            found = model(images)
    except Exception as error:  # the model's own code: whatever it raises, it rejects the images
        msg = f"the network rejects a list of images, which detectors take: {type(error).__name__}: {first_line(error)}"
        raise InputError(msg) from error
    wanted = ("boxes", "scores", "labels")
    if not isinstance(found, list) or not all(isinstance(each, Mapping) and set(wanted) <= set(each) for each in found):
        kind = type(found).__name__
        raise InputError(f"the network gives a {kind}, not boxes, scores and labels for each image: it is no detector")
    return [{name: each[name].cpu() for name in wanted} for each in found]


def _check_labels(found: Sequence[Mapping[str, Tensor]], classes: int) -> None:
    """Where classes have names, what is found must be of them: another network's labels mean other things."""
    largest = max((int(each["labels"].max()) for each in found if len(each["labels"])), default=0)
    if 0 < classes < largest:
        what = f"the network finds objects of label {largest}, and the data have {classes} classes"
        raise InputError(f"{what}: they are not those that it was trained on")


def _truth(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: target[name].cpu() for name in ("boxes", "labels", "iscrowd") if name in target}


def _scores(found: Mapping[str, Tensor], names: Sequence[str], images: int) -> DetectionScores:
    """Scores from precision, shape (overlaps, recalls, classes, areas, detections); -1 stands for no objects."""
    at_50 = found["precision"][0, :, :, 0, -1]
    labels = found["classes"].reshape(-1).tolist()
    per_class = {
        names[label - 1] if 0 < label <= len(names) else str(label): float(values.mean())
        for label, values in zip(labels, at_50.T, strict=True)
        if bool((values > -1).all())
    }
    if not per_class:
        raise DataError("the data have no objects to evaluate on")
    return DetectionScores(
        map_50=float(found["map_50"]), map=float(found["map"]), map_50_per_class=per_class, images=images
    )
