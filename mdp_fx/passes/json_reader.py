"""Typed reading of parsed JSON, with one-line errors that say where a wrong value sits."""

from __future__ import annotations

import math
import reprlib
from typing import Any, TypeGuard

from mdp_fx.errors import InputError, one_of

# Larger integers are not what they seem once they are floats.
LARGEST = 2**53


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_small(value: object) -> TypeGuard[int]:
    return _is_int(value) and abs(value) <= LARGEST


def _is_number(value: object) -> TypeGuard[float]:
    return _is_int(value) or isinstance(value, float)


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class JsonReader:
    """A JSON object together with the place it was found at.

    Every method raises InputError when the field is missing or of another type.
    """

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(data).__name__}")
        self.data: dict[str, Any] = data
        self.where = where

    def only(self, *fields: str) -> None:
        """Check that there are no other fields: a misspelt one that may be left out would be overlooked."""
        for key in self.data:
            if key not in fields:
                raise InputError(f"{self.where}: unknown field {key!r}{one_of(key, fields, 'known are')}")

    def get(self, key: str) -> Any:
        """The raw value of a field that must be there."""
        if key not in self.data:
            raise InputError(f"{self.where}: field {key!r} is missing")
        return self.data[key]

    def _wrong(self, key: str, expected: str) -> InputError:
        return InputError(f"{self.where}: field {key!r} should be {expected}, found {self.shown(key)}")

    def shown(self, key: str) -> str:
        """A field's value for a message, shortened."""
        return reprlib.repr(self.data.get(key))[:60]

    def string(self, key: str) -> str:
        """A string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def name_or_none(self, key: str) -> str | None:
        """A string or null."""
        return None if self.get(key) is None else self.string(key)

    def integer(self, key: str) -> int:
        """An integer of at most 2^53."""
        value = self.get(key)
        if not _is_small(value):
            raise self._wrong(key, "an integer of at most 2^53")
        return value

    def number(self, key: str) -> float:
        """A number, as float."""
        value = self.get(key)
        if not _is_number(value):
            raise self._wrong(key, "a number")
        return _to_float(value)

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        items = self.items(key)
        if not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "a list of strings")
        return tuple(items)

    def string_lists(self, key: str) -> tuple[tuple[str, ...], ...]:
        """A list of lists of strings."""
        items = self.items(key)
        if not all(isinstance(item, list) and all(isinstance(s, str) for s in item) for item in items):
            raise self._wrong(key, "a list of lists of strings")
        return tuple(tuple(item) for item in items)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers of at most 2^53."""
        items = self.items(key)
        if not all(_is_small(item) for item in items):
            raise self._wrong(key, "a list of integers of at most 2^53")
        return tuple(items)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, as floats."""
        items = self.items(key)
        if not all(_is_number(item) for item in items):
            raise self._wrong(key, "a list of numbers")
        return tuple(_to_float(item) for item in items)

    def table(self, key: str) -> Any:
        """A number, or lists of numbers nested to any depth; whether they are rectangular is not looked at."""
        leaves = [self.get(key)]
        while leaves:
            if not all(isinstance(leaf, list) or _is_number(leaf) for leaf in leaves):
                raise self._wrong(key, "numbers, or lists of them")
            leaves = [item for leaf in leaves if isinstance(leaf, list) for item in leaf]
        return self.data[key]

    def reader(self, key: str, *fields: str) -> JsonReader:
        """An object, of these fields only where any are given."""
        return self._inner(self.get(key), f".{key if key.isidentifier() else repr(key)}", fields)

    def readers(self, key: str, *fields: str) -> list[JsonReader]:
        """A list of objects, likewise."""
        return [self._inner(item, f".{key}[{i}]", fields) for i, item in enumerate(self.items(key))]

    def _inner(self, data: object, place: str, fields: tuple[str, ...]) -> JsonReader:
        found = JsonReader(data, self.where + place)
        if fields:
            found.only(*fields)
        return found
