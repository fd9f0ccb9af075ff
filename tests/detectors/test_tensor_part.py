"""The traceable modules of a detector, joined."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx.detectors.observation import first_result, is_detector, observe, own_size
from mdp_fx.detectors.tensor_part import join
from mdp_fx.errors import InputError, ModelError
from mdp_fx.passes.channel_groups import find_frozen
from mdp_fx.pipeline import analyse
from tests.detectors.own import Plain
from tests.detectors.tiny import SIDE, detector, images

REGIONS = {
    "ssd": ("backbone", "head"),
    "retinanet": ("backbone", "head"),
    "fcos": ("backbone", "head"),
    "faster_rcnn": ("backbone", "rpn.head", "roi_heads.box_roi_pool", "roi_heads.box_head", "roi_heads.box_predictor"),
    "mask_rcnn": (*["roi_heads.mask_roi_pool", "roi_heads.mask_head", "roi_heads.mask_predictor"],),
    "keypoint_rcnn": (*["roi_heads.keypoint_roi_pool", "roi_heads.keypoint_head", "roi_heads.keypoint_predictor"],),
}


@pytest.mark.parametrize("name", REGIONS)
def test_regions_are_the_largest_modules_that_can_be_traced(name: str) -> None:
    part, inputs = join(detector(name), (images(),))
    expected = REGIONS[name] if name not in ("mask_rcnn", "keypoint_rcnn") else REGIONS["faster_rcnn"] + REGIONS[name]
    assert part.regions == expected
    assert inputs[0].shape == (1, 3, SIDE, SIDE)
    assert all(boxes.ndim == 3 and boxes.shape[2] == 4 for boxes in inputs[1:])
    assert len(inputs) == 1 + sum("pool" in region for region in expected)


def test_it_gives_what_the_detector_gives_its_post_processing() -> None:
    model = detector("retinanet")
    seen = observe(model, (images(2),))
    (call,) = seen.calls["head"]
    part, inputs = join(model, (images(2),))
    with torch.no_grad():
        maps = part(*inputs)
    assert set(maps) == {"head.cls_logits", "head.bbox_regression"}
    for name, value in call.result.items():
        assert torch.equal(maps[f"head.{name}"], value)


def test_boxes_are_pooled_as_the_detector_pools_them() -> None:
    model = detector("faster_rcnn")
    seen = observe(model, (images(2),))
    (call,) = seen.calls["roi_heads.box_predictor"]
    counts = [len(boxes) for boxes in seen.calls["roi_heads.box_roi_pool"][0].given[0][1]]
    assert counts[0] == counts[1]  # so that none is repeated
    part, inputs = join(model, (images(2),))
    with torch.no_grad():
        maps = part(*inputs)
    assert torch.allclose(maps["roi_heads.box_predictor.0"], call.result[0], atol=1e-6)


def test_the_pyramid_is_tied_to_what_reads_it_and_only_raw_maps_are_frozen() -> None:
    part, inputs = join(detector("faster_rcnn"), (images(),))
    analysis = analyse(part, inputs)
    assert analysis.graph.batch is not None
    made = ("backbone.fpn.layer_blocks.0.0.weight", 0)
    (neck,) = [group for group in analysis.groups if made in {(m.tensor, m.axis) for m in group.members}]
    assert {"rpn.head.conv.0.0", "roi_heads.box_head.fc6"} <= {m.tensor.rpartition(".")[0] for m in neck.members}
    frozen = {row.where for row in find_frozen(analysis.graph)}
    predictors = {"rpn.head.cls_logits", "rpn.head.bbox_pred"}
    assert predictors <= frozen
    assert not any(where.startswith("backbone.fpn") for where in frozen)


def test_images_of_the_size_that_was_asked_for_reach_the_backbone() -> None:
    model = detector("ssd")
    assert own_size(model) == (SIDE, SIDE)
    _, inputs = join(model, (images(1, 96),))
    assert inputs[0].shape == (1, 3, 96, 96)
    assert model.transform.fixed_size == (SIDE, SIDE)


def test_too_small_images_are_told_with_the_module() -> None:
    with pytest.raises(InputError) as caught:
        observe(detector("fcos"), (images(1, 32),))
    assert "head." in str(caught.value)
    assert "--input" in str(caught.value)


class _Rows(nn.Module):
    """One dictionary for each image, of rows that it picks by their values; its head sees rows of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        rows = self.stem(x).flatten(2).mT.flatten(0, 1)
        rows = rows[rows.sum(1).argsort()[:7]]
        return [{"found": self.head(rows)} for _ in range(len(x))]


def test_rows_that_are_no_examples_leave_the_batch_open() -> None:
    model = _Rows().eval()
    assert is_detector(first_result(model, (images(),)))
    part, inputs = join(model, (images(),))
    assert part.regions == ("stem", "head")
    assert [tuple(value.shape) for value in inputs] == [(1, 3, SIDE, SIDE), (1, 7, 16)]
    analysis = analyse(part, inputs)
    assert analysis.graph.batch is not None
    assert [group.size for group in analysis.groups] == [16]
    frozen = {row.where for row in find_frozen(analysis.graph)}
    assert "stem" in frozen  # read by code that is not traced


class _Opaque(nn.Module):
    """Nothing of it can be traced."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"found": each[each > 0]} for each in x]


class _Deciding(nn.Sequential):
    """Decides on entries, as does the one around it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.max() < 1e9 else x


class _Weighing(nn.Module):
    """Holds what it computes with, and decides on entries."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if x.max() < 1e9 else x


def test_what_is_taken_apart_is_told() -> None:
    model = Plain()
    model.stem = _Deciding(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 16, 1))
    found = mdp_fx.inspect(model.eval(), images())
    (row,) = (row for row in found.frozen if row.where == "stem")
    assert (row.size, row.reason[:12]) == (16, "taken apart:")
    assert "entries" in row.reason
    model.stem, model.head = _Weighing(), nn.Identity()
    with pytest.raises(ModelError, match=r"can be traced; stem taken apart: .* entries"):
        mdp_fx.inspect(model, images())


def test_nothing_to_trace() -> None:
    with pytest.raises(ModelError, match="none of its modules can be traced"):
        join(_Opaque(), (images(),))


def test_what_is_no_detector() -> None:
    assert not is_detector(first_result(nn.Conv2d(3, 4, 1), (images(),)))
    assert first_result(nn.Linear(5, 4), (images(),)) is None
