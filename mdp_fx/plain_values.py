"""Python values as plain data: numbers, strings and None as they are, everything else as `[tag, payload]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mdp_fx.errors import ModelError

_CONSTANTS: dict[str, tuple[type, frozenset[str]]] = {
    "dtype": (torch.dtype, frozenset(n for n, v in vars(torch).items() if isinstance(v, torch.dtype))),
    "layout": (torch.layout, frozenset(n for n, v in vars(torch).items() if isinstance(v, torch.layout))),
    "memory_format": (
        torch.memory_format,
        frozenset(n for n, v in vars(torch).items() if isinstance(v, torch.memory_format)),
    ),
}

Encoder = Callable[[Any], list[Any] | None]
Decoder = Callable[[Any], Any]


def encode(value: Any, special: Encoder) -> Any:
    """Turns a value into plain data.

    Args:
        value: numbers, strings, containers and torch's constants, nested.
        special: asked first about every part; gives `[tag, payload]`, or None for what it does not know.

    Raises:
        ModelError: a part of the value has a type that has no plain form.
    """
    encoded = special(value)
    if encoded is not None:
        return encoded
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if value is Ellipsis:
        return ["ellipsis", None]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    for tag, (kind, _) in _CONSTANTS.items():
        if isinstance(value, kind):
            return [tag, str(value).rpartition(".")[2]]
    if isinstance(value, slice | range):
        return [type(value).__name__, [encode(part, special) for part in (value.start, value.stop, value.step)]]
    if isinstance(value, torch.Size):
        return ["size", list(value)]
    if isinstance(value, list) or type(value) in (tuple, set, frozenset):
        tag = "list" if isinstance(value, list) else type(value).__name__
        return [tag, [encode(part, special) for part in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, special), encode(part, special)] for key, part in value.items()]]
    raise ModelError(f"a value of type {type(value).__name__}, which has no plain form")


def decode(data: Any, special: Mapping[str, Decoder]) -> Any:
    """The value that `encode` turned into `data`.

    Args:
        data: plain data.
        special: for each tag of the encoder's `special`, a function that takes the payload.

    Raises:
        ModelError: the data was not made by `encode`.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if not isinstance(data, list) or len(data) != 2 or not isinstance(data[0], str):
        raise ModelError(f"unreadable value {str(data)[:60]!r}")
    tag, payload = data
    if tag in special:
        return special[tag](payload)
    if tag in _CONSTANTS and isinstance(payload, str) and payload in _CONSTANTS[tag][1]:
        return getattr(torch, payload)
    build = _BUILDERS.get(tag)
    if build is None:
        raise ModelError(f"unreadable value {str(data)[:60]!r}")
    try:
        if tag == "dict":
            return {decode(key, special): decode(part, special) for key, part in payload}
        return build([decode(part, special) for part in payload] if isinstance(payload, list) else payload)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"unreadable value {str(data)[:60]!r}") from error


_BUILDERS: dict[str, Decoder] = {
    "ellipsis": lambda _: Ellipsis,
    "complex": lambda parts: complex(*parts),
    "device": torch.device,
    "slice": lambda parts: slice(*parts),
    "range": lambda parts: range(*parts),
    "size": torch.Size,
    "tuple": tuple,
    "list": list,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
}
