"""What leaves the regions of a detector, and what comes from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mdp_fx.detectors.observation import observe
from mdp_fx.detectors.subject import subject_of
from mdp_fx.detectors.tensor_part import join
from mdp_fx.errors import ModelError
from mdp_fx.graph.ops.box_pooling import BoxPooling
from mdp_fx.passes.channel_groups import find_frozen
from mdp_fx.pipeline import analyse, rewrite
from tests.detectors import own
from tests.detectors.tiny import SIDE, detector, images
from tests.pruning import random_kept, randomise


def made(kind: type[nn.Module]) -> nn.Module:
    """A detector with weights that leave nothing zero."""
    torch.manual_seed(0)
    return randomise(kind()).eval()


def prunable(model: nn.Module) -> set[str]:
    """The layers of a detector that lose channels, of which a slim one then runs."""
    subject = subject_of(model, (images(),))
    analysis = analyse(subject.module, subject.inputs)
    kept = random_kept(analysis.groups, np.random.default_rng(0))
    with torch.no_grad():
        assert len(subject.returned(analysis, rewrite(analysis, kept, ()))(images())) == 1
    free = {name for group in analysis.groups for name in group.modules}
    return free - {row.where for row in find_frozen(analysis.graph)}


def test_what_only_regions_read_is_pruned() -> None:
    assert "stem.0" in prunable(made(own.Plain))


@pytest.mark.parametrize(
    "kind", [own.Dropped, own.Twice, own.Weight, own.Inner, own.Passed, own.InPlace, own.View, own.Trained]
)
def test_what_other_code_reads_keeps_its_channels(kind: type[nn.Module]) -> None:
    left = prunable(made(kind))
    assert "stem.0" not in left
    assert kind is own.Passed or "head.0" in left


@pytest.mark.parametrize("kind", [own.Plain, own.Twice, own.InPlace, own.View, own.Scalar, own.OwnWeights])
def test_the_part_gives_what_the_detector_gives(kind: type[nn.Module]) -> None:
    model = made(kind)
    (call,) = observe(model, (images(),), ["head"]).calls["head"]
    part, inputs = join(model, (images(),))
    with torch.no_grad():
        assert torch.allclose(part(*inputs)["head"], call.copies[1][0], atol=1e-6)


def test_writes_that_cannot_be_seen_are_told() -> None:
    with pytest.raises(ModelError, match=r"Hidden cannot be taken apart.*head"):
        join(made(own.Hidden), (images(),))


def test_scalars_and_parameters_are_no_inputs() -> None:
    for kind in (own.Scalar, own.OwnWeights):
        part, inputs = join(made(kind), (images(),))
        assert part.regions == ("stem", "head")
        assert [tuple(value.shape) for value in inputs] == [(1, 3, SIDE, SIDE)]
    assert "stem.0" not in prunable(made(own.OwnWeights))


def test_a_layer_that_only_training_uses_splits_its_region() -> None:
    model = made(own.Plain)
    model.stem = own.TrainedStem()
    part, _ = join(model.eval(), (images(),))
    assert {"stem.0", "stem.2", "head"} <= set(part.regions)
    assert "aux.weight" in part.refused["stem"][1]


@pytest.mark.parametrize(("name", "limits"), [("faster_rcnn", [20]), ("mask_rcnn", [20, 10])])
def test_boxes_are_those_that_the_settings_allow(name: str, limits: list[int]) -> None:
    model = detector(name)
    for threshold in (0.0, 1.0):
        model.roi_heads.score_thresh = threshold
        _, inputs = join(model, (images(),))
        assert [value.shape[1] for value in inputs[1:]] == limits
    model.transform.min_size, model.transform.max_size = (2 * SIDE,), 2 * SIDE
    part, inputs = join(model, (images(),))
    assert [value.shape[1] for value in inputs[1:]] == [round(limit / 4) for limit in limits]
    assert sum(isinstance(module, BoxPooling) for module in part.modules()) == len(limits)
