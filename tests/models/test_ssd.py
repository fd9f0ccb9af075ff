"""SSD assembled from torchvision's parts: the published shapes, training, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from torchvision.models import mobilenet_v2, resnet50
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from mdp_fx import models
from mdp_fx.errors import InputError


def maps(detector: Any, size: int) -> list[tuple[int, ...]]:
    """Shapes of the feature maps, without the batch."""
    shapes = detector.backbone.to("meta").eval()
    return [tuple(each.shape[1:]) for each in shapes(torch.empty(1, 3, size, size, device="meta")).values()]


def default_boxes(detector: Any, shapes: list[tuple[int, ...]], size: int) -> torch.Tensor:
    """Default boxes of one image, shape (boxes, 4)."""
    images = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    (boxes,) = detector.anchor_generator(images, [torch.zeros(1, *shape) for shape in shapes])
    return boxes


def test_ssd512_resnet50_has_the_published_maps_and_boxes() -> None:
    detector: Any = models.ssd512_resnet50()
    assert type(detector) is SSD
    assert detector.backbone.out_channels == [1024, 1024, 512, 256, 256, 256, 256]
    assert detector.anchor_generator.num_anchors_per_location() == [4, 6, 6, 6, 6, 4, 4]
    shapes = maps(detector, 512)
    sides = [64, 32, 16, 8, 4, 2, 1]
    assert shapes == [(c, s, s) for c, s in zip(detector.backbone.out_channels, sides, strict=True)]
    boxes = default_boxes(detector, shapes, 512)
    assert boxes.shape == (24564, 4)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert torch.isclose(width[0], torch.tensor(0.07 * 512))
    assert torch.isclose(width[2] / height[2], torch.tensor(2.0))
    assert torch.allclose(boxes[0, :2] + boxes[0, 2:], torch.tensor([8.0, 8.0]))  # twice the centre of the first cell
    assert torch.isclose(width[-4], torch.tensor(0.9 * 512))
    classes = [conv.out_channels for conv in detector.head.classification_head.module_list]
    assert classes == [21 * n for n in (4, 6, 6, 6, 6, 4, 4)]


def test_ssd300_resnet50_has_the_default_boxes_of_torchvisions_ssd300() -> None:
    detector: Any = models.ssd300_resnet50(num_classes=4)
    shapes = maps(detector, 300)
    assert [side for _, side, _ in shapes] == [38, 19, 10, 5, 3, 1]
    assert detector.backbone.out_channels == [1024, 512, 512, 256, 256, 256]
    published: Any = ssd300_vgg16(weights=None, weights_backbone=None)
    assert torch.equal(default_boxes(detector, shapes, 300), default_boxes(published, shapes, 300))
    assert len(default_boxes(detector, shapes, 300)) == 8732


def test_the_light_extras_make_a_second_map_of_512_channels() -> None:
    detector: Any = models.ssd512_resnet50(extras="light")
    assert maps(detector, 512)[:3] == [(1024, 64, 64), (512, 32, 32), (512, 16, 16)]
    assert detector.backbone.out_channels[1] == 512


def test_ssd300_mobilenet_v2_has_six_maps_at_any_size() -> None:
    detector: Any = models.ssd300_mobilenet_v2()
    shapes = maps(detector, 300)
    assert shapes == [(192, 38, 38), (576, 19, 19), (1280, 10, 10), (512, 5, 5), (256, 3, 3), (256, 2, 2)]
    assert detector.backbone.out_channels == [channels for channels, _, _ in shapes]
    assert detector.anchor_generator.num_anchors_per_location() == [4, 6, 6, 6, 4, 4]
    width, height = (default_boxes(detector, shapes, 300)[0, 2:] - default_boxes(detector, shapes, 300)[0, :2]).tolist()
    assert (width, height) == (pytest.approx(21), pytest.approx(21))
    small: Any = models.ssd300_mobilenet_v2(size=32)
    assert [side for _, side, _ in maps(small, 32)] == [4, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("name", models.__all__)
def test_detectors_train_and_detect(name: str) -> None:
    torch.manual_seed(0)
    size = {"ssd300_mobilenet_v2": 96, "ssd300_resnet50": 257, "ssd512_resnet50": 265}[name]
    detector = getattr(models, name)(num_classes=3, size=size)
    images = [torch.rand(3, 40, 50), torch.rand(3, 60, 30)]
    targets = [
        {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)},
    ]
    losses = detector.train()(images, targets)
    assert set(losses) == {"bbox_regression", "classification"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    with torch.no_grad():
        found = detector.eval()(images)
    assert [set(each) for each in found] == [{"boxes", "scores", "labels"}] * 2
    assert all(int(each["labels"].max()) <= 2 for each in found if len(each["labels"]))


@pytest.mark.parametrize(("name", "build"), [("ssd300_resnet50", resnet50), ("ssd300_mobilenet_v2", mobilenet_v2)])
def test_backbone_weights_may_be_a_state_dict(name: str, build: Any) -> None:
    backbone = build(weights=None)
    detector: Any = getattr(models, name)(weights_backbone=backbone.state_dict())
    own = {tuple(p.shape): p for p in detector.backbone.features.parameters()}
    trunk = [p for p in backbone.parameters() if p.ndim == 4]
    assert torch.equal(next(iter(detector.backbone.parameters())), trunk[0])
    assert any(torch.equal(own[tuple(p.shape)], p) for p in trunk[1:] if tuple(p.shape) in own)


def test_the_first_stages_can_be_held() -> None:
    def trained(detector: nn.Module) -> set[str]:
        return {
            name.split(".")[1] for name, p in detector.backbone.features.named_parameters(prefix="f") if p.requires_grad
        }

    assert trained(models.ssd300_resnet50()) == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert trained(models.ssd300_resnet50(trainable_backbone_layers=2)) == {"layer2", "layer3"}
    assert trained(models.ssd300_resnet50(trainable_backbone_layers=0)) == set()
    held: Any = models.ssd300_mobilenet_v2(trainable_backbone_layers=1)
    assert trained(held) == set()
    extra = {name.split(".")[0] for name, p in held.backbone.extra.named_parameters() if p.requires_grad}
    assert extra == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 256}, "images of 256 x 256 are too small for 6 feature maps: the smallest size is 257"),
        ({"size": 0}, "images of 0 x 0 are too small for 6 feature maps: the smallest size is 257"),
        ({"num_classes": 1}, "num_classes is 1: it counts the background and needs at least 2"),
        ({"extras": "lihgt"}, "unknown extras 'lihgt'; did you mean 'light'?"),
        ({"trainable_backbone_layers": 5}, "trainable_backbone_layers is 5; the backbone has 4 stages"),
        ({"weights_backbone": "IMAGENET1K"}, "torchvision's resnet50 has no weights 'IMAGENET1K'; did you mean"),
        ({"weights_backbone": {}}, "weights_backbone is no state dict of torchvision's resnet50: Missing key(s)"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        models.ssd300_resnet50(**options)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ssd512_resnet34'"):
        models.ssd512_resnet34  # noqa: B018
