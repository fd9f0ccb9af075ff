"""Batches of a loader that may fail: its faults are told as such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mdp_fx.errors import DataError, first_line


def guarded(loader: Iterable[Any]) -> Iterator[Any]:
    """Passes on the batches of a loader, the user's own code and files.

    Raises:
        DataError: it fails, in this process or in one that loads for it.
    """
    try:
        yield from loader
    except GeneratorExit:
        raise
    except Exception as error:
        raise DataError(_cause(error)) from error


def _cause(error: Exception) -> str:
    """What a loader's error says in one line."""
    text = str(error).strip()
    if "in DataLoader worker process" in text:
        # torch puts a traceback of the worker into the message; it ends with the kind and text of the error itself.
        kind, _, text = text.splitlines()[-1].partition(": ")
        kind = kind.rpartition(".")[2]
        return text if kind == DataError.__name__ else f"the data loader failed with {kind}: {text[:200] or kind}"
    if isinstance(error, DataError):
        return text
    return f"the data loader failed with {type(error).__name__}: {first_line(error)}"
