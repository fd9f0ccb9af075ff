"""Measured latencies of regions, kept in one SQLite file per user."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mdp_fx.errors import TargetError
from mdp_fx.latency.measurement import Measurement, is_amount
from mdp_fx.latency.table_file import check_place, reading_mode, remedy
from mdp_fx.latency.targets import Target
from mdp_fx.latency.timing import Timing

_SCHEMA_VERSION = 2
_BUSY_TIMEOUT_S = 60.0
_PLACE = "fingerprint, region, sizes"
_COLUMNS = f"{_PLACE}, median_s, p90_s, low_s, spread, runs"
_NUMBERS_BYTES = 48
"""What the numbers of a row take, beside its texts."""
_SCHEMA = """
CREATE {}TABLE IF NOT EXISTS measurement (
    fingerprint TEXT NOT NULL,
    region TEXT NOT NULL,
    sizes TEXT NOT NULL,
    median_s REAL NOT NULL,
    p90_s REAL NOT NULL,
    low_s REAL NOT NULL,
    spread REAL NOT NULL,
    runs INTEGER NOT NULL,
    measured_at REAL,
    PRIMARY KEY (fingerprint, region, sizes)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Summary:
    """What a table holds of one fingerprint, or of one region of it.

    Attributes:
        name: the fingerprint, or the key of the region.
        regions: how many.
        points: measurements.
        oldest: time of the first of them whose time is known, None where none is; `newest` that of the last.
        undated: measurements whose time is not known.
        size_bytes: what its rows take, about.
        least_s: smallest latency, and `most_s` the largest.
    """

    name: str
    regions: int
    points: int
    oldest: float | None
    newest: float | None
    undated: int
    size_bytes: int
    least_s: float
    most_s: float


@dataclass(frozen=True)
class Merged:
    """What became of measurements that were merged into a table.

    Attributes:
        added: those that it did not have.
        replaced: those that took the place of a less sure one.
        kept: those that it had as surely, or more.
    """

    added: int
    replaced: int
    kept: int


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

    def __init__(self, path: Path | None = None, *, read_only: bool = False, in_memory: bool = False) -> None:
        """Open or create the table at `path` (default: latency.sqlite in `cache_dir()`).

        Args:
            path: the file.
            read_only: it must be there, and stays as it is, also if an older version wrote it. Its folder need not be
                writable.
            in_memory: no file at all: an empty table that is gone when it is closed.

        Raises:
            TargetError: the file is missing or cannot be created, is not a latency table, or was written by a newer
                version.
        """
        self.path = table_path(path)
        if in_memory:
            where = "file::memory:"
        else:
            check_place(self.path, read_only)
            where = f"{self.path.resolve().as_uri()}?mode={reading_mode(self.path) if read_only else 'rwc'}"
        with self._named_errors():
            self._connection = sqlite3.connect(where, timeout=_BUSY_TIMEOUT_S, isolation_level=None, uri=True)
        try:
            with self._named_errors():
                self._dated = self._check_columns()
                if not read_only:
                    self._set_up()
                elif not self._columns():  # In an empty file nothing is found, and it stays as it is.
                    self._connection.execute(_SCHEMA.format("TEMP "))
        except TargetError:
            self._connection.close()
            raise

    def get(self, fingerprint: str, key: str, sizes: Sequence[int]) -> Timing | None:
        """The measurement of one region at `sizes`, or None."""
        return self.points(fingerprint, key, only=sizes).get(tuple(sizes))

    def points(self, fingerprint: str, key: str, only: Sequence[int] | None = None) -> dict[tuple[int, ...], Timing]:
        """Every measurement of one region (or the one at the sizes `only`), by sizes.

        Raises:
            TargetError: the file is damaged.
        """
        query = f"SELECT {_COLUMNS} FROM measurement WHERE fingerprint=? AND region=?"
        arguments = [fingerprint, key]
        if only is not None:
            query += " AND sizes=?"
            arguments.append(_join(only))
        with self._named_errors():
            rows = self._connection.execute(query, arguments).fetchall()
        return {each.sizes: each.timing for each in map(self._measurement, rows)}

    def put(self, fingerprint: str, key: str, sizes: Sequence[int], timing: Timing) -> None:
        """Store one measurement, durably, in place of an earlier one of the same point.

        Raises:
            TargetError: the file cannot be written.
        """
        row = _row(Measurement(fingerprint, key, tuple(sizes), timing, time.time()))
        with self._named_errors():
            self._connection.execute(
                f"INSERT OR REPLACE INTO measurement ({_COLUMNS}, measured_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row
            )

    def summaries(self, fingerprint: str | None = None) -> list[Summary]:
        """What it holds: one entry per fingerprint, or per region of `fingerprint`; in alphabetical order.

        Raises:
            TargetError: the file is damaged.
        """
        name, condition, arguments = "fingerprint", "", []
        if fingerprint is not None:
            name, condition, arguments = "region", "WHERE fingerprint=?", [fingerprint]
        at = self._dated
        size = f"SUM(LENGTH(fingerprint) + LENGTH(region) + LENGTH(sizes) + {_NUMBERS_BYTES})"
        query = (
            f"SELECT {name}, COUNT(DISTINCT region), COUNT(*), MIN({at}), MAX({at}), SUM({at} IS NULL), {size}, "
            f"MIN(low_s), MAX(low_s) FROM measurement {condition} GROUP BY {name} ORDER BY {name}"
        )
        with self._named_errors():
            found = [Summary(*row) for row in self._connection.execute(query, arguments)]
        for each in found:
            times = (time for time in (each.oldest, each.newest) if time is not None)
            if not all(map(is_amount, (each.least_s, each.most_s, *times))):
                list(self.measurements(fingerprint))  # which says where the damage is
        return found

    def measurements(self, fingerprint: str | None = None, region: str | None = None) -> Iterator[Measurement]:
        """Every row, or those of one fingerprint or region; in the order of fingerprint, region and sizes.

        Raises:
            TargetError: the file is damaged.
        """
        given = {"fingerprint": fingerprint, "region": region}
        wanted = {name: value for name, value in given.items() if value is not None}
        condition = " AND ".join(f"{name}=?" for name in wanted) or "1"
        query = f"SELECT {_COLUMNS}, {self._dated} FROM measurement WHERE {condition} ORDER BY fingerprint, region"
        with self._named_errors():
            rows = self._connection.execute(query, list(wanted.values())).fetchall()
        yield from sorted(map(self._measurement, rows), key=lambda each: (each.fingerprint, each.region, each.sizes))

    def merge(self, measurements: Iterable[Measurement]) -> Merged:
        """Takes measurements in, all or none; of two of one point the one whose median is surer stays.

        Raises:
            TargetError: the file cannot be written, or numbers of a measurement make no sense.
        """
        given = list(measurements)
        for each in given:
            if each.fault is not None:
                message = f"the measurement of region {each.region!r} at sizes {_join(each.sizes)!r}: {each.fault}"
                raise TargetError(message)
        rows = [_row(each) for each in given]
        updates = ", ".join(f"{name}=excluded.{name}" for name in (*_COLUMNS.split(", ")[3:], "measured_at"))
        statement = (
            f"INSERT INTO measurement ({_COLUMNS}, measured_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            # A median's standard error goes with the spread over the root of the runs, see `median_error`; a spread of
            # nothing, as that of a single run, is taken for one of a hundredth.
            f"ON CONFLICT DO UPDATE SET {updates} WHERE (excluded.spread + 0.01) * (excluded.spread + 0.01) * runs "
            "< (spread + 0.01) * (spread + 0.01) * excluded.runs"
        )
        with self._transaction():
            before, changes = self._points(), self._connection.total_changes
            self._connection.executemany(statement, rows)
            added = self._points() - before
            replaced = self._connection.total_changes - changes - added
        return Merged(added, replaced, len(rows) - added - replaced)

    def delete(self, fingerprints: Collection[str], before: float | None = None, *, dry_run: bool = False) -> int:
        """Deletes measurements, and gives back their room on the disk.

        Args:
            fingerprints: whose.
            before: only those from before this time; those whose time is not known stay.
            dry_run: delete nothing.

        Returns:
            How many there are.

        Raises:
            TargetError: the file cannot be written.
        """
        condition = f"fingerprint=? AND ({self._dated} < ? OR ?)"
        arguments = [(fingerprint, before or 0.0, before is None) for fingerprint in fingerprints]
        count = 0
        with self._named_errors():
            for each in arguments:
                (points,) = self._connection.execute(
                    f"SELECT COUNT(*) FROM measurement WHERE {condition}", each
                ).fetchone()
                count += points
        if count and not dry_run:
            with self._transaction():
                self._connection.executemany(f"DELETE FROM measurement WHERE {condition}", arguments)
            with self._named_errors():
                self._connection.execute("VACUUM")
        return count

    def close(self) -> None:
        """Close the file; the table cannot be used afterwards."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_columns(self) -> str:
        """The column with the time of a measurement, or what stands for it in a file of version 1."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        columns = self._columns()
        needed = set((_COLUMNS if version <= _SCHEMA_VERSION else _PLACE).split(", "))
        (tables,) = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if tables and not columns >= needed:
            message = f"{self.path} is an SQLite file of another program, not a latency table"
            raise TargetError(message)
        if version > _SCHEMA_VERSION:
            message = f"the latency table {self.path} was written by a newer mdp-fx: upgrade, or set MDP_FX_CACHE"
            raise TargetError(message)
        return "measured_at" if "measured_at" in columns else "NULL"

    def _columns(self) -> set[str]:
        return {row[1] for row in self._connection.execute("PRAGMA main.table_info(measurement)")}

    def _set_up(self) -> None:
        # A journal beside the file works on network file systems too, where write-ahead logs do not: a user's cache
        # folder often lies on one. At some ten rows a second it costs nothing.
        self._connection.execute("PRAGMA journal_mode=DELETE")
        if self._dated == "measured_at":
            return
        with self._transaction():
            columns = self._columns()  # Another process may have been faster.
            if columns and "measured_at" not in columns:
                self._connection.execute("ALTER TABLE measurement ADD COLUMN measured_at REAL")
            self._connection.execute(_SCHEMA.format(""))
            self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        self._dated = "measured_at"

    def _points(self) -> int:
        (count,) = self._connection.execute("SELECT COUNT(*) FROM measurement").fetchone()
        return int(count)

    def _measurement(self, row: Sequence[Any]) -> Measurement:
        """A row of `_COLUMNS`, and of the time where that is known.

        Raises:
            TargetError: its sizes or numbers make no sense.
        """
        fingerprint, region, text, *numbers = row
        try:
            sizes = tuple(int(part) for part in text.split(",") if part)
        except (ValueError, AttributeError) as error:
            raise self._damage(f"region {region!r}, sizes {text!r}") from error
        found = Measurement(fingerprint, region, sizes, Timing(*numbers[:5]), *numbers[5:])
        if found.fault is not None:
            raise self._damage(f"region {region!r}, sizes {text!r}: {found.fault}")
        return found

    def _damage(self, where: object) -> TargetError:
        return TargetError(f"the latency table {self.path} is damaged ({where}): delete it and measure again")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is written within appears at once, or nothing of it."""
        with self._named_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            message = f"cannot use the latency table {self.path}: {error}{remedy(error)}"
            raise TargetError(message) from error
        except sqlite3.DatabaseError as error:
            raise self._damage(error) from error


def table_path(path: Path | None = None) -> Path:
    """The table that was named, or the user's."""
    return cache_dir() / "latency.sqlite" if path is None else path


def table_for(target: Target | None) -> LatencyTable:
    """The user's table; without a target, or for one that only predicts, an empty one that no file holds.

    Raises:
        TargetError: it cannot be opened.
    """
    return LatencyTable(in_memory=target is None or not target.can_run)


def _row(measurement: Measurement) -> tuple[str | float | None, ...]:
    """The values of `_COLUMNS` and the time."""
    timing = measurement.timing
    numbers = (timing.median_s, timing.p90_s, timing.low_s, timing.spread, timing.runs)
    return (measurement.fingerprint, measurement.region, _join(measurement.sizes), *numbers, measurement.measured_at)


def _join(sizes: Sequence[int]) -> str:
    return ",".join(str(size) for size in sizes)
