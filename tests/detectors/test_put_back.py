"""Slim layers in a copy of the detector."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mdp_fx.checkpoint import load_slim, save_slim
from mdp_fx.detectors.put_back import put_back
from mdp_fx.detectors.subject import subject_of
from mdp_fx.detectors.tensor_part import TensorPart, join
from mdp_fx.errors import ModelError
from mdp_fx.passes.choices import Analysis
from mdp_fx.pipeline import analyse, rewrite
from tests.detectors.own import Plain
from tests.detectors.tiny import DETECTORS, SIDE, detector, images, targets
from tests.pruning import error, random_kept, randomise, reference
from tests.slim_networks import RECIPE

REMOVED = {"body": "backbone.body.three", "ssd": "backbone.three"}


def pruned(
    model: nn.Module, removed: tuple[str, ...] = (), seed: int = 0
) -> tuple[TensorPart, Analysis, dict[str, list[int]], fx.GraphModule]:
    """(tensor part, analysis, kept units, slim tensor part) of random pruning."""
    part, inputs = join(model, (images(),))
    analysis = analyse(part, inputs)
    kept = random_kept(analysis.groups, np.random.default_rng(seed))
    return part, analysis, kept, rewrite(analysis, kept, removed)


def raw_maps(model: nn.Module, side: int) -> list[Tensor]:
    """What the tensor part of a detector gives for images of a size, on boxes of its own."""
    part, inputs = join(model, (images(2, side),))
    boxes = [torch.tensor([[4.0, 4.0, 30.0, 40.0]]).expand(2, 3, 4).to(value) for value in inputs[1:]]
    with torch.no_grad():
        return list(part(inputs[0], *boxes).values())


def block_of(name: str) -> str:
    """The residual block of a detector's body."""
    return REMOVED.get(name, REMOVED["body"])


@pytest.mark.parametrize("name", DETECTORS)
def test_same_class_with_the_maps_of_the_zeroed_dense_detector(name: str) -> None:
    model = detector(name).double()
    part, inputs = join(model, (images().double(),))
    analysis = analyse(part, inputs)
    assert block_of(name) in {block.name for block in analysis.blocks.removable}
    kept = random_kept(analysis.groups, np.random.default_rng(0))
    slim = rewrite(analysis, kept, [block_of(name)])
    made = put_back(model, part, analysis, slim)
    assert type(made) is type(model)
    assert sum(p.numel() for p in made.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    again, _ = join(made, (images().double(),))
    given = analysis.graph.example_inputs
    with torch.no_grad():
        expected = reference(analysis, kept, [block_of(name)]).run(*given)
        found = again(*given)
    assert list(expected) == list(found)
    assert error(expected, found) < 1e-12


@pytest.mark.parametrize("name", DETECTORS)
def test_it_trains_and_detects_at_other_sizes(name: str) -> None:
    model = detector(name)
    made = put_back(model, *_without_kept(pruned(model, (block_of(name),))))
    losses = made.train()(list(images(2)), targets(2))
    total = torch.stack([value.sum() for value in losses.values()]).sum()
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())
    if name != "ssd":
        made.transform.min_size, made.transform.max_size = (SIDE + 32,), SIDE + 96
    with torch.no_grad():
        found = made.eval()([torch.rand(3, 70, 90), torch.rand(3, 100, 64)])
    assert len(found) == 2
    assert {"boxes", "scores", "labels"} <= set(found[0])


def _without_kept(
    found: tuple[TensorPart, Analysis, dict[str, list[int]], fx.GraphModule],
) -> tuple[TensorPart, Analysis, fx.GraphModule]:
    part, analysis, _, slim = found
    return part, analysis, slim


@pytest.mark.parametrize("name", DETECTORS)
def test_slim_file_gives_the_same_detector(name: str, tmp_path: Path) -> None:
    model = detector(name)
    made = put_back(model, *_without_kept(pruned(model, (block_of(name),))))
    save_slim(tmp_path / "slim.pt", made, RECIPE, {})
    loaded = load_slim(tmp_path / "slim.pt").module
    assert type(loaded) is type(model)
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in made.state_dict().items()
    }
    for one, other in zip(raw_maps(made, 96), raw_maps(loaded, 96), strict=True):
        assert torch.equal(one, other)
    loaded.train()(list(images(2)), targets(2))


def test_what_it_says_of_its_channels_is_right() -> None:
    model = detector("faster_rcnn")
    part, analysis, kept, slim = pruned(model)
    made = put_back(model, part, analysis, slim)
    neck = next(group.name for group in analysis.groups if "fpn.layer_blocks" in group.name)
    assert made.backbone.out_channels == len(kept[neck]) < 32
    assert made.rpn.head.conv[0][0].in_channels == len(kept[neck])
    assert model.backbone.out_channels == 32


def test_only_what_a_removed_block_was_part_of_becomes_a_graph() -> None:
    model = detector("retinanet")
    made = put_back(model, *_without_kept(pruned(model, ("backbone.body.three",))))
    graphs = [path for path, module in made.named_modules() if isinstance(module, fx.GraphModule)]
    assert graphs == ["backbone.body.three"]
    made = put_back(model, *_without_kept(pruned(model)))
    assert not any(isinstance(module, fx.GraphModule) for module in made.modules())


def test_sizes_of_the_image_are_read_in_a_graph() -> None:
    """Without its finest lateral, the pyramid is a graph: the size it enlarges to must follow the image."""
    model = detector("retinanet")
    part, inputs = join(model, (images(),))
    analysis = analyse(part, inputs)
    lateral = next(block.name for block in analysis.blocks.removable if "fpn.inner_blocks.0" in block.name)
    made = put_back(model, part, analysis, rewrite(analysis, {}, [lateral]))
    assert isinstance(made.backbone.fpn, fx.GraphModule)
    zeroed = copy.deepcopy(model)
    for parameter in zeroed.backbone.fpn.inner_blocks[0].parameters():
        parameter.data.zero_()
    for side in (SIDE, 96, 160):
        for one, other in zip(raw_maps(zeroed, side), raw_maps(made, side), strict=True):
            assert error(one, other) < 1e-5


def test_the_mode_of_every_module_stays() -> None:
    model = detector("ssd").train()
    model.backbone.eval()
    made = put_back(model, *_without_kept(pruned(model, ("backbone.three",))))
    assert made.training
    assert made.head.training
    assert not any(module.training for module in made.backbone.modules())


class _Wide(nn.Module):
    """A head that counts on the number of channels that it was made with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.weight.shape[0] != self.channels:
            msg = "made for another width"
            raise ValueError(msg)
        return self.conv(x)


def test_a_module_that_counts_on_its_width_becomes_a_graph() -> None:
    model = detector("retinanet")
    model.backbone.fpn.layer_blocks[0] = _Wide(32)
    made = put_back(model, *_without_kept(pruned(model)))
    assert isinstance(made.backbone.fpn.layer_blocks[0], fx.GraphModule)
    raw_maps(made, 96)


class _Computing(nn.Module):
    """A head that computes with what it says of its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.out_channels**0.5


def test_a_module_that_computes_with_its_width_gives_the_same() -> None:
    model = detector("retinanet")
    model.backbone.fpn.layer_blocks[0] = _Computing(32)
    part, analysis, kept, slim = pruned(model)
    made = put_back(model, part, analysis, slim)
    again, _ = join(made, (images(),))
    given = analysis.graph.example_inputs
    with torch.no_grad():
        assert error(reference(analysis, kept, ()).run(*given), again(*given)) < 1e-5
    assert isinstance(made.backbone.fpn.layer_blocks[0], fx.GraphModule)
    assert made.backbone.fpn.layer_blocks[0].out_channels < 32


def test_a_removed_block_is_gone_under_all_its_names() -> None:
    model = detector("ssd")
    model.again = model.backbone.three
    made = put_back(model, *_without_kept(pruned(model, ("backbone.three",))))
    assert made.again is made.backbone.three
    assert not any(type(module).__name__ == "_Gone" for module in made.modules())


class _Tokens(Plain):
    """Its regions are given patches of images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(192, 16), nn.ReLU(), Places(), nn.Linear(16, 16))
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Any:
        patches = nn.functional.unfold(x, 8, stride=8).mT
        return self.found(self.head(self.stem(patches)))


class Places(nn.Module):
    """Adds what it learned for each of 64 places, and a block that may go."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.rand(64, 16))
        self.conv = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(x)
        return (x.reshape(-1, 64, 16) + self.places).relu()


def test_images_of_one_size_only() -> None:
    model = randomise(_Tokens()).eval()
    part, analysis, kept, slim = pruned(model, ("stem.2.conv",))
    made = put_back(model, part, analysis, slim)
    again, _ = join(made, (images(),))
    given = analysis.graph.example_inputs
    with torch.no_grad():
        assert error(reference(analysis, kept, ["stem.2.conv"]).run(*given), again(*given)) < 1e-5


class _Anchors(AnchorGenerator):
    """Anchors that count on the number of channels of the maps."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        assert feature_maps[0].shape[1] == 32, "maps must have 32 channels"
        return super().forward(image_list, feature_maps)


def test_a_fixed_width_is_told_with_what_to_do() -> None:
    model = detector("retinanet")
    model.anchor_generator = _Anchors(((8,), (16,), (32,), (48,)), ((0.5, 1.0),) * 4)
    subject = subject_of(model, (images(),))
    analysis = analyse(subject.module, subject.inputs)
    kept = random_kept(analysis.groups, np.random.default_rng(0))
    with pytest.raises(ModelError) as caught:
        subject.returned(analysis, rewrite(analysis, kept, ()))
    assert "maps must have 32 channels" in str(caught.value)
    assert "--keep" in str(caught.value)
