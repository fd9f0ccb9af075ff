"""What of a model is pruned, and how it is scored."""

from __future__ import annotations

import torch

import mdp_fx
from mdp_fx.detectors.subject import subject_of
from tests.detectors.tiny import detector, images, targets


def test_a_plain_network_is_its_own_subject() -> None:
    model = torch.nn.Conv2d(3, 8, 3)
    subject = subject_of(model, (images(),))
    assert not subject.is_part
    assert subject.module is model
    assert subject.runnable() is model


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
