"""The row of one network: what its stages found, each by name with its reason where it failed."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.zoo_networks import Network
from mdp_fx.errors import MdpFxError, first_line
from mdp_fx.passes.channel_groups import ChannelGroup
from tests.pruning import random_units, tensors

T = TypeVar("T")
Inputs = tuple[Any, ...]
Emit = Callable[[dict[str, Any]], None]

WANTING = "a stage that it needs failed"


class CheckError(Exception):
    """A check that failed: one line."""


class Row:
    """What is known of a network, told after every stage so that a killed run leaves what was found."""

    def __init__(self, network: Network, emit: Emit) -> None:
        self.data: dict[str, Any] = {
            "spec": network.spec,
            "library": network.library,
            "model": network.name,
            "family": network.family,
            "stages": {},
        }
        self._emit = emit

    def attempt(self, name: str, work: Callable[..., T], *given: Any) -> T | None:
        """Runs one stage on what stages before it gave; None where it fails or one of those did."""
        found = None
        verdict: dict[str, Any] = {"ok": False, "reason": None}
        begin = time.perf_counter()
        try:
            if any(part is None for part in given):
                raise CheckError(WANTING)
            found = work(*given)
            verdict["ok"] = True
        except Exception as failure:  # noqa: BLE001 - whatever fails is the result
            verdict["reason"] = explain(failure)
        verdict["seconds"] = round(time.perf_counter() - begin, 3)
        self.data["stages"][name] = verdict
        if verdict["seconds"] > 1:
            gc.collect()  # graphs hold networks in circles
        self._emit(self.data)
        return found

    def skip(self, names: Sequence[str], why: str) -> None:
        """Passes stages that have nothing to check."""
        for name in names:
            self.data["stages"][name] = {"ok": True, "reason": why, "seconds": 0.0}
        self._emit(self.data)


def explain(failure: BaseException) -> str:
    """An error in one line: ours as it is, any other with the place where it was raised."""
    if isinstance(failure, MdpFxError | CheckError):
        return first_line(failure)
    cause = failure
    while cause.__cause__ is not None:
        cause = cause.__cause__
    frame = traceback.extract_tb(cause.__traceback__)[-1]
    return f"{type(cause).__name__}: {first_line(cause)} ({Path(frame.filename).name}:{frame.lineno})"


def halved(groups: Sequence[ChannelGroup]) -> dict[str, list[int]]:
    """A random half of every group, always the same one; in turn one unit less or more, so that groups come apart."""
    rng = np.random.default_rng(0)
    counts = [round(group.size / 2) + i % 3 - 1 for i, group in enumerate(groups)]
    return {
        group.name: random_units(group, min(max(1, count), group.size), rng)
        for group, count in zip(groups, counts, strict=True)
    }


def run(network: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """Output tensors; a forward may write to its inputs, so it gets copies."""
    with torch.no_grad():
        return tensors(network(*pytree.tree_map(lambda leaf: leaf.clone() if _is_tensor(leaf) else leaf, inputs)))


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
