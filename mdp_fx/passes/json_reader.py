"""Typed reading of parsed JSON, with one-line errors that say where a wrong value sits."""

from __future__ import annotations

from typing import Any, TypeGuard

from mdp_fx.errors import InputError


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


class JsonReader:
    """A JSON object together with the place it was found at.

    Every method raises InputError when the field is missing or of another type.
    """

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(data).__name__}")
        self.data: dict[str, Any] = data
        self.where = where

    def get(self, key: str) -> Any:
        """The raw value of a field that must be there."""
        if key not in self.data:
            raise InputError(f"{self.where}: field {key!r} is missing")
        return self.data[key]

    def _wrong(self, key: str, expected: str) -> InputError:
        found = str(self.data[key])
        return InputError(f"{self.where}: field {key!r} should be {expected}, found {found[:40]}")

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
        """An integer."""
        value = self.get(key)
        if not _is_int(value):
            raise self._wrong(key, "an integer")
        return value

    def number(self, key: str) -> float:
        """A number, as float."""
        value = self.get(key)
        if not (_is_int(value) or isinstance(value, float)):
            raise self._wrong(key, "a number")
        return float(value)

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
        """A list of integers."""
        items = self.items(key)
        if not all(_is_int(item) for item in items):
            raise self._wrong(key, "a list of integers")
        return tuple(items)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, as floats."""
        items = self.items(key)
        if not all(_is_int(item) or isinstance(item, float) for item in items):
            raise self._wrong(key, "a list of numbers")
        return tuple(float(item) for item in items)

    def reader(self, key: str) -> JsonReader:
        """An object."""
        return JsonReader(self.get(key), f"{self.where}.{key}")

    def readers(self, key: str) -> list[JsonReader]:
        """A list of objects."""
        return [JsonReader(item, f"{self.where}.{key}[{i}]") for i, item in enumerate(self.items(key))]
