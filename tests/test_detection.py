"""Average precision, on detectors that say what they are told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision")
pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from mdp_fx.detection import evaluate
from mdp_fx.detection_data import voc_loader
from mdp_fx.errors import DataError, InputError
from mdp_fx.models import ssd300_mobilenet_v2
from tests.voc_folder import write_voc


class Told(nn.Module):
    """Gives each image the boxes that were told for it, in turn."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.answers = answers
        self.asked = 0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        found = self.answers[self.asked : self.asked + len(images)]
        self.asked += len(images)
        return found


def boxes(*corners: tuple[float, ...]) -> Tensor:
    return torch.tensor(corners).reshape(-1, 4)


def answer(where: Tensor, labels: list[int], scores: list[float] | None = None) -> dict[str, Tensor]:
    return {
        "boxes": where,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores if scores is not None else [0.9] * len(labels)),
    }


SQUARE, OTHER = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0)


def batch(*targets: dict[str, Tensor]) -> list[Any]:
    return [([torch.zeros(3, 32, 32)] * len(targets), list(targets))]


def target(where: Tensor, labels: list[int], **further: Tensor) -> dict[str, Tensor]:
    return {"boxes": where, "labels": torch.tensor(labels, dtype=torch.int64), **further}


def test_a_detector_that_is_right_has_one_and_one_that_is_wrong_zero() -> None:
    data = batch(target(boxes(SQUARE, OTHER), [1, 2]))
    right = Told([answer(boxes(SQUARE, OTHER), [1, 2])]).train()
    found = evaluate(right, data, classes=["cat", "dog"])
    assert (found["map_50"], found["map"], found["images"]) == (pytest.approx(1.0), pytest.approx(1.0), 1)
    assert found["map_50_per_class"] == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    assert right.training
    swapped = evaluate(Told([answer(boxes(SQUARE, OTHER), [2, 1])]), data)
    assert (swapped["map_50"], swapped["map_50_per_class"]) == (0.0, {"1": 0.0, "2": 0.0})


def test_half_of_the_objects_are_half_of_the_precision_and_overlap_counts() -> None:
    data = batch(target(boxes(SQUARE), [1]), target(boxes(OTHER), [1]))
    half = evaluate(Told([answer(boxes(SQUARE), [1]), answer(boxes(), [])]), data)
    assert half["map_50"] == pytest.approx(51 / 101)  # recalls 0 to 0.5 of the 101
    near = evaluate(Told([answer(boxes((0, 0, 10, 6.2)), [1]), answer(boxes((20, 20, 30, 26.2)), [1])]), data)
    assert near["map_50"] == pytest.approx(1.0)
    assert near["map"] == pytest.approx(0.3)  # an overlap of 0.62 passes 0.5, 0.55 and 0.6 of the ten thresholds


def test_classes_without_objects_are_left_out_and_difficult_objects_do_not_count() -> None:
    data = batch(target(boxes(SQUARE, OTHER), [1, 1], iscrowd=torch.tensor([0, 1])))
    assert evaluate(Told([answer(boxes(SQUARE), [1])]), data)["map_50"] == pytest.approx(1.0)
    extra = evaluate(Told([answer(boxes(SQUARE, OTHER), [1, 2])]), data, classes=["cat", "dog"])
    assert extra["map_50_per_class"] == {"cat": pytest.approx(1.0)}


def test_a_detector_of_torchvision_on_a_voc_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = ssd300_mobilenet_v2(num_classes=4, size=64)
    loader = voc_loader(f"{write_voc(tmp_path / 'voc')}:train", None, batch_size=2)
    found = evaluate(detector, loader)
    assert (found["images"], list(found["map_50_per_class"])) == (3, ["cat", "dog"])
    assert 0 <= found["map"] <= found["map_50"] <= 1
    assert evaluate(detector, loader, batches=1)["images"] == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the data have no images"),
        (batch(target(boxes(), [])), "the data have no objects"),
        ([torch.zeros(1)], "must be .images, targets. with boxes and labels"),
        ([(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))], "must be .images, targets. with boxes and labels"),
        ([(torch.zeros(2, 3, 4, 4), [target(boxes(), [])])], "must be .images, targets. with boxes and labels"),
    ],
)
def test_data_that_cannot_be_evaluated_on(data: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        evaluate(Told([answer(boxes(), [])]), data)


def test_networks_that_are_no_detectors() -> None:
    data = batch(target(boxes(SQUARE), [1]))
    with pytest.raises(InputError, match="the network rejects a list of images, which detectors take: TypeError"):
        evaluate(nn.Conv2d(3, 4, 3), data)
    with pytest.raises(InputError, match="gives a list, not boxes, scores and labels for each image"):
        evaluate(nn.Identity(), data)


def test_a_label_that_the_data_do_not_have_is_told() -> None:
    data = batch(target(boxes(SQUARE), [1]))
    with pytest.raises(InputError, match="the network finds objects of label 87, and the data have 2 classes"):
        evaluate(Told([answer(boxes(SQUARE, OTHER), [1, 87])]), data, classes=["cat", "dog"])


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.detection", None)
    with pytest.raises(InputError, match=r"mdp-fx\[detection\]"):
        evaluate(nn.Identity(), [])
