"""The file of a latency table: where it can lie, how SQLite opens it, and what to do where that fails."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from mdp_fx.errors import TargetError
from mdp_fx.files import reading

_MAGIC = b"SQLite format 3\x00"
_LOGGED_AT, _LOGGED = 18, b"\x02"
"""Where a file says, and how, that it was written with a write-ahead log."""
_ELSEWHERE = "set MDP_FX_CACHE to a folder that can be written"
_KEPT = "what was measured so far is kept"
_REMEDIES = {
    sqlite3.SQLITE_READONLY: f"make the file and its folder writable, or {_ELSEWHERE}",
    sqlite3.SQLITE_CANTOPEN: f"make the file and its folder readable and writable, or {_ELSEWHERE}",
    sqlite3.SQLITE_FULL: f"make room on the disk, or {_ELSEWHERE}; {_KEPT}",
    sqlite3.SQLITE_IOERR: f"make room if the disk is full, or {_ELSEWHERE}; {_KEPT}",
    sqlite3.SQLITE_BUSY: "another process is writing to it: wait for that",
}
"""What to do about errors, by SQLite's primary code."""


def is_sqlite(path: Path) -> bool:
    """Whether a file begins as SQLite's do; one without any content is an empty database to SQLite.

    Raises:
        TargetError: it cannot be read.
    """
    with reading(path, TargetError), path.open("rb") as file:
        return file.read(len(_MAGIC)) in (_MAGIC, b"")


def check_place(path: Path, read_only: bool) -> None:
    """Checks that a table can lie at `path`, and makes its folder where it is to be written.

    Raises:
        TargetError: it cannot, or is not there to be read.
    """
    if path.is_dir():
        message = f"{path} is a folder: name a latency table, such as {path / 'latency.sqlite'}"
        raise TargetError(message)
    if path.is_file() and not is_sqlite(path):
        message = f"{path} is no SQLite file: name a latency table, or move this one away if it should be one"
        raise TargetError(message)
    if read_only:
        if not path.is_file():
            message = f"there is no latency table {path}: mdp-fx profile makes one"
            raise TargetError(message)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((folder for folder in path.parents if folder.is_file()), None)
        why = f"{file} is a file" if file is not None else error.strerror
        message = f"cannot create the folder of the latency table {path}: {why}; {_ELSEWHERE}"
        raise TargetError(message) from error


def reading_mode(path: Path) -> str:
    """SQLite's mode for a file that is only read.

    One that says it has a write-ahead log, as earlier versions left it, is read by way of files beside it. Where these
    cannot be made, nothing else can write to it either, and it can be read as it is if nothing is left in its log.
    """
    if os.access(path.parent, os.W_OK):
        return "ro"
    with reading(path, TargetError), path.open("rb") as file:
        begin = file.read(_LOGGED_AT + 1)
    log = path.with_name(f"{path.name}-wal")
    return "ro&immutable=1" if begin[_LOGGED_AT:] == _LOGGED and not log.exists() else "ro"


def remedy(error: sqlite3.Error) -> str:
    """The end of a message about an error of SQLite: what to do, if that is known."""
    known = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)  # errors of the module itself have no code
    return f": {known}" if known else ""
