"""Importance gathered batch by batch, in one process or several."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed

from mdp_fx.errors import DataError, InputError
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.importance.kinds import (
    JOINT,
    NEEDS,
    Needs,
    by_unit,
    check_kind,
    find_sources,
    joined,
    of_gradients,
    of_weights,
)
from mdp_fx.passes.importance.layers import FloatArray, LayerImportance


class ImportanceAccumulator:
    """Sums what batches say of the units of every group; `scores` is the mean over the batches.

    Sums are in float64, so that parts which several processes gathered and `all_reduce` puts together are what one
    process gathers.

    Args:
        graph: the typed network.
        groups: its channel groups.
        kind: what to score by, one of `KINDS`.
        seed: for "random".

    Attributes:
        kind: that of the arguments.
        count: batches so far.

    Raises:
        InputError: there is no such kind.
    """

    def __init__(self, graph: PruneGraph, groups: Sequence[ChannelGroup], kind: str, *, seed: int = 0) -> None:
        check_kind(kind)
        self.kind = kind
        self.count = 0
        self._graph = graph
        self._seed = seed
        self._sources = find_sources(graph, kind)
        self._groups = {group.dim: group.name for group in groups}
        self._sums: list[dict[str, FloatArray]] = []
        self.reset()

    @property
    def needs(self) -> Needs:
        """What `accumulate` is to be given; with "nothing" it need not be called."""
        return NEEDS[self.kind]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the stored tensors whose values, and gradients, are looked at."""
        return tuple(dict.fromkeys(name for source in self._sources for name, _ in source.tensors))

    def tensors_of(self, groups: Collection[str]) -> tuple[str, ...]:
        """Names of the tensors that some groups are scored by."""
        wanted = set(groups)
        found = (source for source, sums in zip(self._sources, self._sums, strict=True) if not wanted.isdisjoint(sums))
        return tuple(dict.fromkeys(name for source in found for name, _ in source.tensors))

    def reset(self) -> None:
        """Forgets all batches."""
        self.count = 0
        self._sums = [by_unit(source, np.zeros(source.axis.size), self._groups) for source in self._sources]

    def accumulate(self, values: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]) -> bool:
        """Adds what the gradients of one batch say.

        Args:
            values: the stored tensors named in `tensors`.
            gradients: their gradients of the batch's mean loss.

        Returns:
            False where a gradient is not finite: such a batch is not counted.
        """
        found = [of_gradients(source, self.kind, values, gradients) for source in self._sources]
        return self._add(found)

    def accumulate_activations(self, outputs: Mapping[str, torch.Tensor]) -> bool:
        """Adds what the mean absolute outputs of the nodes say, each of shape (entries of its axis,)."""
        return self._add([outputs[source.node].double().cpu().numpy() for source in self._sources])

    def _add(self, entries: Sequence[FloatArray]) -> bool:
        if not all(np.isfinite(each).all() for each in entries):
            return False
        units = [by_unit(source, each, self._groups) for source, each in zip(self._sources, entries, strict=True)]
        if self.kind in JOINT:
            pairs = [(group, values) for found in units for group, values in found.items()]
            shares = iter(joined(pairs))
            units = [{group: next(shares) for group in found} for found in units]
        for total, found in zip(self._sums, units, strict=True):
            for group, values in found.items():
                total[group] = total[group] + values
        self.count += 1
        return True

    def scores(self, values: Mapping[str, torch.Tensor] | None = None) -> tuple[LayerImportance, ...]:
        """Importance by layer and group.

        Args:
            values: the stored tensors, for the kinds that only look at them; those of the graph by default.

        Raises:
            DataError: no batch was counted, and the kind needs some.
        """
        if self.needs == "nothing":
            if values is None:
                values = {name: tensor for name, tensor, _ in self._graph.stored()}
            generator = np.random.default_rng(self._seed)
            found = [
                by_unit(source, of_weights(source, self.kind, values, generator), self._groups)
                for source in self._sources
            ]
        elif self.count:
            found = [{group: total / self.count for group, total in sums.items()} for sums in self._sums]
        else:
            raise DataError(f"{self.kind} importance has seen no batch with finite gradients")
        return tuple(
            LayerImportance(source.node, group, total)
            for source, sums in zip(self._sources, found, strict=True)
            for group, total in sums.items()
        )

    def all_reduce(self, device: torch.device | str = "cpu") -> None:
        """Gives every process the batches of all; without a process group it does nothing.

        Args:
            device: where the process group's back end can sum.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        flat = np.concatenate([[float(self.count)], *(values for sums in self._sums for values in sums.values())])
        tensor = torch.from_numpy(flat).to(device)
        torch.distributed.all_reduce(tensor)
        self._fill(tensor.cpu().numpy())

    def _fill(self, flat: FloatArray) -> None:
        self.count = round(float(flat[0]))
        place = 1
        for sums in self._sums:
            for group, values in sums.items():
                sums[group] = flat[place : place + values.size].copy()
                place += values.size

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, for a checkpoint."""
        parts = [values for sums in self._sums for values in sums.values()]
        sums = torch.from_numpy(np.concatenate([np.zeros(0), *parts]))
        return {"kind": self.kind, "count": self.count, "keys": self.rows(), "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            InputError: it is of another network or kind.
        """
        self._check(state["kind"], [list(key) for key in state["keys"]])
        self._fill(np.concatenate([[float(state["count"])], state["sums"].numpy()]))

    def rows(self) -> list[list[Any]]:
        """The rows of `scores`: layer, group and number of units of each."""
        return [
            [source.node, group, int(values.size)]
            for source, sums in zip(self._sources, self._sums, strict=True)
            for group, values in sums.items()
        ]

    def _check(self, kind: str, keys: list[list[Any]]) -> None:
        if kind != self.kind:
            raise InputError(f"the importance is {kind!r}, and {self.kind!r} is being gathered")
        if keys != self.rows():
            raise InputError("the importance belongs to another network: its layers or channel groups differ")
