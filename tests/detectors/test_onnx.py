"""Whether an exported detector finds the same."""

from __future__ import annotations

import pytest
import torch

from mdp_fx.detectors.onnx import _compare_detections, export_onnx
from mdp_fx.errors import InputError, ParityError
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


def test_one_image(tmp_path: object) -> None:
    with pytest.raises(InputError, match="one image"):
        export_onnx(detector("ssd"), images(2), f"{tmp_path}/x.onnx", whole=True)
