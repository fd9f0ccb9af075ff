"""What `mdp-fx diff` shows, as text."""

from __future__ import annotations

import dataclasses

import pytest

from mdp_fx.report import cells
from mdp_fx.report.diff import Diff, DiffRow
from mdp_fx.report.diff_tables import diff_tables
from tests.report.rendering import has_row, lines

DIFF = Diff(
    rows=(
        DiffRow("stem", "Conv2d", (64, 3, 7, 7), (32, 3, 7, 7), 9408, 4704, 118_013_952, 59_006_976, 0.5, 0.25),
        DiffRow("bn", "BatchNorm2d", (64,), (32,), 128, 64, 0, 0),
        DiffRow("block.conv", "Conv2d", (64, 64, 3, 3), None, 36864, 0, 115_605_504, 0, 0.4, None),
        DiffRow("same", "Conv2d", (8, 8, 1, 1), (8, 8, 1, 1), 64, 64, 640, 640, 0.1, 0.1),
    ),
    removed=("block",),
    params=(46464, 4832),
    macs=(233_620_096, 59_007_616),
    ms=(1.0, 0.35),
)


@pytest.mark.parametrize("width", [80, 120])
def test_diff_tables(width: int) -> None:
    shown = lines(diff_tables(DIFF, "a.pt", "b.pt", verbose=False), width)
    assert all(len(line) <= width for line in shown)
    assert shown[0] == "a.pt -> b.pt"
    assert has_row(shown, "stem", "64x3 -> 32x3", "9.41k -> 4.70k", "118M -> 59.0M", "0.500 -> 0.250")
    assert has_row(shown, "block.conv", "64x64 -> removed", "36.9k -> 0", "116M -> 0", "0.400 -> -")
    assert not any(line.startswith(("bn", "same")) for line in shown)
    assert "1 norms and other small modules follow, 1 modules are equal (-v shows all)" in shown
    assert has_row(shown, "parameters", "46.5k -> 4.83k (10.4 %)")
    assert has_row(shown, "latency", "1.00 ms -> 0.35 ms (35.0 %), sums of regions measured alone")
    assert has_row(shown, "removed", "block")


def test_diff_tables_in_full() -> None:
    shown = lines(diff_tables(DIFF, "a.pt", "b.pt", verbose=True), 120)
    assert has_row(shown, "stem", "Conv2d", "64x3x7x7 -> 32x3x7x7")
    assert has_row(shown, "bn", "BatchNorm2d", "64 -> 32", "128 -> 64")
    assert has_row(shown, "same", "Conv2d", "8x8x1x1 -> 8x8x1x1")


def test_many_removed_modules_are_cut_unless_verbose() -> None:
    names = tuple(f"layer.{number}" for number in range(40))
    many = dataclasses.replace(DIFF, removed=names)
    short, full = (" ".join(lines(diff_tables(many, "a.pt", "b.pt", verbose=v), 999)) for v in (False, True))
    assert f"{', '.join(names[: cells.SHOWN])} and {40 - cells.SHOWN} more (-v shows all)" in short
    assert ", ".join(names) in full


def test_diff_of_equal_networks() -> None:
    same = dataclasses.replace(DIFF, rows=DIFF.rows[3:], removed=(), ms=None)
    shown = lines(diff_tables(same, "a", "a", verbose=False))
    assert "no layer differs in shape" in shown
    assert not any(line.startswith(("latency", "removed")) for line in shown)
