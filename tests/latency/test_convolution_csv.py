"""Convolution tables as CSV: what is written is read, and bad rows are named by their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_csv import HEADER, is_convolution_csv, read_convolutions, write_convolutions
from tests.latency.convolutions import convolution, grid_table

LINE = ",".join(HEADER)
ROW = "64,128,56,1,1,1,256,1405"


def written(folder: Path, *rows: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join((LINE, *rows)) + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read_exactly(tmp_path: Path) -> None:
    table = grid_table((8, 16), (8, 24))
    write_convolutions(table, tmp_path / "a.csv")
    again = read_convolutions(tmp_path / "a.csv")
    assert again.entries == table.entries
    assert again.name == str(tmp_path / "a.csv")
    assert is_convolution_csv(tmp_path / "a.csv")


def test_microseconds_are_read_as_seconds(tmp_path: Path) -> None:
    shape = {"input_size": (56, 56), "output_size": (56, 56), "kernel": (1, 1), "batch": 256}
    assert read_convolutions(written(tmp_path, ROW)).seconds(convolution(64, 128, **shape)) == 1405e-6


def test_spaces_empty_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"\ufeff{LINE}\r\n\r\n 64 , 128,56,1,1,1,256, 1405\r\n", encoding="utf-8")
    assert len(read_convolutions(path)) == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("64,128,56,1,1,1,256", "line 3: 7 fields instead of 8"),
        ("64,128,56,1,1,1,256,-5", "line 3: a latency must be a number above 0"),
        ("64,128,56,1,1,1,256,nan", "line 3: a latency must be a number above 0"),
        ("64,128,56,1,1,1,256,fast", "line 3: latency_us is 'fast', not a number"),
        ("64,x,56,1,1,1,256,5", "line 3: out_channels is 'x', not a whole number"),
        ("64,-128,56,1,1,1,256,5", "line 3: out_channels is '-128', not a whole number"),
        ("64,128,56,1,1,3,256,5", "line 3: 3 groups do not divide 64 -> 128 channels"),
        ("64,99999999999999999999,56,1,1,1,256,5", "line 3: out_channels is '99999999999999999999'"),
        (ROW, "line 3: repeats the convolution of line 2"),
        ('64,128,56,1,1,1,256,"5', "line 3: unexpected end of data"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, says: str) -> None:
    path = written(tmp_path, ROW, row)
    with pytest.raises(InputError) as caught:
        read_convolutions(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_unit_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "64,128,56,1,1,1,256,1e12")
    with pytest.raises(InputError, match=r"in us .* too slow for any device: latency_us is in microseconds$"):
        read_convolutions(path)


def test_another_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("in,out\n1,2\n")
    assert not is_convolution_csv(path)
    with pytest.raises(InputError, match=r"another header than in_channels,.*: it begins with 'in,out'"):
        read_convolutions(path)
    path.write_text("")
    with pytest.raises(InputError, match="it is empty"):
        read_convolutions(path)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.csv"
    path.write_bytes(b"SQLite format 3\x00\xff\xfe")
    with pytest.raises(InputError, match="holds bytes that are no text"):
        read_convolutions(path)
    with pytest.raises(InputError, match=r"cannot read .*absent\.csv: no such file"):
        read_convolutions(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="no convolutions"):
        read_convolutions(written(tmp_path))
