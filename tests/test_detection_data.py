"""Folders in Pascal VOC's format: what is read, how it is transformed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from mdp_fx.data import load_detection_loader, load_loader
from mdp_fx.detection_data import VocDetection, voc_loader
from mdp_fx.errors import DataError
from tests.voc_folder import OBJECTS, annotation, write_voc


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc")


def message(path: Path | str, split: str = "train", classes: list[str] | None = None) -> str:
    with pytest.raises(DataError) as refused:
        VocDetection(path, split, classes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_boxes_labels_and_images_of_a_split(voc: Path) -> None:
    data = VocDetection(voc)
    assert (len(data), data.names, data.classes) == (3, ("a", "b", "c"), ("bird", "cat", "dog"))
    image, target = data[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 16, 24))
    assert target["boxes"].tolist() == [[0, 0, 10, 12], [4, 5, 20, 16]]  # VOC counts pixels from 1
    assert target["labels"].tolist() == [3, 2]
    assert target["iscrowd"].tolist() == [0, 1]
    assert tuple(data[2][1]["boxes"].shape) == (0, 4)


def test_classes_may_be_given_in_an_order_of_ones_own(voc: Path) -> None:
    assert VocDetection(voc, classes=["dog", "cat"])[0][1]["labels"].tolist() == [1, 2]


@pytest.mark.parametrize("place", [".", "BCCD", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_layouts_of_torchvision_and_of_a_plain_folder_are_found(tmp_path: Path, place: str) -> None:
    write_voc(tmp_path / "data" / place)
    assert len(VocDetection(tmp_path / "data", "test")) == 1


def test_what_voc_detection_of_torchvision_reads_is_the_same(tmp_path: Path) -> None:
    from torchvision.datasets import VOCDetection

    root = write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    theirs = VOCDetection(str(tmp_path), year="2012", image_set="train")
    assert theirs.annotations == [str(root / "Annotations" / f"{name}.xml") for name in VocDetection(tmp_path).names]


def test_batches_of_one_size_are_tensors_with_boxes_to_scale(voc: Path) -> None:
    (batch,) = voc_loader(f"{voc}:train", (32, 48), batch_size=4)
    images, targets = batch
    assert type(images) is torch.Tensor
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (3, 3, 32, 48))
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert type(targets[0]["boxes"]) is torch.Tensor
    assert targets[0]["boxes"].tolist() == [[0, 0, 20, 24], [8, 10, 40, 32]]


def test_without_a_size_images_stay_as_they_are(voc: Path) -> None:
    (batch,) = voc_loader(f"{voc}:test", None, batch_size=4)
    images, targets = batch
    assert [tuple(image.shape) for image in images] == [(3, 16, 24)]
    assert targets[0]["labels"].tolist() == [1]


def test_augmentation_keeps_boxes_inside_and_labels_with_them(voc: Path) -> None:
    loader = voc_loader(str(voc), (32, 32), batch_size=2, shuffle=True, augment=True)
    assert len(loader) == 1  # the last batch would be smaller
    torch.manual_seed(0)
    seen: set[tuple[float, ...]] = set()
    for _ in range(30):
        for images, targets in loader:
            assert tuple(images.shape) == (2, 3, 32, 32)
            for target in targets:
                boxes = target["boxes"]
                assert len(boxes) == len(target["labels"]) == len(target["iscrowd"])
                assert bool((boxes >= 0).all())
                assert bool((boxes <= 32).all())
                assert bool((boxes[:, 2:] > boxes[:, :2]).all())
                seen.update(tuple(box) for box in boxes.tolist())
    assert len(seen) > 10


def test_a_box_without_area_is_left_out(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": [("x", (5, 5, 4, 9), True), ("y", (3, 3, 9, 9), False)]}, {"train": ["a"]})
    ((_, (target,)),) = voc_loader(str(root), (16, 24), batch_size=1)
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([2], [0])


def test_a_box_that_reaches_past_the_image_ends_there(tmp_path: Path) -> None:
    objects = [("x", (5, 5, 25, 9), False), ("x", (3, 3, 9, 40), False)]
    root = write_voc(tmp_path / "voc", {"a": objects}, {"train": ["a"]})
    for size in (None, (16, 24)):
        ((_, (target,)),) = voc_loader(str(root), size, batch_size=1)
        assert target["boxes"].tolist() == [[4, 4, 24, 9], [2, 2, 9, 16]]


def test_data_specs_name_a_folder_and_a_split(voc: Path) -> None:
    ((images, targets),) = load_loader(f"voc:{voc}", (3, 32, 32), batch_size=8, seed=0)
    assert tuple(images.shape) == (3, 3, 32, 32)
    assert len(targets) == 3
    ((images, _),) = load_detection_loader(f"voc:{voc}", batch_size=8)
    assert len(images) == 1  # the test split
    ((images, _),) = load_detection_loader(f"voc:{voc}:train", batch_size=8)
    assert len(images) == 3


def test_a_colon_may_be_part_of_the_folder(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "a:train")
    assert len(voc_loader(str(root), None, batch_size=1)) == 3
    assert len(voc_loader(f"{root}:test", None, batch_size=1)) == 1


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("voc::train", "cannot read the data spec 'voc::train': write voc:PATH or voc:PATH:split"),
        ("voc:", "cannot read the data spec 'voc:'"),
        ("VOC:folder", "there is no data kind 'VOC'; did you mean voc:folder?"),
        ("voc:nowhere", "there is no folder nowhere"),
    ],
)
def test_specs_that_name_nothing(spec: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        load_loader(spec, (3, 8, 8), batch_size=1, seed=0)
    assert str(refused.value).startswith(says)


def test_other_specs_are_refused_in_their_place(voc: Path) -> None:
    with pytest.raises(DataError, match="voc data gives 3-channel images, the input has shape 1x8x8"):
        load_loader(f"voc:{voc}", (1, 8, 8), batch_size=1, seed=0)
    with pytest.raises(DataError, match="has images without boxes"):
        load_detection_loader("imagefolder:somewhere", batch_size=1)


def test_folders_that_hold_no_voc_data(tmp_path: Path, voc: Path) -> None:
    assert message(tmp_path / "none") == f"there is no folder {tmp_path / 'none'}"
    (tmp_path / "empty").mkdir()
    says = "has no folder Annotations: VOC data are Annotations, JPEGImages and ImageSets/Main"
    assert message(tmp_path / "empty") == f"{tmp_path / 'empty'} {says}"
    write_voc(tmp_path / "other")
    assert message(tmp_path).startswith(f"{tmp_path} holds several data sets: name one of {tmp_path / 'other'}, ")
    for path in (voc / "Annotations").iterdir():
        path.unlink()
    assert message(voc).endswith("Annotations has no annotations with objects (.xml)")
    assert message(voc, classes=["cat"]) == f"there is no annotation {voc / 'Annotations' / 'a.xml'}"


def test_splits_that_are_not_there(voc: Path) -> None:
    assert message(voc, "tets") == f"there is no split 'tets' in {voc / 'ImageSets' / 'Main'}; did you mean 'test'?"
    assert message(voc, "x").endswith("; there are test, train")
    (voc / "ImageSets" / "Main" / "test.txt").write_text("\n")
    assert message(voc, "test").endswith("test.txt names no images")


def test_splits_with_a_byte_order_mark_and_those_of_one_class(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "marked.txt").write_text("a\nb\n", encoding="utf-8-sig")
    assert VocDetection(voc, "marked").names == ("a", "b")
    (voc / "ImageSets" / "Main" / "cat_train.txt").write_text("a  1\nb -1\nc  0\n")
    assert VocDetection(voc, "cat_train").names == ("a", "b", "c")


def test_annotations_that_do_not_fit(voc: Path) -> None:
    assert message(voc, classes=["cat", "birds", "dogs"]) == (
        f"{voc / 'Annotations' / 'a.xml'} has an object of class 'dog'; did you mean 'dogs'?"
    )
    assert message(voc, classes=["cat", "dog", "cat"]) == "the classes name 'cat' twice"
    assert message(voc, classes=["cat"]).endswith("has an object of class 'dog'; the classes are cat")
    (voc / "JPEGImages" / "b.png").unlink()
    assert (
        message(voc) == f"{voc / 'Annotations' / 'b.xml'} names the image b.png, which is not in {voc / 'JPEGImages'}"
    )


@pytest.mark.parametrize(
    "text",
    ["<annotation>", "", "<annotation>hello</annotation>", "<annotation><object>cat</object></annotation>"]
    + ['<?xml version="1.0" encoding="foo"?><annotation/>']
    + ["<annotation><object><name>cat</name></object></annotation>", "<other/>"]
    + [annotation("a", OBJECTS["a"]).replace("<xmin>1</xmin>", f"<xmin>{x}</xmin>") for x in ("", "one", "nan")],
)
def test_damaged_annotations_are_one_line(voc: Path, text: str) -> None:
    (voc / "Annotations" / "a.xml").write_text(text)
    assert message(voc).startswith(f"cannot read {voc / 'Annotations' / 'a.xml'} as a VOC annotation: ")


def test_an_image_of_another_name_is_the_one_that_the_annotation_names(voc: Path) -> None:
    (voc / "JPEGImages" / "b.png").rename(voc / "JPEGImages" / "image 7.png")
    (voc / "Annotations" / "b.xml").write_text(annotation("image 7", OBJECTS["b"]))
    assert tuple(VocDetection(voc)[1][0].shape) == (3, 16, 24)


def test_a_damaged_image_is_told_by_its_name(voc: Path) -> None:
    (voc / "JPEGImages" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read the image .*a\.png: "):
        VocDetection(voc)[0]
