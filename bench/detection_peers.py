"""Half of every channel group of a detector: by our passes, and by Torch-Pruning in the two ways a user can have it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from bench.coverage_row import explain
from bench.detection_networks import boxes, head_channels, head_parameters, images, losses
from bench.peers import Run, count, first_half, theirs
from mdp_fx.detectors.subject import subject_of
from mdp_fx.graph.axes import free_dims
from mdp_fx.graph.ops.box_pooling import BoxPooling
from mdp_fx.pipeline import analyse, rewrite

AUTHORS = {
    "ssd": ("head",),
    "retinanet": ("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
    "fcos": (
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
        "head.regression_head.bbox_ctrness",
    ),
    "fasterrcnn": ("rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn", "roi_heads"),
    "maskrcnn": ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor", "roi_heads.mask_predictor"),
    "keypointrcnn": (
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "backbone.fpn.layer_blocks",
        "roi_heads.box_head",
        "roi_heads.box_predictor",
        "roi_heads.keypoint_predictor",
    ),
}
"""What the authors of Torch-Pruning leave alone, by family: examples/torchvision_models/torchvision_pruning.py."""


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """What comes of work: its value, or the reason why there is none, and seconds."""
    begin = time.perf_counter()
    try:
        found: dict[str, Any] = {"ok": True, "value": work()}
    except Exception as failure:  # noqa: BLE001 - whatever fails is the result
        found = {"ok": False, "reason": explain(failure)}
    return found | {"seconds": round(time.perf_counter() - begin, 2)}


def ours(model: nn.Module, name: str) -> Run:
    """Our analysis and rewrite, from the detector to the slim detector; nothing is measured."""
    begin = time.perf_counter()
    subject = subject_of(model, (images(name, 1),))
    analysis = analyse(subject.module, subject.inputs)
    made = subject.returned(analysis, rewrite(analysis, first_half(analysis.groups), ()))
    return Run(made, time.perf_counter() - begin)


def from_images(model: nn.Module, name: str) -> Run:
    """Torch-Pruning as its authors use it: on the detector itself, with the layers left alone that they leave alone."""
    family = next(family for family in AUTHORS if name.startswith(family))
    return theirs(model, (images(name, 1),), AUTHORS[family])


def from_raw_maps(model: nn.Module, name: str) -> Run:
    """Torch-Pruning on our tensor part, in which every head is in reach; it is told which layers make the outputs."""
    subject = subject_of(model, (images(name, 1),))
    graph = analyse(subject.module, subject.inputs).graph
    outputs = {
        path.rpartition(".")[0] for path, tensor, types in graph.stored() if tensor.ndim > 1 and not free_dims(types[0])
    }
    run = theirs(subject.module, subject.inputs, outputs)
    made = copy.deepcopy(model)
    part: Any = run.network
    for path in part.regions:
        if not isinstance(part.get_submodule(path), BoxPooling):
            made.set_submodule(path, part.get_submodule(path))
    return Run(made, run.seconds)


WAYS: dict[str, Callable[[nn.Module, str], Run]] = {
    "ours": ours,
    "torch_pruning": from_images,
    "torch_pruning_on_raw_maps": from_raw_maps,
}


def halved(model: nn.Module, name: str) -> dict[str, Any]:
    """What every way leaves of a detector: `ok` where something went and the rest still trains and detects."""
    return {way: _outcome(work, model, name) for way, work in WAYS.items()}


def _outcome(work: Callable[[nn.Module, str], Run], model: nn.Module, name: str) -> dict[str, Any]:
    done = attempt(lambda: work(model, name))
    if not done["ok"]:
        return done
    run: Run = done["value"]
    pruned = run.network
    found = {
        "parameters": count(pruned) / count(model),
        "head_parameters": head_parameters(pruned) / head_parameters(model),
        "head_channels": head_channels(pruned) / head_channels(model),
        "detects": attempt(lambda: boxes(pruned, name)),
        "trains": attempt(lambda: losses(pruned, name)),
        "seconds": round(run.seconds, 2),
    }
    works = found["detects"]["ok"] and found["trains"]["ok"]
    return {"ok": bool(found["parameters"] < 1 and works)} | found
