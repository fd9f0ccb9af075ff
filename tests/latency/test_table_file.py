"""Files of latency tables: where they may lie, how they are read, what to do about errors."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from mdp_fx.errors import TargetError
from mdp_fx.latency import LatencyTable
from mdp_fx.latency.table_file import is_sqlite, reading_mode, remedy

from .fakes import steady


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A table as earlier versions left it: with a write-ahead log, which is empty."""
    path = tmp_path / "t.sqlite"
    with LatencyTable(path) as table:
        table.put("machine", "conv", (8,), steady(1.0))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return path


def test_sqlite_files_are_known_by_their_beginning(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite"):
        pass
    (tmp_path / "text").write_text("no database")
    (tmp_path / "empty").touch()
    assert is_sqlite(tmp_path / "t.sqlite")
    assert is_sqlite(tmp_path / "empty")
    assert not is_sqlite(tmp_path / "text")
    with pytest.raises(TargetError, match=r"cannot read .*none: no such file"):
        is_sqlite(tmp_path / "none")


def test_files_with_a_log_are_read_in_folders_that_cannot_be_written(
    logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reading_mode(logged) == "ro"
    # Who runs the tests may be allowed everything, whatever the folder's mode says.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert reading_mode(logged) == "ro&immutable=1"
    with LatencyTable(logged, read_only=True) as table:
        assert table.points("machine", "conv") == {(8,): steady(1.0)}
        assert [file.name for file in logged.parent.iterdir()] == [logged.name]
    logged.with_name("t.sqlite-wal").write_bytes(b"not merged yet")
    assert reading_mode(logged) == "ro"


def test_files_without_a_log_are_locked_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LatencyTable(tmp_path / "t.sqlite"):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert reading_mode(tmp_path / "t.sqlite") == "ro"


def test_what_cannot_be_written_says_what_to_do(logged: Path) -> None:
    with (
        LatencyTable(logged, read_only=True) as table,
        pytest.raises(TargetError, match=r"readonly database: make the file and its folder writable, or set MDP_FX_"),
    ):
        table.put("machine", "conv", (16,), steady(1.0))


def test_errors_of_unknown_code_have_no_remedy() -> None:
    assert remedy(sqlite3.OperationalError("no such table")) == ""
