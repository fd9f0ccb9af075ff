"""Measured latencies of regions, kept in one SQLite file per user."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mdp_fx.errors import TargetError
from mdp_fx.latency.interpolation import FloatArray
from mdp_fx.latency.timing import Timing

_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurement (
    fingerprint TEXT NOT NULL,
    region TEXT NOT NULL,
    sizes TEXT NOT NULL,
    median_s REAL NOT NULL,
    p90_s REAL NOT NULL,
    low_s REAL NOT NULL,
    spread REAL NOT NULL,
    runs INTEGER NOT NULL,
    PRIMARY KEY (fingerprint, region, sizes)
) WITHOUT ROWID
"""


def cache_dir() -> Path:
    """The folder for mdp-fx's own caches: `MDP_FX_CACHE`, or the user's cache folder of this system."""
    override = os.environ.get("MDP_FX_CACHE")
    if override:
        return Path(override)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mdp-fx" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mdp-fx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdp-fx"


class LatencyTable:
    """Latencies by (target fingerprint, region key, sizes).

    Every `put` is committed before it returns, so a killed run loses at most the measurement in progress. Several
    processes may use one file at the same time; the last measurement of a point stays.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open or create the table at `path` (default: latency.sqlite in `cache_dir()`).

        Raises:
            TargetError: the file cannot be created, is not a latency table, or was written by a newer version.
        """
        self.path = cache_dir() / "latency.sqlite" if path is None else path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot create the folder of the latency table {self.path}: {error.strerror}"
            raise TargetError(message) from error
        with self._named_errors():
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            with self._named_errors():
                self._set_up()
        except TargetError:
            self._connection.close()
            raise

    def get(self, fingerprint: str, key: str, sizes: Sequence[int]) -> Timing | None:
        """The measurement of one region at `sizes`, or None."""
        return self.points(fingerprint, key, only=sizes).get(tuple(sizes))

    def points(self, fingerprint: str, key: str, only: Sequence[int] | None = None) -> dict[tuple[int, ...], Timing]:
        """Every measurement of one region (or the one at the sizes `only`), by sizes."""
        query = "SELECT sizes, median_s, p90_s, low_s, spread, runs FROM measurement WHERE fingerprint=? AND region=?"
        arguments = [fingerprint, key]
        if only is not None:
            query += " AND sizes=?"
            arguments.append(_join(only))
        with self._named_errors():
            rows = self._connection.execute(query, arguments).fetchall()
        return {_split(row[0]): Timing(*row[1:]) for row in rows}

    def put(self, fingerprint: str, key: str, sizes: Sequence[int], timing: Timing) -> None:
        """Store one measurement, durably, in place of an earlier one of the same point.

        Raises:
            TargetError: the file cannot be written.
        """
        row = (timing.median_s, timing.p90_s, timing.low_s, timing.spread, timing.runs)
        with self._named_errors():
            self._connection.execute(
                "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (fingerprint, key, _join(sizes), *row),
            )

    def values(self, fingerprint: str, key: str, axes: Sequence[Sequence[int]]) -> FloatArray:
        """Seconds of one region on the grid spanned by `axes`, shape (len(axes[0]), ...); NaN where unmeasured."""
        measured = self.points(fingerprint, key)
        shape = tuple(len(axis) for axis in axes)
        result = np.full(shape, np.nan)
        for index in np.ndindex(shape):
            timing = measured.get(tuple(axis[place] for axis, place in zip(axes, index, strict=True)))
            if timing is not None:
                result[index] = timing.low_s
        return result

    def close(self) -> None:
        """Close the file; the table cannot be used afterwards."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(self) -> None:
        # WAL lets one process read while another writes; NORMAL keeps every commit of a killed process (only a
        # power cut may lose the last ones, and never the file)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            message = f"the latency table {self.path} was written by a newer mdp-fx: upgrade, or set MDP_FX_CACHE"
            raise TargetError(message)
        self._connection.execute(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            message = f"cannot use the latency table {self.path}: {error}"
            raise TargetError(message) from error
        except sqlite3.DatabaseError as error:
            message = f"the latency table {self.path} is damaged ({error}): delete it and measure again"
            raise TargetError(message) from error


def _join(sizes: Sequence[int]) -> str:
    return ",".join(str(size) for size in sizes)


def _split(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
