"""Scores: the importance of a network's units as a file, for later runs on the same network."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mdp_fx.errors import InputError
from mdp_fx.files import atomic_write, reading
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.importance import ImportanceAccumulator, LayerImportance

FORMAT = "mdp-fx scores"
VERSION = 1


@dataclass(frozen=True)
class Scores:
    """Importance of the units of a network.

    Attributes:
        importance: the kind.
        fingerprint: `mdp_fx.recipe.fingerprint` of the network.
        layers: by layer and group.
        batches: batches of data that were read; 0 for kinds without data.
        versions: versions of the libraries that made it.
    """

    importance: str
    fingerprint: str
    layers: tuple[LayerImportance, ...]
    batches: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        rows = [{"layer": each.layer, "group": each.group, "values": each.values.tolist()} for each in self.layers]
        head = {"format": FORMAT, "version": VERSION, "importance": self.importance, "fingerprint": self.fingerprint}
        return {**head, "batches": self.batches, "versions": self.versions, "scores": rows}

    @classmethod
    def from_json(cls, data: object, where: str = "scores") -> Scores:
        """Reads and checks what `to_json` made.

        Raises:
            InputError: it is something else, or of another version.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{where} holds no mdp-fx scores: make them with mdp-fx score")
        if data.get("version") != VERSION:
            found = str(data.get("version"))[:20]
            raise InputError(f"{where} has format version {found}, this mdp-fx reads {VERSION}; use the other mdp-fx")
        try:
            layers = tuple(
                LayerImportance(str(row["layer"]), str(row["group"]), np.asarray(row["values"], dtype=np.float64))
                for row in data["scores"]
            )
            kind, owner, batches = str(data["importance"]), str(data["fingerprint"]), int(data["batches"])
            versions = {str(name): str(value) for name, value in data["versions"].items()}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}: the scores are damaged, make them again ({error!r})") from error
        for each in layers:
            if each.values.ndim != 1 or not (np.isfinite(each.values) & (each.values >= 0)).all():
                raise InputError(f"{where}: scores of layer {each.layer!r} are not numbers of at least 0")
        return cls(kind, owner, layers, batches, versions)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        text = json.dumps(self.to_json(), allow_nan=False) + "\n"
        atomic_write(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Reads a file.

        Raises:
            InputError: there is none, or it holds no scores.
        """
        with reading(path, InputError):
            text = Path(path).read_bytes()
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds no mdp-fx scores: make them with mdp-fx score") from error
        return cls.from_json(data, str(path))

    def of(self, fingerprint: str, graph: PruneGraph, groups: Sequence[ChannelGroup]) -> tuple[LayerImportance, ...]:
        """The scores, for the network they were made for.

        Args:
            fingerprint: of the network.
            graph: the network, typed.
            groups: its channel groups.

        Raises:
            InputError: they belong to another network, or to the same one followed by another front end, or some are
                missing.
        """
        if fingerprint != self.fingerprint:
            raise InputError(
                "the scores belong to another model: the weights they were made for have another fingerprint"
            )
        found = Counter((each.layer, each.group, each.values.size) for each in self.layers)
        wanted = Counter((*key,) for key in ImportanceAccumulator(graph, groups, self.importance).rows())
        for rows, what in (
            (found - wanted, "were made from another graph of this model"),
            (wanted - found, "miss a row"),
        ):
            for layer, group, _ in rows:
                raise InputError(f"the scores {what} (layer {layer!r}, channel group {group!r}): score it again")
        return self.layers
