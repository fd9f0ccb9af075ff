"""What a run refuses before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mdp_fx import training
from mdp_fx.errors import DataError, InputError, MdpFxError
from mdp_fx.train.config_file import read_config
from tests.train.small_runs import CLASSES, image_folder
from tests.training_runs import SMALL, Files, batches


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def make_narrow() -> list[tuple[Tensor, Tensor]]:
    return batches(4, (3, 8, 16))


def make_out_of_range() -> list[tuple[Tensor, Tensor]]:
    return batches(4, low=4, high=9)


def make_bytes() -> list[tuple[Tensor, Tensor]]:
    return [(images.byte(), labels) for images, labels in batches(4)]


def make_empty() -> list[tuple[Tensor, Tensor]]:
    return []


class Detector(nn.Module):
    """Gives what torchvision's detectors give."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": image.new_zeros(1, 4)} for image in images]


def make_detector() -> nn.Module:
    return Detector()


def make_flat_classifier() -> nn.Module:
    return nn.Linear(16, 4)


def make_ten_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["data.train=tests.test_training_setup:make_narrow"],
            DataError,
            "has shape 4x3x8x16, the network takes Nx3x16x16",
        ),
        (
            ["data.train=tests.test_training_setup:make_bytes"],
            DataError,
            "has uint8 inputs, which .* rejects: give it float",
        ),
        (
            ["data.train=tests.test_training_setup:make_out_of_range"],
            DataError,
            "lie outside of the network's 4 classes",
        ),
        (["data.val=tests.test_training_setup:make_out_of_range"], DataError, "lie outside of the network's 4 classes"),
        (["data.val=tests.test_training_setup:make_empty"], DataError, "the validation data has no batches"),
        (["model=tests.test_training_setup:make_detector"], InputError, "is a detector, and this trains classifiers"),
        (["data.train=tests.training_runs:make_iterator"], DataError, "an iterator, which ends after one epoch"),
        (["data.train=nothing"], DataError, "cannot read the data spec"),
        (["data.train=imagefolder:nowhere"], DataError, "no image folder nowhere"),
        (["data.batch=64"], DataError, "fewer than a batch of 64"),
        (["data.input=3x16"], InputError, "rejects an input of shape 2x3x16"),
        (["data.input=huge"], InputError, "is not a shape such as"),
        (["model=tests.cli.tiny:make_network"], InputError, "is no slim network: prune it first"),
        (["distill.logits=0.5"], InputError, "needs the dense network: name it with --teacher"),
        (
            ["distill.logits=0.5", "distill.teacher=tests.test_training_setup:make_ten_classes"],
            InputError,
            "the teacher has 10 outputs, the network has 4",
        ),
        (["precision=float16"], InputError, "float16 training needs a GPU"),
        (
            ["tune.mixup=1", "data.input=16", "model=tests.test_training_setup:make_flat_classifier"],
            InputError,
            "mixup and cutmix mix images, and data.input is 16",
        ),
        (["tune.accumulate=100"], InputError, r"batches an epoch, and a step takes 100 \(tune.accumulate\)"),
        (["tune.loss=tests.nowhere:loss"], DataError, "cannot be imported"),
    ],
)
def test_bad_input_is_one_clear_line(files: Files, overrides: list[str], error: type[MdpFxError], message: str) -> None:
    keys = {name: text for name, _, text in (part.partition("=") for part in overrides)}
    config = read_config(None, [*SMALL, *(f"{name}={text}" for name, text in keys.items())], {
        name: value for name, value in files.keys("out").items() if name not in keys
    })  # fmt: skip
    with pytest.raises(error, match=message) as told:
        training.run(config, prune=False)
    assert "\n" not in str(told.value)
    assert not (files.folder / "out.pt").exists()
    assert not (files.folder / "out-run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(files: Files) -> None:
    with pytest.raises(InputError, match="device cuda was asked for, but"):
        files.tune("out", device="cuda")


def test_folders_with_other_classes_are_refused(files: Files, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "other", 2, ("ant", "bee", "cat", "emu"))
    with pytest.raises(DataError, match="hold other classes: dog is in one of them only"):
        files.tune("out", **{"data.val": f"imagefolder:{other}"})
    more = image_folder(tmp_path / "more", 2, (*CLASSES, "emu"))
    with pytest.raises(InputError, match=r"has 5 classes, .* has 4 outputs"):
        files.tune("out", **{"data.train": f"imagefolder:{more}", "data.val": None})
