"""slim.pt: a pruned network that loads in a fresh process without its original class.

The file is what `torch.save` makes of a dict of plain data and tensors, so `torch.load(weights_only=True)` reads it.
`state_dict` in it is the module's own, for other tools; `constants` holds tensors that are not part of it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, fx, nn

from mdp_fx.errors import ModelError, RecipeError
from mdp_fx.files import atomic_write
from mdp_fx.graph_data import describe, describe_network, rebuild, rebuild_network
from mdp_fx.pickle_reader import ForeignClassError, read_plain
from mdp_fx.recipe import Recipe

FORMAT = "mdp-fx slim"
VERSION = 1

RUN_FORMAT = "mdp-fx training run"
"""Of a training run's checkpoint, which holds the network as it was then in the form of a slim.pt."""


@dataclass(frozen=True)
class SlimCheckpoint:
    """What a slim.pt holds.

    Attributes:
        module: the pruned network, trainable, on the CPU; a detector is one of its own class, others are graphs.
        recipe: how it was pruned.
        report: facts of the pruning run, JSON data.
    """

    module: nn.Module
    recipe: Recipe
    report: dict[str, Any]


def check_savable(module: nn.Module) -> None:
    """Checks early that `save_slim` will be able to save a network.

    Raises:
        ModelError: it has a part, named in the message, that a file cannot hold.
    """
    _describe(module)


def _describe(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return describe(module) if isinstance(module, fx.GraphModule) else describe_network(module)


def save_slim(path: str | os.PathLike[str], module: nn.Module, recipe: Recipe, report: Mapping[str, Any]) -> None:
    """Writes a slim.pt; an existing file is replaced once the new one is complete.

    Args:
        path: file to write.
        module: the pruned network, see `graph_data.describe` and `describe_network` for what it may hold.
        recipe: how it was pruned.
        report: JSON data.

    Raises:
        ModelError: the network has a part that a file cannot hold.
        OutputError: the file cannot be written.
    """
    data = pack(module, recipe, report)

    def write(file: BinaryIO) -> None:
        # torch.save hides a full disk behind an error of its own; a plain write does not.
        buffer = io.BytesIO()
        torch.save(data, buffer)
        file.write(buffer.getbuffer())

    atomic_write(path, write)


def pack(module: nn.Module, recipe: Recipe, report: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a slim.pt, as plain data and tensors, which are those of the network where that is possible.

    Raises:
        ModelError: the network has a part that a file cannot hold.
    """
    description, tensors = _describe(module)
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    compact = _Compact()
    return {
        "format": FORMAT,
        "version": VERSION,
        # Through JSON, which leaves no subclasses behind: torch.__version__ is one of str that weights_only refuses.
        "recipe": json.loads(json.dumps(recipe.to_json())),
        "report": json.loads(json.dumps(report)),
        "versions": {"torch": str(torch.__version__)},
        "graph" if isinstance(module, fx.GraphModule) else "network": description,
        "state_dict": {name: compact(value) for name, value in state.items()},
        "constants": {name: compact(value) for name, value in tensors.items() if name not in state},
    }


def load_slim(path: str | os.PathLike[str]) -> SlimCheckpoint:
    """Reads a slim.pt. A file from anywhere may be read: nothing in it is executed.

    Raises:
        ModelError: it is missing, damaged, of another version or not a slim.pt.
    """
    try:
        data = read_plain(Path(path))
    except ForeignClassError as error:
        raise ModelError(f"{path} is not a slim.pt of mdp-fx: it holds more than tensors and plain data") from error
    content = slim_in(data, str(path))
    if content is None:
        raise ModelError(f"{path} is not a slim.pt of mdp-fx")
    return unpack(content, str(path))


def slim_in(data: object, where: str) -> dict[str, Any] | None:
    """The content of a slim.pt, of whatever version: loaded data itself, or in a training run's checkpoint; else None.

    Raises:
        ModelError: it is the checkpoint of a run that has no slim network yet.
    """
    if isinstance(data, dict) and data.get("format") == RUN_FORMAT:
        data = data.get("slim")
        if data is None:
            raise ModelError(f"{where} is of a run that was stopped while pruning: go on with mdp-fx train --resume")
    return data if isinstance(data, dict) and data.get("format") == FORMAT else None


def unpack(data: Any, where: str) -> SlimCheckpoint:
    """Rebuilds what `save_slim` saved.

    Args:
        data: loaded content of the file.
        where: its name, for messages.

    Raises:
        ModelError: it is damaged or of another version.
    """
    if data.get("version") != VERSION:
        found = str(data.get("version"))[:20]
        raise ModelError(f"{where} has format version {found}, this mdp-fx reads {VERSION}; use the mdp-fx it is from")
    try:
        tensors = {**data["state_dict"], **data["constants"]}
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ModelError("its state dict holds something other than tensors")
        recipe = Recipe.from_json(data["recipe"])
        if "network" in data:
            return SlimCheckpoint(rebuild_network(data["network"], tensors), recipe, dict(data["report"]))
        return SlimCheckpoint(rebuild(data["graph"], tensors), recipe, dict(data["report"]))
    except KeyError as error:
        raise ModelError(f"{where} is damaged: its part {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} is damaged: {error}") from error
    except (ModelError, RecipeError) as error:
        raise ModelError(f"{where} is damaged or was made by other versions: {error}") from error


class _Compact:
    """Gives tensors that bring only their own entries: torch.save stores the whole storage behind a view.

    Equal views become one tensor, so what was tied stays so.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, value: Tensor) -> Tensor:
        value = value.detach()
        storage = value.untyped_storage()
        if value.numel() * value.element_size() >= storage.nbytes():
            return value
        key = (storage.data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        return self._seen.setdefault(key, value.clone())
