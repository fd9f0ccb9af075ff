"""Small detectors of torchvision's own classes, in all their kinds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from tests.pruning import randomise

SIDE = 64
CLASSES = 3


def body(*returned: str) -> IntermediateLayerGetter:
    """Four stages of strides 4, 8, 16, 16, of which the last one is a residual block that may go."""
    stages = OrderedDict(
        stem=Conv2dNormActivation(3, 16, stride=4),
        one=Conv2dNormActivation(16, 24, stride=2),
        two=Conv2dNormActivation(24, 32, stride=2),
        three=BasicBlock(32, 32),
    )
    return IntermediateLayerGetter(nn.Sequential(stages), {name: str(i) for i, name in enumerate(returned)})


def pyramid(extra: Any = None) -> BackboneWithFPN:
    """Maps of strides 8 and 16 with 32 channels, and what `extra` adds."""
    plain = nn.Sequential(OrderedDict(body("one", "three").items()))
    return BackboneWithFPN(plain, {"one": "0", "three": "1"}, [24, 32], 32, extra)


def _boxes(pixels: int = 7) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0", "1"], pixels, 2)


def _two_stage(kind: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    anchors = AnchorGenerator(((16,), (32,), (48,)), ((0.5, 1.0, 2.0),) * 3)
    heads: dict[str, Any] = {"box_roi_pool": _boxes(), **settings}
    heads |= {"box_head": TwoMLPHead(32 * 7 * 7, 64), "box_predictor": FastRCNNPredictor(64, CLASSES)}
    heads |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10}
    return kind(pyramid(LastLevelMaxPool()), None, min_size=SIDE, max_size=SIDE, rpn_anchor_generator=anchors, **heads)


def faster_rcnn() -> nn.Module:
    """Two stages."""
    return _two_stage(FasterRCNN)


def mask_rcnn() -> nn.Module:
    """Two stages, and a mask for each box."""
    heads = {"mask_head": MaskRCNNHeads(32, (32, 32), 1), "mask_predictor": MaskRCNNPredictor(32, 32, CLASSES)}
    return _two_stage(MaskRCNN, mask_roi_pool=_boxes(14), **heads)


def keypoint_rcnn() -> nn.Module:
    """Two stages, and points for each box."""
    heads = {"keypoint_head": KeypointRCNNHeads(32, (32, 32)), "keypoint_predictor": KeypointRCNNPredictor(32, 5)}
    return _two_stage(KeypointRCNN, keypoint_roi_pool=_boxes(14), **heads)


def retinanet() -> nn.Module:
    """Heads that all levels share."""
    anchors = AnchorGenerator(((8,), (16,), (32,), (48,)), ((0.5, 1.0),) * 4)
    backbone = pyramid(LastLevelP6P7(32, 32))
    return RetinaNet(backbone, CLASSES, min_size=SIDE, max_size=SIDE, anchor_generator=anchors)


def fcos() -> nn.Module:
    """Heads that all levels share, with group norms, which need more than one place."""
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    backbone = pyramid(LastLevelMaxPool())
    return FCOS(backbone, CLASSES, min_size=SIDE, max_size=SIDE, anchor_generator=anchors)


def ssd() -> nn.Module:
    """A head for each level."""
    return SSD(body("one", "three"), DefaultBoxGenerator([[2], [2]]), (SIDE, SIDE), CLASSES)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build for build in (faster_rcnn, mask_rcnn, keypoint_rcnn, retinanet, fcos, ssd)
}


def detector(name: str) -> nn.Module:
    """One of DETECTORS, with weights that leave nothing zero."""
    torch.manual_seed(0)
    return randomise(DETECTORS[name]()).eval()


def images(count: int = 1, side: int = SIDE) -> Tensor:
    """Random images."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def targets(count: int) -> list[dict[str, Tensor]]:
    """One object in each image, with all that any detector asks for."""
    return [
        {
            "boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, SIDE, SIDE, dtype=torch.uint8),
            "keypoints": torch.tensor([[[12.0 + i, 20.0, 1.0] for i in range(5)]]),
        }
        for _ in range(count)
    ]
