"""Latency tables as CSV: exact both ways, and bad rows named by their line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mdp_fx.errors import InputError
from mdp_fx.latency import LatencyTable, Timing
from mdp_fx.latency.measurement import Measurement
from mdp_fx.latency.table_csv import HEADER, is_table_csv, read_measurements, write_measurements

ROW = "machine 1,Conv2d abc,64x128,12.5,13,12,0.05,7"


def random_measurements(count: int) -> list[Measurement]:
    generator = random.Random(0)
    found = []
    for i in range(count):
        low, median, p90 = sorted(generator.random() * 10.0 ** generator.randint(-7, 1) for _ in range(3))
        timing = Timing(median, p90, low, generator.random(), generator.randint(1, 200))
        sizes = tuple(generator.randint(1, 2048) for _ in range(i % 4))
        found.append(Measurement(f'device "{i % 3}", x', f"region {i}", sizes, timing))
    return found


def written(folder: Path, *rows: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join((",".join(HEADER), *rows)) + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read_exactly(tmp_path: Path) -> None:
    measurements = random_measurements(200)
    assert write_measurements(measurements, tmp_path / "a.csv") == 200
    assert read_measurements(tmp_path / "a.csv") == measurements
    assert is_table_csv(tmp_path / "a.csv")


def test_a_table_survives_export_and_import(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "a.sqlite") as one, LatencyTable(tmp_path / "b.sqlite") as other:
        for each in random_measurements(50):
            one.put(each.fingerprint, each.region, each.sizes, each.timing)
        write_measurements(one.measurements(), tmp_path / "a.csv")
        assert other.merge(read_measurements(tmp_path / "a.csv")).added == 50
        for mine, theirs in zip(one.measurements(), other.measurements(), strict=True):
            assert (mine.fingerprint, mine.region, mine.sizes) == (theirs.fingerprint, theirs.region, theirs.sizes)
            assert mine.timing == theirs.timing


def test_a_row_reads_as_it_says(tmp_path: Path) -> None:
    (found,) = read_measurements(written(tmp_path, ROW))
    assert found == Measurement("machine 1", "Conv2d abc", (64, 128), Timing(12.5e-6, 13e-6, 12e-6, 0.05, 7))
    (found,) = read_measurements(written(tmp_path, "m,pool,,1,1,1,0,3"))
    assert found.sizes == ()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("m,r,8,1,1,1,0", "line 3: 7 fields instead of 8"),
        ("m,r,8,-1,1,1,0,3", "line 3: median_us is '-1': it must be a number of at least 0"),
        ("m,r,8,1,nan,1,0,3", "line 3: p90_us is 'nan'"),
        ("m,r,8,1,1,inf,0,3", "line 3: low_us is 'inf'"),
        ("m,r,8,1,1,one,0,3", "line 3: low_us is 'one', not a number"),
        ("m,r,8,5,1,100,0,3", "line 3: low 0.0001, median 5e-06 and p90 1e-06 s are in no order"),
        ("m,r,8,1,1,1,-0.1,3", "line 3: spread is '-0.1'"),
        ("m,r,8,1,1,1,0,0", "line 3: runs are '0', not a whole number above 0"),
        ("m,r,8,1,1,1,0,2.5", "line 3: runs are '2.5'"),
        ("m,r,8,1,1,1,0," + "9" * 30, "line 3: runs are"),
        ("m,r,8xx8,1,1,1,0,3", "line 3: sizes are '8xx8', not whole numbers joined by x"),
        ("m,r,-8,1,1,1,0,3", "line 3: sizes are '-8'"),
        (" ,r,8,1,1,1,0,3", "line 3: fingerprint is empty"),
        ("m,,8,1,1,1,0,3", "line 3: region is empty"),
        (ROW, "line 3: repeats the point of line 2"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, says: str) -> None:
    path = written(tmp_path, ROW, row)
    with pytest.raises(InputError) as caught:
        read_measurements(path)
    assert str(caught.value).startswith(f"{path}, {says}")


def test_another_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("fingerprint,region,sizes,median_s\n")
    assert not is_table_csv(path)
    with pytest.raises(InputError, match="has another header than fingerprint,region,sizes,median_us"):
        read_measurements(path)
