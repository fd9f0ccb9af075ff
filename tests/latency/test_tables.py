from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdp_fx.errors import TargetError
from mdp_fx.latency import LatencyTable, Timing, cache_dir
from mdp_fx.latency.measurement import Measurement
from mdp_fx.latency.tables import Merged, table_for

from .fakes import FormulaTarget, steady

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
    path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 2000)
    with pytest.raises(TargetError, match=r"table\.sqlite is damaged .* delete it"):
        LatencyTable(path)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_table_is_not_to_be_deleted(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(TargetError, match=r"model\.onnx is no SQLite file: name a latency table, or move"):
        LatencyTable(path, read_only=read_only)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE measurement (fingerprint TEXT, region TEXT, sizes TEXT, microseconds REAL)")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(TargetError, match="newer mdp-fx"):
        LatencyTable(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(TargetError, match=r"cannot create the folder .*/file is a file; set MDP_FX_CACHE"):
            LatencyTable(place / "table.sqlite")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_folder_is_no_table(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(TargetError, match=r"is a folder: name a latency table, such as .*latency\.sqlite$"):
        LatencyTable(tmp_path, read_only=read_only)


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"
    with LatencyTable() as table:
        assert table.path == tmp_path / "elsewhere" / "latency.sqlite"
    assert table.path.is_file()


_SCHEMA_1 = """
CREATE TABLE measurement (
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

_WRITE_AND_TELL = """
import itertools, sys
from pathlib import Path
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.timing import Timing
with LatencyTable(Path(sys.argv[1])) as table:
    for size in itertools.count():
        table.put("machine", "conv", (size,), Timing(1.0, 1.0, 1.0, 0.0, 5))
        print(size, flush=True)
"""

_OPEN = """
import sys
from pathlib import Path
from mdp_fx.latency.tables import LatencyTable
LatencyTable(Path(sys.argv[1])).close()
"""


def old_file(path: Path) -> Path:
    """A file of version 1, which had no times, with two points."""
    connection = sqlite3.connect(path)
    connection.execute(_SCHEMA_1)
    connection.execute("PRAGMA journal_mode=WAL")
    for sizes in ("8", "16"):
        row = ("machine", "conv", sizes, 2.0, 3.0, 1.0, 0.1, 5)
        connection.execute("INSERT INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    return path


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)


def measurement(size: int, runs: int = 5, fingerprint: str = "machine", at: float | None = None) -> Measurement:
    return Measurement(fingerprint, "conv", (size,), Timing(size + runs, size + runs, size, 0.0, runs), at)


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    path = old_file(tmp_path / "old.sqlite")
    before = time.time()
    with LatencyTable(path) as table:
        assert table.points("machine", "conv") == {(s,): Timing(2.0, 3.0, 1.0, 0.1, 5) for s in (8, 16)}
        assert [each.measured_at for each in table.measurements()] == [None, None]
        table.put("machine", "conv", (8,), steady(1.0))
        times = {each.sizes: each.measured_at for each in table.measurements()}
    assert times[16,] is None
    assert times[8,] is not None
    assert before <= times[8,] <= time.time()
    assert version_of(path) == 2
    with LatencyTable(path) as table:
        assert len(table.points("machine", "conv")) == 2


def test_two_processes_may_bring_it_up_to_date_at_once(tmp_path: Path) -> None:
    path = old_file(tmp_path / "old.sqlite")
    workers = [subprocess.Popen([sys.executable, "-c", _OPEN, str(path)]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    with LatencyTable(path) as table:
        assert len(list(table.measurements())) == 2


def test_a_file_that_is_only_read_stays_as_it_is(tmp_path: Path) -> None:
    path = old_file(tmp_path / "old.sqlite")
    before = path.read_bytes()
    with LatencyTable(path, read_only=True) as table:
        assert len(list(table.measurements())) == 2
        (summary,) = table.summaries()
        assert (summary.undated, summary.oldest) == (2, None)
        with pytest.raises(TargetError, match="cannot use the latency table"):
            table.put("machine", "conv", (32,), steady(1.0))
    assert path.read_bytes() == before
    assert version_of(path) == 1


def test_a_file_to_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"there is no latency table .*none\.sqlite: mdp-fx profile makes one"):
        LatencyTable(tmp_path / "none.sqlite", read_only=True)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmark (url TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(TargetError, match="is an SQLite file of another program"):
        LatencyTable(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [True, False])
def test_a_foreign_table_of_the_same_name_is_left_alone(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE measurement (metres REAL)")
    connection.execute("PRAGMA user_version=77")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(TargetError, match="is an SQLite file of another program"):
        LatencyTable(path, read_only=read_only)
    assert path.read_bytes() == before


def test_an_empty_file_has_no_measurements(tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"
    path.touch()
    with LatencyTable(path, read_only=True) as table:
        assert table.summaries() == []
        assert list(table.measurements()) == []
        assert table.get("machine", "conv", (8,)) is None
    assert path.read_bytes() == b""
    with LatencyTable(path) as table:
        table.put("machine", "conv", (8,), steady(1.0))
    with LatencyTable(path, read_only=True) as table:
        assert table.points("machine", "conv") == {(8,): steady(1.0)}


def test_names_with_special_letters_are_files_too(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=memory#%41.sqlite"
    with LatencyTable(path) as table:
        table.put("machine", "conv", (8,), steady(1.0))
    assert path.is_file()
    with LatencyTable(path, read_only=True) as table:
        assert table.points("machine", "conv") == {(8,): steady(1.0)}


def test_sizes_that_are_none_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with LatencyTable(path) as table:
        table.put("machine", "conv", (8,), steady(1.0))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE measurement SET sizes='8,x'")
    connection.commit()
    connection.close()
    with (
        LatencyTable(path) as table,
        pytest.raises(TargetError, match=r"is damaged \(region 'conv', sizes '8,x'\): delete it"),
    ):
        table.points("machine", "conv")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("low_s='abc'", "low 'abc' is no number of at least 0"),
        ("low_s=-1", "low -1.0 is no number of at least 0"),
        ("low_s=9e999", "low inf is no number"),
        ("low_s=3", r"low 3.0, median 1.0 and p90 1.0 s are in no order"),
        ("p90_s=0.5", r"low 1.0, median 1.0 and p90 0.5 s are in no order"),
        ("median_s=9e999", "median inf is no number"),
        ("spread=-0.1", "spread -0.1 is no number"),
        ("runs=0", "runs 0 is no whole number above 0"),
        ("runs=2.5", "runs 2.5 is no whole number above 0"),
        ("measured_at='yesterday'", "time of measurement 'yesterday' is no number"),
    ],
)
def test_numbers_that_make_no_sense_are_damage(tmp_path: Path, change: str, says: str) -> None:
    path = tmp_path / "t.sqlite"
    with LatencyTable(path) as table:
        table.put("machine", "conv", (8, 16), steady(1.0))
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE measurement SET {change}")
    connection.commit()
    connection.close()
    says = rf"t\.sqlite is damaged \(region 'conv', sizes '8,16': {says}.*\): delete it"
    with LatencyTable(path) as table:
        if "measured_at" not in change:  # of which a search needs to know nothing
            with pytest.raises(TargetError, match=says):
                table.points("machine", "conv")
        with pytest.raises(TargetError, match=says):
            list(table.measurements())
        if change in ("low_s='abc'", "low_s=-1", "low_s=9e999", "measured_at='yesterday'"):
            for name in (None, "machine"):
                with pytest.raises(TargetError, match=says):
                    table.summaries(name)


def test_what_takes_no_time_is_no_damage(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.put("machine", "conv", (8,), steady(0.0))
        assert table.points("machine", "conv") == {(8,): steady(0.0)}
        assert [each.least_s for each in table.summaries()] == [0.0]


def test_a_truncated_file_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with LatencyTable(path) as table:
        for size in range(2000):
            table.put("machine", "conv", (size,), steady(1.0))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TargetError, match="damaged"), LatencyTable(path) as table:
        list(table.measurements())


def test_summaries_count_regions_points_and_ages(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.merge([measurement(8, at=100.0), measurement(16, at=50.0), measurement(24), measurement(8, 5, "other")])
        table.put("machine", "pool", (), steady(0.5))
        one, other = table.summaries()
        assert (one.name, one.regions, one.points, one.oldest, one.undated) == ("machine", 2, 4, 50.0, 1)
        assert one.newest is not None
        assert one.newest > 1e9
        assert (one.least_s, one.most_s) == (0.5, 24.0)
        assert one.size_bytes > other.size_bytes > 0
        assert (other.name, other.oldest, other.newest) == ("other", None, None)
        conv, pool = table.summaries("machine")
        assert (conv.name, conv.points, conv.newest) == ("conv", 3, 100.0)
        assert (pool.name, pool.points) == ("pool", 1)
        assert table.summaries("nothing") == []


def test_measurements_come_in_order_and_by_name(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.merge([measurement(size) for size in (128, 8, 16)] + [measurement(8, 5, "another")])
        assert [each.sizes for each in table.measurements("machine")] == [(8,), (16,), (128,)]
        assert [each.fingerprint for each in table.measurements()] == ["another"] + 3 * ["machine"]
        assert list(table.measurements("machine", "pool")) == []


def test_of_two_measurements_the_surer_one_stays(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        assert table.merge([measurement(8), measurement(16), measurement(24)]) == Merged(3, 0, 0)
        others = [measurement(8, 4), measurement(16, 5), measurement(24, 6, at=7.0), measurement(32, 1)]
        assert table.merge(others) == Merged(1, 1, 2)
        found = {each.sizes[0]: each for each in table.measurements()}
        assert {size: each.timing.runs for size, each in found.items()} == {8: 5, 16: 5, 24: 6, 32: 1}
        assert found[24] == measurement(24, 6, at=7.0)


def test_a_quiet_measurement_is_surer_than_a_long_noisy_one(tmp_path: Path) -> None:
    quiet = Measurement("machine", "conv", (8,), Timing(1.0, 1.0, 1.0, 0.002, 7), None)
    noisy = Measurement("machine", "conv", (8,), Timing(1.6, 2.0, 1.5, 0.13, 40), None)
    for first, second in ((quiet, noisy), (noisy, quiet)):
        with LatencyTable(tmp_path / f"{first.timing.runs}.sqlite") as table:
            table.merge([first])
            table.merge([second])
            assert list(table.measurements()) == [quiet]


def test_a_killed_process_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", _WRITE_AND_TELL, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(20):
        told = int(writer.stdout.readline())
    writer.kill()
    told = max([told, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    writer.wait()
    with LatencyTable(path) as table:
        found = {sizes[0] for sizes in table.points("machine", "conv")}
    assert found >= set(range(told + 1))
    assert len(found) <= told + 2


def test_a_merge_is_whole_or_nothing(tmp_path: Path) -> None:
    nameless = Measurement(None, "conv", (16,), steady(1.0))  # type: ignore[arg-type]
    senseless = Measurement("machine", "conv", (16,), Timing(1.0, 1.0, -1.0, 0.0, 5))
    with LatencyTable(tmp_path / "t.sqlite") as table:
        for broken, says in ((nameless, "NOT NULL"), (senseless, "region 'conv' at sizes '16': low -1.0 is no number")):
            with pytest.raises(TargetError, match=says):
                table.merge([measurement(8), broken])
            assert list(table.measurements()) == []


def test_deletion_by_fingerprint_and_age(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.merge([measurement(8, at=100.0), measurement(16, at=50.0), measurement(24), measurement(8, 5, "other")])
        assert table.delete(["machine"], before=60.0, dry_run=True) == 1
        assert len(list(table.measurements())) == 4
        assert table.delete(["machine"], before=60.0) == 1
        assert [each.sizes for each in table.measurements("machine")] == [(8,), (24,)]
        assert table.delete(["machine", "nobody"]) == 2
        assert [each.fingerprint for each in table.measurements()] == ["other"]
        assert table.delete([]) == 0


def test_what_only_predicts_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Predicting(FormulaTarget):
        can_run = False

    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))
    with table_for(Predicting()) as table:
        table.put("machine", "conv", (8,), steady(1.0))
        assert table.points("machine", "conv") == {(8,): steady(1.0)}
    assert not (tmp_path / "cache").exists()
    with table_for(FormulaTarget()) as table:
        assert table.path == tmp_path / "cache" / "latency.sqlite"
        assert table.summaries() == []
    assert table.path.is_file()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "t.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_AND_TELL, str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "TargetError: cannot use the latency table" in done.stderr
    assert "make room" in done.stderr
    assert "or set MDP_FX_CACHE to a folder that can be written; what was measured so far is kept" in done.stderr
    with LatencyTable(path) as table:
        assert len(table.points("machine", "conv")) == len(done.stdout.split()) > 0
