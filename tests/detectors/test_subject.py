"""What of a model is pruned, and how it is scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

import mdp_fx
from mdp_fx.detectors.subject import subject_of
from mdp_fx.errors import InputError, ModelError
from tests.detectors.tiny import detector, images, targets


def test_a_plain_network_is_its_own_subject() -> None:
    model = nn.Conv2d(3, 8, 3)
    subject = subject_of(model, (images(),))
    assert not subject.is_part
    assert subject.module is model
    assert subject.runnable() is model


def test_what_a_detector_cannot_be_scored_by_is_told_before_anything_is_done() -> None:
    model = detector("ssd")
    data = [(list(images(2)), targets(2))]
    for options, says in (
        ({"loss": torch.nn.functional.mse_loss}, "SSD is a detector, which is scored by its own losses: leave out the"),
        ({"importance": "activation"}, "activation importance needs a network that can be traced whole, and SSD is a"),
    ):
        with pytest.raises(InputError, match=says):
            mdp_fx.prune(model, images(), params="50%", target="torch:cpu", threads=1, data=data, **options)
        with pytest.raises(InputError, match=says):
            mdp_fx.score(model, images(), data=data, **options)


class Anchors(DefaultBoxGenerator):
    """Default boxes that count on the number of channels of the maps."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        assert feature_maps[0].shape[1] == 24, "maps must have 24 channels"
        return super().forward(image_list, feature_maps)


def test_a_width_that_is_counted_on_is_told_before_anything_is_measured() -> None:
    stages: list[str] = []
    model: Any = detector("ssd")
    model.anchor_generator = Anchors([[2], [2]])
    with pytest.raises(ModelError, match=r"maps must have 24 channels.*--keep"):
        mdp_fx.prune(model, images(), latency="50%", target="torch:cpu", threads=1, stage=stages.append)
    assert stages[-1] == "try the smallest sizes"


def test_taylor_takes_a_detectors_own_losses() -> None:
    model = detector("ssd")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = [(list(images(2)), targets(2))] * 2
    done = mdp_fx.prune(model, images(), params="50%", target="torch:cpu", threads=1, data=data)
    assert done.report.importance == "taylor"
    assert type(done.module) is type(model)
    assert not any(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_torch_export_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError) as caught:
        mdp_fx.inspect(detector("ssd"), images(), front_end="export")
    assert "leave --front-end" in str(caught.value)
    assert "\n" not in str(caught.value)


class _OneRecord(nn.Module):
    """Gives one record of boxes for all images, as the detectors of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pred_boxes": self.stem(x).flatten(2).mT}


def test_a_detector_that_comes_out_as_a_graph_is_told() -> None:
    found = mdp_fx.inspect(_OneRecord().eval(), images())
    assert any("a graph that gives boxes, not a _OneRecord that gives losses" in fact for fact in found.baked_in)


def test_how_many_boxes_count_is_told() -> None:
    assert any("20, 10 of each image" in fact for fact in mdp_fx.inspect(detector("mask_rcnn"), images()).baked_in)


def test_scores_by_losses_are_the_same_twice() -> None:
    model, data = detector("faster_rcnn"), [(list(images(2)), targets(2))]
    state = torch.random.get_rng_state()
    first = mdp_fx.score(model, images(), data=data)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    again = mdp_fx.score(model, images(), data=data)
    for one, other in zip(first.layers, again.layers, strict=True):
        assert one.values.tolist() == other.values.tolist()
