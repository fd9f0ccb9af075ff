"""The checkpoint of a run: one file with all that is needed to go on exactly; a kill leaves the one before."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdp_fx.checkpoint import RUN_FORMAT
from mdp_fx.errors import ModelError, TrainingError
from mdp_fx.files import atomic_write
from mdp_fx.pickle_reader import read_plain

FILE = "checkpoint.pt"
VERSION = 2


def save_run(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the checkpoint of a run; the one before is replaced once the new one is complete.

    Args:
        folder: of the run.
        state: tensors and plain data.

    Raises:
        OutputError: it cannot be written.
    """
    # torch.save hides a full disk behind an error of its own; a plain write does not.
    buffer = io.BytesIO()
    torch.save({"format": RUN_FORMAT, "version": VERSION, **state}, buffer)
    atomic_write(folder / FILE, lambda file: file.write(buffer.getbuffer()))


def load_run(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of a run, on the CPU; None where it was stopped before its first one.

    What a killed run left half-written is deleted.

    Raises:
        TrainingError: it is damaged, no checkpoint of ours, or of another version.
    """
    path = folder / FILE
    for stale in folder.glob(f".{FILE}.*.tmp"):
        stale.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        state = read_plain(path)
    except ModelError as error:
        msg = f"{error}; delete {folder} or start anew (--force without --resume)"
        raise TrainingError(msg) from error
    if not isinstance(state, dict) or state.get("format") != RUN_FORMAT:
        msg = f"{path} is no checkpoint of a training run: name another folder"
        raise TrainingError(msg)
    if state.get("version") != VERSION:
        found = str(state.get("version"))[:20]
        msg = f"{path} has format version {found}, this mdp-fx reads {VERSION}: go on with the mdp-fx it is from"
        raise TrainingError(msg)
    return state


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers, such that neighbours give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_all(seed: int) -> None:
    """Seeds the global generators of python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # foreign transforms draw from it
    torch.manual_seed(seed)


@contextmanager
def random_kept() -> Iterator[None]:
    """What is drawn within it does not show outside: a run that is taken up again may not draw it."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def random_state() -> dict[str, Any]:
    """The states of the global generators, as plain data and tensors; of the GPUs only that of this process."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Puts the global generators into the states that `random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
