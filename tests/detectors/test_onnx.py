"""Whether an exported detector finds the same."""

from __future__ import annotations

import pytest
import torch

from mdp_fx.detectors.onnx import _compare_detections, export_onnx
from mdp_fx.errors import InputError, ModelError, ParityError
from tests.detectors.own import Plain
from tests.detectors.tiny import detector, images


def found(scores: list[float], left: list[float]) -> dict[str, torch.Tensor]:
    """Detections with these scores, at these left edges."""
    edges = torch.tensor(left)
    boxes = torch.stack([edges, edges, edges + 10, edges + 10], 1)
    return {"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.ones(len(left), dtype=torch.int64)}


def test_equal_scores_may_suppress_others() -> None:
    _compare_detections(found([0.9, 0.5, 0.5], [0.0, 20.0, 40.0]), found([0.9, 0.5, 0.5], [0.0, 40.0, 60.0]))


@pytest.mark.parametrize(
    "other",
    [
        found([0.9, 0.5], [0.0, 20.0]),
        found([0.9, 0.5, 0.4], [0.0, 20.0, 40.0]),
        found([0.9, 0.5, 0.5], [5.0, 20.0, 40.0]),
    ],
)
def test_another_detection_is_told(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ParityError):
        _compare_detections(found([0.9, 0.5, 0.5], [0.0, 20.0, 40.0]), other)


def test_masks_are_compared_too() -> None:
    one, other = found([0.9, 0.5], [0.0, 20.0]), found([0.5, 0.9], [20.0, 0.0])
    one["masks"] = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    other["masks"] = one["masks"].flip(0)
    _compare_detections(one, {name: value.flip(0) for name, value in other.items()})
    with pytest.raises(ParityError):
        _compare_detections(one, {name: value.flip(0) for name, value in other.items()} | {"masks": other["masks"]})


def test_whole_is_for_detectors_of_torchvisions_form(tmp_path: object) -> None:
    with pytest.raises(InputError, match="--whole is for detectors"):
        export_onnx(torch.nn.Conv2d(3, 4, 1), images(), f"{tmp_path}/x.onnx", whole=True)
    with pytest.raises(ModelError, match="cannot export the whole of Plain"):
        export_onnx(Plain().eval(), images(), f"{tmp_path}/x.onnx", whole=True)


def test_a_detector_that_finds_nothing_is_compared_without_threshold(tmp_path: object) -> None:
    model = detector("ssd")
    model.score_thresh = 1.0
    assert not len(model(images())[0]["boxes"])
    report = export_onnx(model, images(), f"{tmp_path}/x.onnx", whole=True)
    assert report.max_abs_error > 0.0
    assert model.score_thresh == 1.0


def test_one_image(tmp_path: object) -> None:
    with pytest.raises(InputError, match="one image"):
        export_onnx(detector("ssd"), images(2), f"{tmp_path}/x.onnx", whole=True)
