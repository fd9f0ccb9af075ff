"""`mdp-fx table`: what is listed, written, read, merged, plotted and deleted, and bad input."""

from __future__ import annotations

import pickle
import sqlite3
import time
from collections import OrderedDict
from pathlib import Path

import click
import pytest

from mdp_fx.cli.table_command import command
from mdp_fx.latency import LatencyTable, Timing
from mdp_fx.latency.measurement import Measurement
from tests.cli.running import Run

TORCH = "torch:cpu torch 1.0.0 AMD EPYC threads 1 float32 m1"
RUNTIME = "onnxruntime:cpu onnxruntime 1.0.0 AMD EPYC threads 2 float32 m1"
OTHER = "some other machine"
CONV, DEEP, POOL = "Conv2d 1x2 aaaa", "Conv2d deep bbbb", "maxpool cccc"
CSV = "fingerprint,region,sizes,median_us,p90_us,low_us,spread,runs"
CONVOLUTIONS = "in_channels,out_channels,input_size,kernel,stride,groups,batch,latency_us"
SUBCOMMANDS = ("list", "show", "export", "import", "merge", "plot", "gc")


def timing(low: float, runs: int = 5) -> Timing:
    return Timing(1.1 * low, 1.2 * low, low, 0.05, runs)


@pytest.fixture
def table(folder: Path) -> Path:
    """The user's table, with three fingerprints."""
    path = folder / ".cache" / "latency.sqlite"
    now = time.time()
    with LatencyTable(path) as opened:
        for name in (TORCH, RUNTIME):
            points = [(i, o) for i in (8, 16) for o in (8, 16, 32)]
            opened.merge(
                [Measurement(name, CONV, at, timing(1e-6 * at[0] * at[1]), now - 86400 * at[0]) for at in points]
            )
        opened.merge([Measurement(TORCH, DEEP, (s,), timing(1e-5 * s), now - 60) for s in (8, 16, 24)])
        opened.merge([Measurement(OTHER, POOL, (), timing(1e-3))])
    return path


def points(path: Path) -> int:
    with LatencyTable(path, read_only=True) as opened:
        return len(list(opened.measurements()))


def test_every_subcommand_is_there_with_help_and_json(run: Run) -> None:
    assert isinstance(command, click.Group)
    assert set(command.commands) == set(SUBCOMMANDS)
    for name in SUBCOMMANDS:
        done = run("table", name, "--help")
        assert done.code == 0
        assert "--json" in done.out
        assert "--table" in done.out
    assert run("table", "--help").code == 0


def test_list(run: Run, table: Path) -> None:
    found = run("table", "list", "--json").json
    assert found["table"] == str(table)
    rows = {row["fingerprint"]: row for row in found["fingerprints"]}
    assert list(rows) == sorted((TORCH, RUNTIME, OTHER))
    first = rows[TORCH]
    assert (first["target"], first["runtime"], first["version"]) == ("torch:cpu", "torch", "1.0.0")
    assert (first["device"], first["threads"], first["dtype"]) == ("AMD EPYC", 1, "float32")
    assert (first["regions"], first["points"], first["stale"], first["undated"]) == (2, 9, True, 0)
    assert first["oldest_s"] == pytest.approx(16 * 86400, abs=100)
    assert first["newest_s"] == pytest.approx(60, abs=100)
    assert (rows[OTHER]["device"], rows[OTHER]["oldest_s"], rows[OTHER]["undated"]) == (None, None, 1)
    shown = run("table", "list")
    assert shown.out.startswith(str(table))
    assert "AMD EPYC" in shown.out
    assert RUNTIME in run("table", "list", "-v").out


def test_show_regions_and_points(run: Run, table: Path) -> None:
    found = run("table", "show", "torch 1.0.0", "--json").json
    assert found["fingerprint"] == TORCH
    assert [(row["index"], row["region"], row["points"]) for row in found["regions"]] == [(1, CONV, 6), (2, DEEP, 3)]
    assert found["regions"][1]["least_us"] == pytest.approx(80)
    index = next(r["index"] for r in run("table", "list", "--json").json["fingerprints"] if r["fingerprint"] == TORCH)
    for region in ("2", "bbbb", DEEP):
        points_of = run("table", "show", str(index), region, "--json").json["points"]
        assert [(row["sizes"], row["runs"]) for row in points_of] == [([8], 5), ([16], 5), ([24], 5)]
        assert points_of[2]["low_us"] == pytest.approx(240)
    assert DEEP in run("table", "show", TORCH).out
    assert "0.24 ms" in run("table", "show", TORCH, DEEP).out


def test_export_and_import_are_exact(run: Run, table: Path, folder: Path) -> None:
    done = run("table", "export", "-o", "all.csv", "--json").json
    assert done == {"points": 16, "written": {"csv": "all.csv"}}
    assert run("table", "export", "torch 1", "-o", "one.csv").out == "wrote one.csv: 9 points\n"
    assert (folder / "one.csv").read_text().splitlines()[0] == CSV
    new = ("--table", "new.sqlite")
    assert run("table", "import", "one.csv", *new).out == "one.csv: 9 points added to new.sqlite\n"
    assert run("table", "import", "all.csv", *new, "--json").json == {
        "table": "new.sqlite",
        "added": 7,
        "replaced": 0,
        "kept": 9,
    }
    with LatencyTable(table) as mine, LatencyTable(folder / "new.sqlite") as theirs:
        assert [(m.region, m.sizes, m.timing) for m in mine.measurements()] == [
            (m.region, m.sizes, m.timing) for m in theirs.measurements()
        ]
    assert run("table", "export", "-o", "all.csv").err.endswith("name another output file\n")
    assert run("table", "export", "-o", "all.csv", "--force").code == 0


def test_merge_keeps_more_runs_and_says_how_many(run: Run, table: Path, folder: Path) -> None:
    with LatencyTable(folder / "other.sqlite") as other:
        other.merge(
            [
                Measurement(TORCH, DEEP, (8,), timing(1.0, 9)),
                Measurement(TORCH, DEEP, (16,), timing(1.0, 4)),
                Measurement("new machine", DEEP, (8,), timing(1.0, 1)),
            ]
        )
    done = run("table", "merge", "other.sqlite")
    assert done.out == (f"other.sqlite: 1 point added to {table}; 2 were there: 1 replaced by surer ones, 1 kept\n")
    assert points(folder / "other.sqlite") == 3
    with LatencyTable(table) as opened:
        assert opened.points(TORCH, DEEP)[8,] == timing(1.0, 9)
        assert opened.points(TORCH, DEEP)[16,] == timing(1e-5 * 16)


def test_merge_reads_files_of_an_older_version(run: Run, table: Path, folder: Path) -> None:
    connection = sqlite3.connect(folder / "old.sqlite")
    connection.execute(
        "CREATE TABLE measurement (fingerprint TEXT, region TEXT, sizes TEXT, median_s REAL, p90_s REAL, low_s REAL, "
        "spread REAL, runs INTEGER, PRIMARY KEY (fingerprint, region, sizes)) WITHOUT ROWID"
    )
    connection.execute("INSERT INTO measurement VALUES ('old', 'conv', '8', 2, 3, 1, 0.1, 5)")
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    assert run("table", "merge", "old.sqlite", "--json").json["added"] == 1
    assert points(table) == 17


def test_plots(run: Run, table: Path, folder: Path) -> None:
    done = run("table", "plot", "deep", "-o", "stairs.html", "--json").json
    assert done == {"region": DEEP, "fingerprints": [TORCH], "written": {"plot": "stairs.html"}}
    page = (folder / "stairs.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert '"vh"' in page
    assert run("table", "plot", CONV, "-o", "map.html", "--fingerprint", "torch 1").out == "wrote map.html\n"
    assert '"heatmap"' in (folder / "map.html").read_text(encoding="utf-8")


def test_gc_deletes_what_it_says(run: Run, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both runtimes are installed in another version; nothing is known of the other machine.
    would = run("table", "gc", "--json").json
    assert would["points"] == {RUNTIME: 6, TORCH: 9}
    assert not would["deleted"]
    refused = run("table", "gc")
    assert refused.code == 1
    assert "nobody is there to agree that 15 points go: pass --force" in refused.err
    assert points(table) == 16
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, left in ((False, 16), (True, 1)):
        monkeypatch.setattr(click, "confirm", lambda _text, answer=answer: answer)
        done = run("table", "gc")
        assert done.out.splitlines()[-1] == f"{'deleted' if answer else 'kept'} 15 points"
        assert points(table) == left
    assert run("table", "gc").out == "nothing to delete\n"


def test_gc_by_age_and_fingerprint(run: Run, table: Path) -> None:
    assert run("table", "gc", "--older-than", "10", "--json").json["points"] == {RUNTIME: 3, TORCH: 3}
    aged = run("table", "gc", "--older-than", "10", "--fingerprint", "torch 1", "--force")
    assert aged.out.splitlines()[-1] == "deleted 3 points"
    assert points(table) == 13
    everything = run("table", "gc", "--older-than", "0", "--force")
    assert "1 point of unknown age not among them" in everything.out
    assert points(table) == 1
    assert run("table", "gc", "--fingerprint", OTHER, "--force", "--json").json["deleted"]
    assert points(table) == 0


KEY = "256_64_128_56_3_1"


def test_a_published_pickle_becomes_a_target(run: Run, folder: Path) -> None:
    content = {KEY: 9.5, "256_64_64_56_3_1_1": 5.0}
    (folder / "lut.pkl").write_bytes(pickle.dumps(content))
    done = run("table", "import", "lut.pkl")
    assert done.code == 0, done.err
    assert done.out == (
        "wrote lut.csv: 2 convolutions at batch 256, the fastest at 6.23 TMAC/s; "
        "use it as --target table:lut.csv --batch 256\n"
    )
    assert (folder / "lut.csv").read_text().splitlines() == [
        CONVOLUTIONS,
        "64,64,56,3,1,1,256,5000",
        "64,128,56,3,1,1,256,9500",
    ]
    again = run("table", "import", "lut.pkl", "--unit", "us", "-o", "us.csv")
    assert again.code == 1
    assert "too fast for any device: give --unit ms or --unit s" in again.err
    assert not (folder / "us.csv").exists()
    assert "lut.csv exists; pass --force" in run("table", "import", "lut.pkl").err
    checked = run("table", "import", "lut.csv", "--json").json
    assert (checked["convolutions"], checked["target"], checked["written"]) == (2, "table:lut.csv", {})


def test_pickles_need_no_suffix(run: Run, folder: Path) -> None:
    (folder / "lut").write_bytes(pickle.dumps({KEY: 9.5}))
    done = run("table", "import", "lut")
    assert done.out.startswith("wrote lut.csv: 1 convolution at batch 256, the fastest at 6.23 TMAC/s;"), done.err


def test_what_is_read_is_not_overwritten(run: Run, table: Path, folder: Path) -> None:
    before, content = table.read_bytes(), pickle.dumps({KEY: 9.5})
    (folder / "lut.pkl").write_bytes(content)
    for args in (
        ("export", "-o", str(table)),
        ("export", "-o", "again.sqlite", "--table", "again.sqlite"),
        ("plot", DEEP, "-o", str(table)),
        ("import", "lut.pkl", "-o", "lut.pkl"),
    ):
        (folder / "again.sqlite").write_bytes(before)
        done = run("table", *args, "--force")
        assert done.code == 1, done.out
        assert "is what is read; name another output file" in done.err
        assert (folder / "again.sqlite").read_bytes() == before
    assert table.read_bytes() == before
    assert (folder / "lut.pkl").read_bytes() == content


def test_a_slow_table_is_doubted(run: Run, folder: Path) -> None:
    (folder / "lut.pkl").write_bytes(pickle.dumps({KEY: 9500.0}))
    done = run("table", "import", "lut.pkl")
    assert done.out.endswith("\nthat is unusually slow for lut.csv: is the unit right?\n"), done.err
    assert "unusually slow" not in run("table", "import", "lut.pkl", "--unit", "us", "-o", "fast.csv").out


def test_an_empty_file_is_an_empty_table(run: Run, table: Path, folder: Path) -> None:
    (folder / "empty.sqlite").touch()
    assert run("table", "list", "--table", "empty.sqlite").out == "empty.sqlite\nno measurements\n"
    assert run("table", "merge", "empty.sqlite", "--json").json["added"] == 0
    assert points(table) == 16


def test_the_table_of_another_user_is_left_alone(run: Run, folder: Path) -> None:
    done = run("table", "list")
    assert done.code == 1
    assert "there is no latency table" in done.err
    assert not (folder / ".cache").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("show", "9"), "no fingerprint '9' among the 3 of the latency table: see mdp-fx table list"),
        (("show", "AMD"), "'AMD' is part of 2 fingerprints: give more of it, or its number in mdp-fx table list"),
        (("show", TORCH, "nothing"), "no region 'nothing' among the 2"),
        (("show", TORCH, "Conv2d"), "'Conv2d' is part of 2 regions"),
        (("export", "nobody", "-o", "x.csv"), "no fingerprint 'nobody'"),
        (("list", "--table", "absent.sqlite"), "there is no latency table absent.sqlite"),
        (("list", "--table", "damaged.sqlite"), "the latency table damaged.sqlite is damaged"),
        (("list", "--table", "foreign.sqlite"), "foreign.sqlite is an SQLite file of another program"),
        (("merge", "bad.sqlite"), "bad.sqlite is damaged (region 'r', sizes '8': low -1.0 is no number of at least 0)"),
        (("show", "1", "--table", "bad.sqlite"), "bad.sqlite is damaged (region 'r', sizes '8': low -1.0"),
        (("merge", "."), ". is a folder: name a latency table, such as latency.sqlite"),
        (("import", "slow.csv"), "too slow for any device: latency_us is in microseconds"),
        (("merge", "absent.sqlite"), "there is no latency table absent.sqlite"),
        (("merge", "header.csv"), "header.csv is no SQLite file: mdp-fx table import reads CSV files and pickles"),
        (("merge", ".cache/latency.sqlite"), ".cache/latency.sqlite is the latency table itself"),
        (("import", "absent.csv"), "cannot read absent.csv: no such file"),
        (("import", "header.csv"), f"header.csv is no latency table: its first line is neither {CSV} nor"),
        (("import", "row.csv"), "row.csv, line 3: low_us is '-1': it must be a number of at least 0"),
        (("import", "conv.csv"), "conv.csv, line 2: a latency must be a number above 0"),
        (("import", "class.pkl"), "class.pkl needs the class collections.OrderedDict"),
        (("import", "keys.pkl"), "keys.pkl: the key '64_64' is not of the form batch_cin_cout_fmap_k_stride[_groups]"),
        (("import", "numbers.pkl"), "numbers.pkl: the key 'int' is not of the form batch_cin_cout"),
        (("import", "negative.pkl"), f"negative.pkl: the entry '{KEY}': a latency must be a number above 0"),
        (("import", "damaged.pkl"), "damaged.pkl is damaged or no pickle"),
        (("import", "row.csv", "--unit", "ms"), "--unit is for pickles"),
        (("import", "row.csv", "-o", "x.csv"), "--output is for pickles"),
        (("plot", "cccc", "-o", "x.html"), "has one latency and no sizes: there is nothing to plot"),
        (("plot", CONV, "-o", "x.html"), "was measured on 2 fingerprints: choose one with --fingerprint"),
        (("plot", "nothing", "-o", "x.html"), "no region 'nothing'"),
        (("plot", DEEP, "-o", "x.svg"), "cannot plot to x.svg: name a file that ends in .html, or in .png"),
        (("gc", "--fingerprint", "nobody"), "no fingerprint 'nobody'"),
    ],
)
def test_bad_input_is_one_line(run: Run, table: Path, folder: Path, args: tuple[str, ...], says: str) -> None:
    (folder / "damaged.sqlite").write_bytes(b"SQLite format 3\x00" + b"\xff" * 2000)
    connection = sqlite3.connect(folder / "foreign.sqlite")
    connection.execute("CREATE TABLE bookmark (url TEXT)")
    connection.close()
    with LatencyTable(folder / "bad.sqlite") as bad:
        bad.put("machine", "r", (8,), timing(1.0))
    connection = sqlite3.connect(folder / "bad.sqlite")
    connection.execute("UPDATE measurement SET low_s=-1")
    connection.commit()
    connection.close()
    (folder / "slow.csv").write_text(f"{CONVOLUTIONS}\n64,64,8,3,1,1,1,1e12\n")
    (folder / "header.csv").write_text("a,b\n1,2\n")
    (folder / "row.csv").write_text(f"{CSV}\nm,r,8,1,1,1,0,3\nm,r,16,1,1,-1,0,3\n")
    (folder / "conv.csv").write_text(f"{CONVOLUTIONS}\n8,8,8,3,1,1,1,nan\n")
    (folder / "class.pkl").write_bytes(pickle.dumps(OrderedDict({KEY: 1.0})))
    (folder / "keys.pkl").write_bytes(pickle.dumps({"64_64": 1.0}))
    (folder / "numbers.pkl").write_bytes(pickle.dumps({10**5000: 1.0}))
    (folder / "negative.pkl").write_bytes(pickle.dumps({KEY: -1.0}))
    (folder / "damaged.pkl").write_bytes(b"\x80\x04")
    before = {path.name for path in folder.iterdir()}
    done = run("table", *args)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("mdp-fx: error: ")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
    assert {path.name for path in folder.iterdir()} == before
    assert points(table) == 16


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("shwo",), "No such command 'shwo'"),
        (("export",), "Missing option '-o'"),
        (("import", "x.pkl", "--unit", "min"), "'min' is not one of"),
        (("gc", "--older-than", "-1"), "--older-than"),
        (("gc", "--older-than", "nan"), "'--older-than': nan is not a number"),
        ((), "Usage: mdp-fx table"),
    ],
)
def test_usage_errors_exit_2(run: Run, args: tuple[str, ...], says: str) -> None:
    done = run("table", *args)
    assert done.code == 2
    assert says in done.out + done.err
