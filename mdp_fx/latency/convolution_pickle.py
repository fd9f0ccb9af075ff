"""Convolution tables as HALP and MDP publish them: a pickled dict from text keys to latencies.

A key is `batch_cin_cout_fmap_k_stride` or `batch_cin_cout_fmap_k_stride_groups`, in that order; fmap is the side of
the input. The file does not say its unit. HALP rounds a thousand times a latency to a whole number for its knapsack, as
fits milliseconds. Nothing in a pickle is run: the unpickler knows no classes but those that numpy's numbers are written
with, and for these it has stand-ins that give plain numbers.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from mdp_fx.errors import InputError, first_line
from mdp_fx.files import reading
from mdp_fx.latency.convolution_rates import check_rates
from mdp_fx.latency.convolution_table import Channels, ConvolutionTable, Entry, Geometry
from mdp_fx.latency.csv_rows import unscaled

UNITS = {"us": 6, "ms": 3, "s": 0}
"""Decimal places from a unit to seconds."""

_SUFFIXES = (".pkl", ".pickle")
_KEY = re.compile(r"[0-9]{1,9}(_[0-9]{1,9}){5,6}")
_FIELDS = ("batch", "in_channels", "out_channels", "input_size", "kernel", "stride", "groups")
_NUMBER = re.compile(r"[fiu][1248]")


class _NumberType:
    """Stands for a numpy.dtype: what is read of it is the kind, the bytes and their order."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code) or code == "f1":
            raise pickle.UnpicklingError(f"numpy numbers of type {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        self.order = ">" if order == ">" else "<"


class _Number:
    """Stands for the function that makes a numpy number of its type and bytes; a pickle can set nothing on it."""

    __slots__ = ()

    def __call__(self, kind: object, raw: object) -> float | int:
        """The plain number."""
        if not isinstance(kind, _NumberType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("a numpy number without its bytes")
        if len(raw) != int(kind.code[1]):
            raise pickle.UnpicklingError(f"{len(raw)} bytes for a numpy number of type {kind.code!r}")
        value: float | int = np.frombuffer(raw, dtype=kind.order + kind.code)[0].item()
        return value


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "scalar"): _Number(),
    ("numpy._core.multiarray", "scalar"): _Number(),
}


class _ForeignError(pickle.UnpicklingError):
    """A class that a table of numbers has no use for."""


class _Unpickler(pickle.Unpickler):
    """Knows dict, str and numbers."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What a name stands for."""
        if (module_name, global_name) not in _KNOWN:
            raise _ForeignError(f"{module_name}.{global_name}")
        return _KNOWN[module_name, global_name]


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its name, or begins as pickles since protocol 2 do and no text does.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix.lower() in _SUFFIXES:
        return True
    with reading(path, InputError), path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def read_pickled_convolutions(path: Path, unit: str = "ms") -> ConvolutionTable:
    """Reads a table of HALP or MDP.

    Args:
        path: the pickle.
        unit: of its latencies: "us", "ms" or "s".

    Raises:
        InputError: it cannot be read, holds anything but a dict from keys to numbers, or the unit cannot be right.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict of latencies")
    places: dict[tuple[Geometry, Channels], tuple[str, Entry]] = {}
    for key, value in content.items():
        entry = _entry(path, key, value, UNITS[unit])
        place = (entry.geometry, (entry.in_channels, entry.out_channels))
        first, known = places.setdefault(place, (key, entry))
        if known.seconds != entry.seconds:
            raise InputError(f"{path}: the keys {first!r} and {key!r} give one convolution two latencies")
    table = ConvolutionTable(str(path), [entry for _, entry in places.values()])
    others = " or ".join(f"--unit {name}" for name in UNITS if name != unit)
    check_rates(path, table, unit, f"give {others}")
    return table


def _load(path: Path) -> Any:
    with reading(path, InputError):
        data = path.read_bytes()
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except _ForeignError as error:
        msg = f"{path} needs the class {error}; a latency table holds a dict, text keys and numbers only"
        raise InputError(msg) from error
    except Exception as error:  # a damaged or hostile file can make the unpickler fail in any way
        raise InputError(f"{path} is damaged or no pickle ({first_line(error)})") from error


def _entry(path: Path, key: object, value: object, digits: int) -> Entry:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        text = key[:60] if isinstance(key, str) else type(key).__name__
        msg = f"{path}: the key {text!r} is not of the form batch_cin_cout_fmap_k_stride[_groups]"
        raise InputError(msg)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{path}: the latency of {key!r} is a {type(value).__name__}, not a number")
    sizes = dict(zip(_FIELDS, map(int, key.split("_")), strict=False))
    try:
        return Entry(**{"groups": 1, **sizes}, seconds=unscaled(repr(value), digits))
    except (InputError, ValueError) as error:
        raise InputError(f"{path}: the entry {key!r}: {error}") from error
