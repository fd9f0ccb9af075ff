"""`mdp-fx evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from mdp_fx.cli.loading import load
from tests.cli.running import Run
from tests.voc_folder import write_voc

CLASSES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
    "sheep,sofa,train,tvmonitor"
)
"""The 20 of Pascal VOC, which the network knows; the data has three of them."""


@pytest.fixture
def voc(folder: Path) -> Path:
    return write_voc(folder / "voc")


def test_precision_of_every_class_is_shown(run: Run, voc: Path) -> None:
    done = run("evaluate", "ssd300-mobilenet-v2", "--data", "voc:voc:train", "--classes", CLASSES)
    assert done.code == 0, done.err
    for text in ("ssd300-mobilenet-v2: mAP@0.5 ", "voc:voc:train, 3 images", "cat ", "dog ", "the weights are random"):
        assert text in done.out
    assert "bird" not in done.out  # the train split has none


def test_as_json_of_a_state_dict(run: Run, voc: Path) -> None:
    torch.save(load("ssd300-mobilenet-v2", None, False).module.state_dict(), "weights.pt")
    command = ("evaluate", "weights.pt", "--arch", "ssd300-mobilenet-v2", "--data", "voc:voc", "--batch", "2", "--json")
    facts = run(*command, "--classes", CLASSES).json
    assert (facts["model"], facts["data"], facts["images"]) == ("weights", "voc:voc", 1)
    assert list(facts["map_50_per_class"]) == ["bird"]
    assert 0 <= facts["map"] <= facts["map_50"] <= 1


def test_classes_say_the_order_of_the_labels(run: Run, voc: Path) -> None:
    command = ("evaluate", "ssd300-mobilenet-v2", "--data", f"voc:{voc}:train", "--json", "--classes")
    other = CLASSES.replace("cat,", "").replace("dog,", "dog, cat,")
    assert list(run(*command, other).json["map_50_per_class"]) == ["dog", "cat"]
    done = run(*command, "cat")
    assert done.code == 1
    assert "a.xml has an object of class 'dog'; the classes are cat" in done.err


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("ssd300-mobilenet-v2", "voc:voc:val", "there is no split 'val' in voc/ImageSets/Main; there are test, train"),
        ("ssd300-mobilenet-v2", "voc:nothing", "there is no folder nothing"),
        ("ssd300-mobilenet-v2", "imagefolder:voc", "imagefolder:voc has images without boxes"),
        ("ssd300-mobilenet", "voc:voc", "there is no file ssd300-mobilenet; did you mean ssd300-mobilenet-v2?"),
        ("tests.cli.tiny:make_network", "voc:voc", "the network rejects a list of images, which detectors take"),
    ],
)
@pytest.mark.usefixtures("voc")
def test_mistakes_are_one_line(run: Run, model: str, data: str, says: str) -> None:
    done = run("evaluate", model, "--data", data)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"mdp-fx: error: {says}")
    assert done.err.count("\n") == 1
