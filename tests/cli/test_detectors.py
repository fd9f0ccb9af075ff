"""Every command takes a detector, and gives one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet

import mdp_fx
from mdp_fx.models import ssd300_mobilenet_v2
from tests.cli.networks import BRIEF, TORCH
from tests.cli.running import Run
from tests.detectors.tiny import SIDE, detector, faster_rcnn, images, targets

MODEL = "tests.detectors.tiny:ssd"
TWO_STAGE = "tests.detectors.tiny:faster_rcnn"


def prune(run: Run, model: str, *args: str) -> None:
    done = run("prune", model, *TORCH, "--params", "50%", "-o", "slim.pt", "--recipe", "recipe.json", *args)
    assert done.code == 0, done.err


def test_prune_gives_the_same_class_which_trains_and_detects(run: Run) -> None:
    prune(run, TWO_STAGE, "--onnx", "slim.onnx")
    slim = mdp_fx.load("slim.pt")
    assert type(slim) is type(faster_rcnn())
    losses = slim.train()(list(images(2)), targets(2))
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(slim.eval()(list(images(2)))) == 2
    recipe = mdp_fx.Recipe.load("recipe.json")
    assert recipe.input_shapes == [[1, 3, SIDE, SIDE]]  # its own size, and of the images alone
    heads = [name for name in recipe.kept if name.startswith(("rpn.", "roi_heads."))]
    assert any(len(recipe.kept[name]) < recipe.group_sizes[name] for name in heads)
    session = onnxruntime.InferenceSession("slim.onnx", providers=["CPUExecutionProvider"])
    assert [len(value.shape) for value in session.get_inputs()] == [4, 3]  # images, and boxes to pool
    assert run("apply", TWO_STAGE, "--recipe", "recipe.json", "-o", "again.pt").code == 0
    again = mdp_fx.load("again.pt")
    for name, value in slim.state_dict().items():
        assert again.state_dict()[name].shape == value.shape


def pruned(run: Run, model: str, *args: str) -> list[str]:
    """Names of the groups that lose something."""
    prune(run, model, *args)
    recipe = mdp_fx.Recipe.load("recipe.json")
    return [name for name, size in recipe.group_sizes.items() if len(recipe.kept[name]) < size]


@pytest.mark.parametrize(
    ("model", "trunk"),
    [
        (MODEL, ("backbone",)),
        ("tests.detectors.tiny:retinanet", ("backbone.body",)),
        ("tests.cli.test_detectors:ssd_with_extras", ("backbone.features", "backbone.extra.0", "backbone.extra.1")),
    ],
)
def test_backbone_only_is_the_classifier_alone(run: Run, model: str, trunk: tuple[str, ...]) -> None:
    cut = pruned(run, model, "--backbone-only", "--params", "80%")
    assert cut
    assert all(name.startswith(tuple(f"{part}." for part in trunk)) for name in cut)


def ssd_with_extras() -> nn.Module:
    """SSD of 6 maps, 3 of them of extra layers."""
    return ssd300_mobilenet_v2(num_classes=2, size=SIDE)


def test_backbone_only_needs_a_backbone(run: Run) -> None:
    done = run("prune", "tests.cli.tiny:make_network", "--input", "3x16x16", *TORCH, "--backbone-only")
    assert done.code == 1
    assert done.err.strip().endswith("--backbone-only: Tiny has no module 'backbone'; name what to prune with --only")


class Own(RetinaNet):
    """A class with a forward of its own, which slim.pt does not know."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        return super().forward(images, targets)


def own() -> nn.Module:
    model = detector("retinanet")
    model.__class__ = Own
    return model


def test_a_class_of_ones_own_is_told_at_once_and_its_recipe_can_be_kept(run: Run) -> None:
    made = "tests.cli.test_detectors:own"
    asked = ("prune", made, *TORCH, "--params", "50%")
    done = run(*asked, "-o", "slim.pt", "--recipe", "recipe.json")
    assert done.code == 1
    assert "slim.pt cannot hold this detector: " in done.err
    assert "without --output and with --recipe" in done.err
    assert not any(Path().glob("*.json"))
    done = run(*asked, "--recipe", "recipe.json")
    assert done.code == 0, done.err
    assert "only its recipe is kept" in done.err
    assert not any(Path().glob("*.pt"))
    slim = mdp_fx.apply(own().eval(), mdp_fx.Recipe.load("recipe.json"))
    assert type(slim) is Own
    assert sum(p.numel() for p in slim.parameters()) < 0.6 * sum(p.numel() for p in own().parameters())


def test_other_commands_take_it(run: Run) -> None:
    prune(run, MODEL)
    facts = run("inspect", MODEL, "--json").json
    assert "backbone.one.0" in str(facts)
    rows = run("bench", MODEL, "slim.pt", *TORCH, *BRIEF, "--json").json["networks"]
    assert [row["name"] for row in rows] == [MODEL, "slim.pt"]
    compared = run("diff", MODEL, "slim.pt", "--json").json
    assert compared["params"][1] < compared["params"][0]
    assert run("profile", MODEL, *TORCH, "--step", "32", "--json").json["dense_ms"] > 0


def test_export_of_maps_and_of_the_whole(run: Run) -> None:
    maps = run("export", MODEL, "-o", "maps.onnx", "--json").json
    assert maps["dynamic_batch"]
    whole = run("export", MODEL, "--whole", "-o", "whole.onnx", "--json").json
    assert not whole["dynamic_batch"]
    session = onnxruntime.InferenceSession("whole.onnx", providers=["CPUExecutionProvider"])
    assert {"boxes", "scores", "labels"} == {value.name for value in session.get_outputs()}


def test_images_below_the_receptive_field(run: Run) -> None:
    done = run("inspect", "torchvision:ssd300_vgg16", "--input", "3x96x96")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "too small for SSD" in done.err
    assert "backbone.extra" in done.err
    assert "--input" in done.err


@pytest.mark.parametrize("extra", [("--to", "tensorrt"), ("--dtype", "float16")])
def test_whole_is_for_onnx_alone(run: Run, extra: tuple[str, str]) -> None:
    done = run("export", MODEL, "--whole", "-o", "x.onnx", *extra)
    assert done.code == 2
    assert not Path("x.onnx").exists()
