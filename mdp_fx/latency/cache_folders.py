"""Folders in the user's cache for what runtimes keep from one run to the next."""

from __future__ import annotations

from pathlib import Path

from mdp_fx.errors import TargetError
from mdp_fx.latency.tables import cache_dir


def cache_folder(name: str) -> Path:
    """The folder `name` in mdp-fx's cache, made where it is not there.

    Raises:
        TargetError: it cannot be made.
    """
    folder = cache_dir() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"cannot create the cache folder {folder}: {error.strerror}") from error
    return folder
