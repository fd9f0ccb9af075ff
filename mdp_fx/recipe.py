"""The Recipe: what is kept and what is removed, as data. It is the only thing the rewriter reads."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mdp_fx.errors import RecipeError
from mdp_fx.files import atomic_write, finite
from mdp_fx.graph.trace import FrontEnd

FORMAT = "mdp-fx recipe"
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """The outcome of a pruning run, enough to repeat it on the same dense network.

    Attributes:
        kept: for each channel group, the indices of its units that stay (ascending).
        removed_blocks: names of the residual blocks that go.
        group_sizes: units of each group in the dense network.
        method: decision method, such as "mdp".
        target: target name, such as "onnxruntime:cpu".
        budgets: what was asked, by budget: "latency" in seconds, "params" and "macs" as counts.
        predicted: what the solver's model predicts, same keys and units.
        certificate: the solver's certificate as JSON data.
        importance: importance criterion, such as "l2".
        step: channel step.
        input_shapes: shapes of the example inputs, with the batch.
        input_dtypes: their number types, such as "float32".
        fingerprint: `fingerprint` of the dense network.
        versions: versions of the libraries that made it.
        front_end: what made the graph: "symbolic" or "export".
        version: version of the format.
    """

    kept: dict[str, list[int]]
    removed_blocks: list[str]
    group_sizes: dict[str, int]
    method: str
    target: str
    budgets: dict[str, float]
    predicted: dict[str, float]
    certificate: dict[str, Any]
    importance: str
    step: int
    input_shapes: list[list[int]]
    input_dtypes: list[str]
    fingerprint: str
    versions: dict[str, str] = field(default_factory=dict)
    front_end: FrontEnd = "symbolic"
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """JSON data; infinite and undefined numbers become null."""
        data: dict[str, Any] = finite({"format": FORMAT, **dataclasses.asdict(self)})
        return data

    @classmethod
    def from_json(cls, data: object, where: str = "recipe") -> Recipe:
        """Reads and checks what `to_json` made.

        Args:
            data: parsed JSON.
            where: its origin, for messages.

        Raises:
            RecipeError: it is not a recipe, is of another version, or contradicts itself.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise RecipeError(f"{where} is not an mdp-fx recipe")
        if data.get("version") != VERSION:
            found = str(data.get("version"))[:20]
            raise RecipeError(f"{where} has format version {found}, this mdp-fx reads {VERSION}; use the other mdp-fx")
        # Recipes from before there was a choice do not name the front end.
        data = {"front_end": "symbolic", **data}
        fields = {entry.name for entry in dataclasses.fields(cls)}
        missing = sorted(fields - data.keys())
        if missing:
            raise RecipeError(f"{where}: field {missing[0]!r} is missing")
        for name, check in _CHECKS.items():
            if not check(data[name]):
                raise RecipeError(f"{where}: field {name!r} has an unusable value {str(data[name])[:60]!r}")
        recipe = cls(**{name: data[name] for name in fields})
        recipe._check_units(where)
        return recipe

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recipe as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        atomic_write(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads a recipe file.

        Raises:
            RecipeError: there is none, or it is not readable as one.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"cannot read recipe {path}: {(error.strerror or 'error').lower()}") from error
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise RecipeError(f"{path} is not a recipe: {error}") from error
        except RecursionError as error:
            raise RecipeError(f"{path} is not a recipe: too deeply nested") from error
        return cls.from_json(data, str(path))

    def _check_units(self, where: str) -> None:
        for name, units in self.kept.items():
            size = self.group_sizes.get(name)
            if size is None:
                raise RecipeError(f"{where}: group {name!r} has kept units but no size")
            ascending = all(a < b for a, b in itertools.pairwise([-1, *units, size]))
            if not ascending:
                raise RecipeError(f"{where}: kept units of group {name!r} are not ascending indices below {size}")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of a module's state dict; the same on every device."""
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):  # extra state of a module has no canonical bytes
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dtype(value: object) -> bool:
    return _is_text(value) and isinstance(getattr(torch, str(value), None), torch.dtype)


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_int(value) or isinstance(value, float)


def _is_list(value: object, check: Any) -> bool:
    return isinstance(value, list) and all(check(part) for part in value)


def _is_dict(value: object, check: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(key) and check(part) for key, part in value.items())


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "kept": lambda value: _is_dict(value, lambda units: _is_list(units, _is_int)),
    "removed_blocks": lambda value: _is_list(value, _is_text),
    "group_sizes": lambda value: _is_dict(value, _is_int),
    "method": _is_text,
    "target": _is_text,
    "budgets": lambda value: _is_dict(value, _is_number_or_none),
    "predicted": lambda value: _is_dict(value, _is_number_or_none),
    "certificate": lambda value: isinstance(value, dict),
    "importance": _is_text,
    "step": lambda value: _is_int(value) and value > 0,
    "input_shapes": lambda value: _is_list(value, lambda shape: _is_list(shape, _is_int)),
    "input_dtypes": lambda value: _is_list(value, _is_dtype),
    "fingerprint": _is_text,
    "versions": lambda value: _is_dict(value, _is_text),
    "front_end": lambda value: value in get_args(FrontEnd),
}
