"""Images with boxes in Pascal VOC's format, read and transformed by torchvision."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mdp_fx.errors import DataError, first_line, one_of

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")

_OF_ONE_CLASS = re.compile(r".+ (-1|0|1)")
"""A line of a split that VOC has for each class: whether the image has objects of it. The split's images are all."""

Sample = tuple[Any, dict[str, Any]]


@dataclass(frozen=True)
class _Objects:
    """What an annotation says: boxes in pixels (objects, 4), class names, and which objects are difficult."""

    boxes: Tensor
    names: tuple[str, ...]
    difficult: tuple[bool, ...]


class VocDetection(Dataset[Sample]):
    """Images and boxes of one split.

    A sample is an image, uint8 of shape (3, height, width), and a target: boxes (objects, 4) as left, top, right and
    bottom in pixels, labels that count from 1 (0 is the background), iscrowd (1 for objects that are marked as
    difficult) and image_id.

    Attributes:
        classes: names; label i + 1 is the i-th.
        names: of the images, without their suffix.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        classes: Sequence[str] | None = None,
        transforms: Callable[[Any, Any], Sample] | None = None,
    ) -> None:
        """Reads all annotations of the split; images are read as they are asked for.

        Args:
            path: a folder with Annotations, JPEGImages and ImageSets/Main, or one that holds a single such folder, as
                VOCdevkit/VOC2012 or its parents.
            split: a file of ImageSets/Main, without ".txt".
            classes: names, in the order of their labels; by default those of all annotations in the folder, sorted.
            transforms: of (image, target), as torchvision.transforms.v2 has them.

        Raises:
            DataError: there is no such folder or split; an annotation is missing or damaged, names an image that is not
                there, or a class outside of `classes`.
        """
        self._root = _voc_root(Path(path))
        self.names = _split_names(self._root, split)
        self.classes = tuple(classes) if classes is not None else _classes_of(self._root)
        self._transforms = transforms
        self._objects = [_read_annotation(self._root, name) for name in self.names]
        self._images = [_image_of(self._root, name) for name in self.names]
        twice = next((name for i, name in enumerate(self.classes) if name in self.classes[:i]), None)
        if twice is not None:
            raise DataError(f"the classes name {twice!r} twice")
        labels = {name: i for i, name in enumerate(self.classes, start=1)}
        for name, objects in zip(self.names, self._objects, strict=True):
            for each in objects.names:
                if each not in labels:
                    hint = one_of(each, self.classes, "the classes are")
                    raise DataError(f"{_annotation(self._root, name)} has an object of class {each!r}{hint}")
        self._labels = [torch.tensor([labels[each] for each in o.names], dtype=torch.int64) for o in self._objects]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image
        from torchvision import tv_tensors

        path = self._images[index]
        try:
            with Image.open(path) as file:
                image = tv_tensors.Image(file.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise for damaged files
            raise DataError(f"cannot read the image {path}: {first_line(error)}") from error
        objects = self._objects[index]
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": self._labels[index],
            "iscrowd": torch.tensor(objects.difficult, dtype=torch.int64),
            "image_id": index,
        }
        return self._transforms(image, target) if self._transforms is not None else (image, target)


def voc_loader(
    spec: str,
    size: tuple[int, int] | None,
    *,
    batch_size: int,
    default_split: str = "train",
    seed: int = 0,
    shuffle: bool = False,
    augment: bool = False,
    classes: Sequence[str] | None = None,
) -> DataLoader[Any]:
    """Batches of (images, targets) for a detector: images in [0, 1], targets as `VocDetection` has them.

    Args:
        spec: "PATH" or "PATH:split".
        size: (height, width) that all images are resized to, their shape left aside; the images of a batch are then one
            tensor (batch, 3, height, width). With None they keep their sizes and are a list.
        batch_size: images in a batch.
        default_split: where the spec names none.
        seed: of the order.
        shuffle: read in random order, another one each time.
        augment: as SSD is trained, with what torch's own generator gives: crops by overlap, flips, other colours. A
            last batch that is smaller is left out.
        classes: see `VocDetection`.

    Raises:
        DataError: the data cannot be read.
    """
    path, split = _parse(spec, default_split)
    dataset = VocDetection(path, split, classes, _transforms(size, augment))
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=augment and len(dataset) > batch_size,
        generator=generator,
        collate_fn=functools.partial(_collate, stack=size is not None),
    )


def _parse(spec: str, default: str) -> tuple[Path, str]:
    """Folder and split. A colon may be part of the path: what exists as a whole is a path."""
    path, colon, split = spec.rpartition(":")
    if not colon or Path(spec).exists():
        return Path(spec), default
    if not path or not split:
        raise DataError(f"cannot read the data spec 'voc:{spec}': write voc:PATH or voc:PATH:split")
    return Path(path), split


def _transforms(size: tuple[int, int] | None, augment: bool) -> Callable[[Any, Any], Sample]:
    """Colours are changed after resizing, where there is less to change."""
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise DataError("voc data needs torchvision: pip install 'mdp-fx[vision]'") from error
    steps: list[Any] = []
    if augment:
        steps += [v2.RandomIoUCrop(), v2.RandomHorizontalFlip()]
    if size is not None:
        steps.append(v2.Resize(size, antialias=True))
    if augment:
        steps.append(v2.RandomPhotometricDistort())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.ClampBoundingBoxes()]
    steps.append(v2.SanitizeBoundingBoxes(labels_getter=_per_object))
    composed: Callable[[Any, Any], Sample] = v2.Compose(steps)
    return composed


def _per_object(sample: Sample) -> tuple[Tensor, Tensor]:
    """What goes with a box that is dropped."""
    return sample[1]["labels"], sample[1]["iscrowd"]


def _collate(samples: Iterable[Sample], *, stack: bool) -> tuple[Any, list[dict[str, Any]]]:
    """(images, targets), as plain tensors."""
    images, targets = zip(*samples, strict=True)
    plain = [image.as_subclass(Tensor) for image in images]
    for target in targets:
        target["boxes"] = target["boxes"].as_subclass(Tensor)
    return torch.stack(plain) if stack else plain, list(targets)


def _voc_root(path: Path) -> Path:
    """The folder that holds Annotations."""
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    for pattern in (".", "*", "VOCdevkit/*"):
        found = sorted(each.parent for each in path.glob(f"{pattern}/Annotations") if each.is_dir())
        if len(found) > 1:
            raise DataError(f"{path} holds several data sets: name one of {', '.join(map(str, found))}")
        if found:
            return found[0]
    raise DataError(f"{path} has no folder Annotations: VOC data are Annotations, JPEGImages and ImageSets/Main")


def _split_names(root: Path, split: str) -> tuple[str, ...]:
    """Names of the images of a split."""
    folder = root / "ImageSets" / "Main"
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = sorted(each.stem for each in folder.glob("*.txt"))
        raise DataError(f"there is no split {split!r} in {folder}{one_of(split, known, 'there are')}")
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if all(map(_OF_ONE_CLASS.fullmatch, names)):
        names = tuple(name.rpartition(" ")[0].strip() for name in names)
    if not names:
        raise DataError(f"{path} names no images")
    return names


def _annotation(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _classes_of(root: Path) -> tuple[str, ...]:
    """Names of all classes in the folder's annotations."""
    paths = sorted((root / "Annotations").glob("*.xml"))
    names = {each for path in paths for each in _read_annotation(root, path.stem).names}
    if not names:
        raise DataError(f"{root / 'Annotations'} has no annotations with objects (.xml)")
    return tuple(sorted(names))


def _read_annotation(root: Path, name: str) -> _Objects:
    from torchvision.datasets import VOCDetection

    path = _annotation(root, name)
    try:
        content = VOCDetection.parse_voc_xml(ElementTree.parse(path).getroot())["annotation"]
        if not isinstance(content, dict):
            raise ValueError("it has text in place of elements")
        found = content.get("object", [])
        boxes = [[float(each["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for each in found]
        names = tuple(str(each["name"]) for each in found)
        difficult = tuple(each.get("difficult", "0") == "1" for each in found)
        if not all(map(math.isfinite, itertools.chain(*boxes))):
            raise ValueError("a box has no finite corners")
    except FileNotFoundError as error:
        raise DataError(f"there is no annotation {path}") from error
    except (ElementTree.ParseError, LookupError, TypeError, ValueError, OSError) as error:
        msg = f"cannot read {path} as a VOC annotation: {type(error).__name__}: {first_line(error)}"
        raise DataError(msg) from error
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, :2] -= 1  # VOC counts pixels from 1 and includes the last
    return _Objects(corners.clamp(min=0), names, difficult)


def _image_of(root: Path, name: str) -> Path:
    """The image that an annotation belongs to: the one of its name, or else the one that it names."""
    folder = root / "JPEGImages"
    for suffix in _SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    path = _annotation(root, name)
    named = ElementTree.parse(path).getroot().findtext("filename") or f"{name}.jpg"
    if not (folder / named).is_file():
        raise DataError(f"{path} names the image {named}, which is not in {folder}")
    return folder / named
