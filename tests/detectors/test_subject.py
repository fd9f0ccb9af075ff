"""What of a model is pruned, and how it is scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

import mdp_fx
from mdp_fx.detectors.subject import subject_of
from mdp_fx.errors import InputError, ModelError
from tests.detectors.tiny import detector, images, targets


def test_a_plain_network_is_its_own_subject() -> None:
    model = torch.nn.Conv2d(3, 8, 3)
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
