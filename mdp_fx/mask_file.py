"""Mask files, as HALP and MDP write them, read without running code from them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdp_fx.errors import InputError, MdpFxError, first_line
from mdp_fx.files import reading
from mdp_fx.pickle_reader import ForeignClassError, read_plain

_ADMITTED = "mask files hold dictionaries, strings and tensors only"
_TORCH_SAVE = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


def is_mask_file(path: Path) -> bool:
    """Whether a file is a pickle of Python's own, as masks are: `torch.save` makes another kind."""
    if path.suffix != ".pkl" or not path.is_file() or zipfile.is_zipfile(path):
        return False
    with path.open("rb") as file:
        return file.read(len(_TORCH_SAVE)) != _TORCH_SAVE


@dataclass(frozen=True)
class MaskFile:
    """What a mask file holds.

    Attributes:
        masks: by layer name, as the file has it; boolean, shape (channels,).
        name: of the file, without its folder.
        sha256: of the file.
    """

    masks: Mapping[str, Tensor]
    name: str
    sha256: str


def load_mask_file(path: str | os.PathLike[str]) -> MaskFile:
    """Reads a mask file. One from anywhere may be read: nothing in it is executed.

    Raises:
        InputError: it is missing, damaged, holds anything but dictionaries, strings and tensors, or is no mask file.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a mask file in it")
    with reading(path, InputError):
        data = path.read_bytes()
    content = _unpickled(path, data)
    if not isinstance(content, dict) or not content:
        what = "an empty dictionary" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"{path} holds {what}, not masks by layer name")
    return MaskFile(named_masks(content, str(path)), path.name, hashlib.sha256(data).hexdigest())


def read_masks(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The masks in a mask file, see `load_mask_file`."""
    return dict(load_mask_file(path).masks)


def named_masks(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Masks by layer name, each checked; those of a group, under a tuple of names, are those of each of its layers.

    Args:
        content: what is given as masks.
        where: it comes from, for messages.

    Raises:
        InputError: a key is no name, a layer is named twice, or a mask is none.
    """
    masks: dict[str, Tensor] = {}
    for key, value in content.items():
        for name in key if isinstance(key, tuple) else (key,):
            if not isinstance(name, str):
                raise InputError(f"{where} has a {type(name).__name__} in place of a layer's name")
            if name in masks:
                raise InputError(f"{where} names layer {name!r} twice")
            masks[name] = _checked(value, name, where)
    return masks


def _checked(value: object, name: str, where: str) -> Tensor:
    """A mask as boolean entries, shape (channels,).

    Raises:
        InputError: it is no tensor of one axis with zeros and ones.
    """
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.numel():
        what = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{where}: the mask of layer {name!r} is {what}, not one entry per output channel")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise InputError(f"{where}: the mask of layer {name!r} is a sparse, quantised or meta tensor, not a plain one")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        # A file of a few bytes could fill the memory.
        raise InputError(f"{where}: the mask of layer {name!r} says more than it holds")
    if value.is_complex() or not bool(((value == 0) | (value == 1)).all()):
        raise InputError(f"{where}: the mask of layer {name!r} has entries other than 0 and 1")
    return value.detach().bool()


def _unpickled(path: Path, data: bytes) -> Any:
    try:
        if data.startswith(_TORCH_SAVE) or zipfile.is_zipfile(path):
            return read_plain(path)
        return _Unpickler(io.BytesIO(data)).load()
    except ForeignClassError as error:
        raise InputError(f"{path} holds objects of other classes: {_ADMITTED}") from error
    except _RefusedError as error:
        raise InputError(f"{path} needs {error}: {_ADMITTED}") from error
    except MdpFxError:
        raise
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise InputError(f"{path} is truncated, damaged or no mask file ({first_line(error)})") from error


class _RefusedError(Exception):
    """A pickle names something that no mask file needs."""


class _Unpickler(pickle.Unpickler):
    """Reads what `pickle.dump` makes of dictionaries of tensors; see "Restricting globals" in Python's own manual."""

    def find_class(self, module: str, name: str) -> Any:
        """The function or class of that name, if it is one of those that such a pickle consists of."""
        admitted = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,  # type: ignore[attr-defined, unused-ignore]
            "torch.storage._load_from_bytes": _storage,
            "_codecs.encode": _latin1,
        }
        if f"{module}.{name}" not in admitted:
            raise _RefusedError(f"{module}.{name}")
        return admitted[f"{module}.{name}"]


def _latin1(text: str, _encoding: str) -> bytes:
    """Bytes, which pickles before protocol 3 hold as text."""
    return text.encode("latin1")


def _storage(data: bytes) -> Any:
    """The storage of a tensor, from wherever it was saved, on the CPU."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
