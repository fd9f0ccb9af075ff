"""Latency tables as tables and as plots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdp_fx.report.latency_table import (
    FingerprintRow,
    PointRow,
    RegionRow,
    age,
    deletion_tables,
    figure,
    list_tables,
    show_points,
    show_regions,
)
from tests.report.rendering import has_row, lines

ROW = FingerprintRow(
    index=1,
    fingerprint="torch:cpu torch 2.14 AMD [fast] threads 2 float32 m1",
    target="torch:cpu",
    runtime="torch",
    version="2.14",
    device="AMD [fast]",
    threads=2,
    dtype="float32",
    regions=23,
    points=410,
    oldest_s=3 * 86400.0,
    newest_s=7200.0,
    undated=0,
    size_bytes=90_000,
    stale=False,
)


def point(*sizes: int, low: float = 1000.0) -> PointRow:
    return PointRow(sizes, 1.1 * low, 1.2 * low, low, 0.05, 9, 60.0)


@pytest.mark.parametrize("width", [100, 140])
def test_a_list_says_what_is_there(width: int) -> None:
    plain = replace(ROW, index=2, target=None, runtime=None, version=None, device=None, threads=None, dtype=None)
    found = lines(list_tables("/cache/latency.sqlite", [ROW, replace(plain, fingerprint="fake 1")]), width)
    assert found[0] == "/cache/latency.sqlite"
    text = " ".join(found)
    for fact in ("torch:cpu", "AMD [fast]", "23", "410", "2 h to 3 d", "88 KiB", "fake 1"):
        assert fact in text
    assert "not installed now" not in text
    assert all(len(line) <= width for line in found)
    assert "not installed" in " ".join(lines(list_tables("t", [replace(ROW, stale=True)]), 140))


def test_an_empty_table_says_so() -> None:
    assert lines(list_tables("t.sqlite", [])) == ["t.sqlite", "no measurements"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (0.2, "now"), (5.0, "5 s"), (90.0, "2 min"), (7200.0, "2 h"), (30 * 86400.0, "30 d")],
)
def test_ages(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def test_regions_and_points() -> None:
    regions = [RegionRow(i, f"Conv2d [{i}]", 25, 100.0, 2000.0) for i in range(1, 20)]
    found = lines(show_regions("machine", regions, verbose=False))
    assert has_row(found, "1", "Conv2d [1]", "25", "0.1 ms", "2.00 ms")
    assert "... and 3 more (-v shows all)" in found
    assert not any("more" in line for line in lines(show_regions("machine", regions, verbose=True)))
    points = [point(8, 16), point(16, 16, low=2000.0), replace(point(low=500.0), age_s=None)]
    found = lines(show_points("machine", "Conv2d", points, verbose=False), 100)
    assert found[:2] == ["Conv2d", "machine"]
    assert any(line.strip().startswith("16 x 16") and "2.40 ms" in line and "1 min" in line for line in found)
    assert any(line.strip().startswith("-") and "unknown" in line for line in found)


def test_what_goes_and_what_stays() -> None:
    found = lines(deletion_tables({"machine [1]": 25}, 3))
    assert has_row(found, "25", "machine [1]")
    assert "3 points of unknown age not among them" in found
    assert lines(deletion_tables({}, 0)) == ["nothing to delete"]


def test_one_size_is_a_staircase_for_each_fingerprint() -> None:
    drawn = figure("Conv<b>", {"one": [point(8), point(16, low=3000.0)], "other": [point(8)]})
    assert [trace.line.shape for trace in drawn.data] == ["vh", "vh"]
    assert list(drawn.data[0].x) == [8, 16]
    assert list(drawn.data[0].y) == [1.0, 3.0]
    assert [trace.name for trace in drawn.data] == ["one", "other"]
    assert drawn.layout.title.text == "Conv&lt;b&gt;"
    assert "median" in drawn.data[0].hovertext[0]


def test_two_sizes_are_a_heat_map_with_holes() -> None:
    drawn = figure("conv", {"one": [point(8, 32), point(16, 32, low=2000.0), point(8, 64, low=4000.0)]})
    (heat,) = drawn.data
    assert (list(heat.x), list(heat.y)) == ([8, 16], [32, 64])
    assert [list(row) for row in heat.z] == [[1.0, 2.0], [4.0, None]]
    assert heat.hovertext[1][1] == "not measured"


def test_three_sizes_are_cut_at_the_largest_third() -> None:
    drawn = figure("conv", {"one": [point(8, 32, 1), point(8, 32, 2, low=2000.0)]})
    assert [list(row) for row in drawn.data[0].z] == [[2.0]]
    assert "third size 2" in drawn.layout.title.subtitle.text
