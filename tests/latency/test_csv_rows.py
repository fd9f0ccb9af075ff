"""Times as decimal text, and CSV files whole or not at all."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from mdp_fx.errors import InputError, OutputError
from mdp_fx.latency.csv_rows import read_header, read_rows, scaled, unscaled, write_rows


def test_seconds_survive_the_way_through_microseconds() -> None:
    generator = random.Random(0)
    values = [generator.random() * 10.0 ** generator.randint(-9, 3) for _ in range(500)]
    for value in [0.0, 1.0, 5e-324, 1e-300, *values]:
        assert unscaled(scaled(value, 6), 6) == value
    assert scaled(1405e-6, 6) == "1405"
    assert scaled(1.5e-9, 6) == "0.0015"


@pytest.mark.parametrize("text", ["", "x", "1,5", "1e999999999", "--1"])
def test_what_is_no_number_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        unscaled(text, 6)


def test_nan_and_infinity_are_left_to_the_reader() -> None:
    assert math.isnan(unscaled("nan", 6))
    assert math.isinf(unscaled("inf", 6))


def test_fields_with_commas_quotes_and_line_ends_survive(tmp_path: Path) -> None:
    rows = [["a,b", 'say "x"', "two\nlines"], ["", " ", "é"]]
    write_rows(tmp_path / "a.csv", ("one", "two", "three"), rows)
    assert read_header(tmp_path / "a.csv") == ("one", "two", "three")
    assert list(read_rows(tmp_path / "a.csv", ("one", "two", "three"))) == [(3, rows[0]), (4, rows[1])]


def test_an_empty_file_has_an_empty_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    assert read_header(tmp_path / "a.csv") == ()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        write_rows(tmp_path / "none" / "a.csv", ("one",), [["1"]])
    with pytest.raises(InputError, match="cannot read"):
        read_header(tmp_path)
