from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdp_fx.errors import TargetError
from mdp_fx.latency import LatencyTable, Timing, cache_dir

from .fakes import steady

_WRITE_MANY = """
import sys
from pathlib import Path
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.timing import Timing

with LatencyTable(Path(sys.argv[1])) as table:
    for size in range(60):
        table.put("machine", sys.argv[2], (size,), Timing(size + 1.0, size + 1.0, size + 1.0, 0.0, 5))
"""


def test_what_is_put_is_found_in_a_new_connection(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.sqlite"
    timing = Timing(2e-3, 3e-3, 1.9e-3, 0.05, 11)
    with LatencyTable(path) as table:
        table.put("machine", "conv", (64, 128), timing)
        table.put("machine", "pool", (), steady(1.0))
    with LatencyTable(path) as table:
        assert table.get("machine", "conv", (64, 128)) == timing
        assert table.get("machine", "conv", (128, 64)) is None
        assert table.get("other machine", "conv", (64, 128)) is None
        assert table.points("machine", "pool") == {(): steady(1.0)}


def test_a_point_is_replaced(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "table.sqlite") as table:
        table.put("machine", "conv", (8,), steady(1.0))
        table.put("machine", "conv", (8,), steady(2.0))
        assert table.points("machine", "conv") == {(8,): steady(2.0)}


def test_values_on_a_grid_with_a_gap(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "table.sqlite") as table:
        for sizes, seconds in {(8, 8): 1.0, (8, 16): 2.0, (16, 16): 4.0}.items():
            table.put("machine", "conv", sizes, steady(seconds))
        values = table.values("machine", "conv", [(8, 16), (8, 16)])
    np.testing.assert_array_equal(values, [[1.0, 2.0], [np.nan, 4.0]])


def test_two_connections_see_each_other_at_once(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    with LatencyTable(path) as one, LatencyTable(path) as two:
        one.put("machine", "conv", (8,), steady(1.0))
        assert two.get("machine", "conv", (8,)) == steady(1.0)
        two.put("machine", "conv", (16,), steady(2.0))
        assert one.points("machine", "conv") == {(8,): steady(1.0), (16,): steady(2.0)}


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    workers = [subprocess.Popen([sys.executable, "-c", _WRITE_MANY, str(path), name]) for name in ("a", "b")]
    assert [worker.wait() for worker in workers] == [0, 0]
    with LatencyTable(path) as table:
        for name in ("a", "b"):
            assert table.points("machine", name) == {(size,): steady(size + 1.0) for size in range(60)}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(TargetError, match=r"table\.sqlite is damaged .* delete it"):
        LatencyTable(path)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(TargetError, match="newer mdp-fx"):
        LatencyTable(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TargetError, match="cannot create the folder"):
        LatencyTable(tmp_path / "file" / "table.sqlite")


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"
    with LatencyTable() as table:
        assert table.path == tmp_path / "elsewhere" / "latency.sqlite"
    assert table.path.is_file()
