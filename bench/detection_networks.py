"""The detectors that bench/detection.py prunes, and what a detector must do: have losses, find boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

import mdp_fx.models
from tests.pruning import randomise

SIDES = {
    "ssd512_resnet50": 288,
    "ssd300_resnet50": 288,
    "ssd300_mobilenet_v2": 128,
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 128,
    "retinanet_resnet50_fpn": 64,
    "retinanet_resnet50_fpn_v2": 64,
    "fcos_resnet50_fpn": 64,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 64,
    "fasterrcnn_mobilenet_v3_large_fpn": 64,
    "fasterrcnn_resnet50_fpn": 64,
    "fasterrcnn_resnet50_fpn_v2": 64,
    "maskrcnn_resnet50_fpn": 64,
    "maskrcnn_resnet50_fpn_v2": 64,
    "keypointrcnn_resnet50_fpn": 64,
}
"""Side of the images for each detector, small for the sake of time: an SSD needs some pixels to have all its maps."""

BOXES = {
    "rpn_post_nms_top_n_test": 32,
    "rpn_post_nms_top_n_train": 32,
    "box_batch_size_per_image": 32,
    "box_detections_per_img": 8,
}
"""Settings of the detectors with two stages: few boxes, whose heads would else take all the time."""

KEYPOINTS = 17
HEADS = ("head.", "rpn.", "roi_heads.")


def make(name: str) -> nn.Module:
    """A detector with random weights, none of which are zero, that leaves images at their size."""
    torch.manual_seed(0)
    side = SIDES[name]
    # Random weights are sure of nothing: whatever they find is to be seen.
    if name in mdp_fx.models.__all__:
        model = getattr(mdp_fx.models, name)(size=side, score_thresh=0.0)
    else:
        options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": side, "max_size": side}
        options |= BOXES | {"box_score_thresh": 0.0} if "rcnn" in name else {"score_thresh": 0.0}
        model = getattr(detection, name)(weights=None, weights_backbone=None, **options)
    model = randomise(model).eval()
    return _unsure(model, name) if name.startswith("ssd") else model


def _unsure(model: nn.Module, name: str) -> nn.Module:
    """An SSD whose logits deviate by 1.

    Random ones run into the hundreds: every score is then exactly 1, and rounding says which box suppresses which.
    """
    outputs: dict[nn.Module, Tensor] = {}
    levels = model.get_submodule("head.classification_head.module_list").children()
    last = [list(level.modules())[-1] for level in levels]
    hooks = [layer.register_forward_hook(lambda layer, _, output: outputs.update({layer: output})) for layer in last]
    with torch.no_grad():
        model(list(images(name, 1)))
        for layer, output in outputs.items():
            for parameter in layer.parameters():
                parameter /= output.std()
    for hook in hooks:
        hook.remove()
    return model


def images(name: str, count: int) -> Tensor:
    """Random images for a detector."""
    return torch.rand(count, 3, SIDES[name], SIDES[name], generator=torch.Generator().manual_seed(1))


def losses(model: nn.Module, name: str) -> dict[str, float]:
    """A detector's losses on two images, after a backward pass of their sum.

    Raises:
        ValueError: a loss is no number.
    """
    side = SIDES[name]
    target = {
        "boxes": torch.tensor([[0.1, 0.2, 0.7, 0.8]]) * side,
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, side, side, dtype=torch.uint8),
        "keypoints": torch.cat([torch.full((1, KEYPOINTS, 2), 0.5 * side), torch.ones(1, KEYPOINTS, 1)], 2),
    }
    model.train()
    try:
        found: dict[str, Tensor] = model(list(images(name, 2)), [dict(target) for _ in range(2)])
        torch.stack([value.sum() for value in found.values()]).sum().backward()
    finally:
        model.zero_grad()
        model.eval()
    if not found or not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise ValueError(f"the losses are {found}")
    return {key: float(value.detach().sum()) for key, value in found.items()}


def detect(model: nn.Module, name: str) -> list[dict[str, Tensor]]:
    """What a detector finds in two images, one of them of another size than it was pruned for.

    Raises:
        ValueError: it finds nothing, or what it finds is no number.
    """
    side = SIDES[name]
    with torch.no_grad():
        found: list[dict[str, Tensor]] = model.eval()([images(name, 1)[0, :, :, : side - 9], images(name, 2)[1]])
    if not all(len(each["boxes"]) and all(bool(value.isfinite().all()) for value in each.values()) for each in found):
        raise ValueError("there is an image without a finite box")
    return found


def boxes(model: nn.Module, name: str) -> int:
    """How many boxes a detector finds in both images."""
    return sum(len(each["boxes"]) for each in detect(model, name))


def _head_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Convolutions and linear layers outside of the backbone."""
    for path, module in model.named_modules():
        if path.startswith(HEADS) and isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            yield module


def head_parameters(model: nn.Module) -> int:
    """Parameters outside of the backbone."""
    return sum(p.numel() for path, p in model.named_parameters() if path.startswith(HEADS))


def head_channels(model: nn.Module) -> int:
    """Channels that the layers outside of the backbone give: what is pruned only where heads are pruned themselves."""
    return sum(
        layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]
        for layer in _head_layers(model)
    )
