"""Data as users name it: a loader of their own, a folder of images, or one with boxes."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mdp_fx.errors import DataError, first_line

IMAGE_FOLDER = "imagefolder"
VOC = "voc"


def load_loader(spec: str, shape: tuple[int, ...], *, batch_size: int, seed: int) -> Iterable[Any]:
    """Batches of (inputs, targets).

    Args:
        spec: "package.module:make_loader" (called without arguments, it returns an iterable of batches),
            "imagefolder:PATH" (a folder with one sub-folder of images per class, normalised as ImageNet is), or
            "voc:PATH:split" (a folder in Pascal VOC's format, for detectors; the split is "train" where none is named).
        shape: (channels, height, width) that images are resized to.
        batch_size: of a folder.
        seed: of the order in which a folder is read.

    Raises:
        DataError: there is no such loader or folder.
    """
    kind, separator, rest = spec.partition(":")
    if not separator or not rest:
        msg = f"cannot read the data spec {spec!r}: write package.module:make_loader, imagefolder:PATH or voc:PATH"
        raise DataError(msg)
    if kind == IMAGE_FOLDER:
        return _image_folder(Path(rest), shape, batch_size, seed)
    if kind == VOC:
        from mdp_fx.detection_data import voc_loader

        _check_colour(kind, shape)
        return voc_loader(rest, (shape[1], shape[2]), batch_size=batch_size, seed=seed, shuffle=True)
    near = difflib.get_close_matches(kind.lower(), [IMAGE_FOLDER, VOC], n=1, cutoff=0.8)
    if near:
        msg = f"there is no data kind {kind!r}; did you mean {near[0]}:{rest}?"
        raise DataError(msg)
    make_loader = load_function(spec, "data")
    try:
        loader = make_loader()
    except (Exception, SystemExit) as error:  # the user's own code: whatever it raises, there is no data
        msg = f"{spec} failed with {type(error).__name__}: {first_line(error)}"
        raise DataError(msg) from error
    if not isinstance(loader, Iterable):
        msg = f"{spec} returned a {type(loader).__name__}, not an iterable of (inputs, targets)"
        raise DataError(msg)
    return loader


def load_detection_loader(spec: str, *, batch_size: int, classes: Sequence[str] | None = None) -> Iterable[Any]:
    """Batches of (images, targets) to evaluate a detector on, in the data's own order and sizes.

    Args:
        spec: "voc:PATH:split" (the split is "test" where none is named), or "package.module:make_loader".
        batch_size: of a folder.
        classes: names in the order of their labels; by default those of the folder, sorted.

    Raises:
        DataError: there is no such loader or folder, or it is one of images without boxes.
    """
    kind, _, rest = spec.partition(":")
    if kind == VOC and rest:
        from mdp_fx.detection_data import voc_loader

        return voc_loader(rest, None, batch_size=batch_size, default_split="test", classes=classes)
    if kind == IMAGE_FOLDER:
        msg = f"{spec} has images without boxes; evaluate takes voc:PATH:split or package.module:make_loader"
        raise DataError(msg)
    return load_loader(spec, (), batch_size=batch_size, seed=0)


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """The function that "package.module:name" names; the working directory is importable.

    Raises:
        DataError: the module or the function is not there.
    """
    module_name, separator, name = spec.partition(":")
    if not (separator and module_name and name):
        msg = f"cannot read the {what} spec {spec!r}: write package.module:function"
        raise DataError(msg)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's own code runs here
        msg = f"the {what} spec {spec!r} names a module that cannot be imported: {type(error).__name__}: {error}"
        raise DataError(msg) from error
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [n for n in vars(module) if callable(vars(module)[n])], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        msg = f"the {what} spec {spec!r}: module {module_name} has no function {name!r}{hint}"
        raise DataError(msg)
    found: Callable[..., Any] = function
    return found


def image_folder(path: Path, shape: tuple[int, ...]) -> Any:
    """The (image, label) pairs of a folder with one sub-folder of images per class: torchvision's ImageFolder.

    An image that cannot be read is a DataError which names it.

    Args:
        path: the folder.
        shape: (channels, height, width) of the network's input.

    Raises:
        DataError: there is no such folder, it may not be read, or the input is none of colour images.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        msg = "imagefolder data needs torchvision: pip install 'mdp-fx[vision]'"
        raise DataError(msg) from error
    if not path.is_dir():
        msg = f"no image folder {path}: it must hold one sub-folder of images per class"
        raise DataError(msg)
    _check_colour(IMAGE_FOLDER, shape)
    try:
        return datasets.ImageFolder(str(path), loader=_read_image)
    except FileNotFoundError as error:
        msg = f"the image folder {path} has no classes with images: {first_line(error)}"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"cannot read the image folder {path}: {first_line(error)}"
        raise DataError(msg) from error


def _read_image(path: str) -> Any:
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except Exception as error:  # a damaged file: decoders raise whatever they like
        msg = f"cannot read the image {path}: {first_line(error)}"
        raise DataError(msg) from error


def _image_folder(path: Path, shape: tuple[int, ...], batch_size: int, seed: int) -> Iterable[Any]:
    import torch
    from torch.utils.data import DataLoader

    dataset = image_folder(path, shape)
    from torchvision import transforms

    height, width = shape[1:]
    dataset.transform = transforms.Compose(
        [
            transforms.Resize(max(height, width)),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator)


def _check_colour(kind: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] != 3:
        msg = f"{kind} data gives 3-channel images, the input has shape {'x'.join(map(str, shape))}"
        raise DataError(msg)
