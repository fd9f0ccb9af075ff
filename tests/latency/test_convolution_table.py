"""Looking convolutions up: points, cells, holes, edges."""

from __future__ import annotations

from typing import Any

import pytest

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_table import DEPTHWISE, ConvolutionTable, Geometry
from tests.latency.convolutions import convolution, entry, grid_table, linear_seconds


def test_a_point_is_found_as_it_is() -> None:
    table = grid_table((8, 16), (8, 16, 32))
    assert len(table) == 6
    assert table.seconds(convolution(16, 32)) == linear_seconds(16, 32)


@pytest.mark.parametrize("at", [(12, 8), (8, 20), (10, 29), (15, 31)])
def test_between_points_it_is_bilinear(at: tuple[int, int]) -> None:
    table = grid_table((8, 16), (8, 16, 32))
    assert table.seconds(convolution(*at)) == pytest.approx(linear_seconds(*at))


@pytest.mark.parametrize("at", [(7, 8), (17, 8), (8, 7), (16, 33), (4, 64)])
def test_nothing_is_extrapolated(at: tuple[int, int]) -> None:
    assert grid_table((8, 16), (8, 16, 32)).seconds(convolution(*at)) is None


def test_the_smallest_known_cell_counts_in_a_union_of_grids() -> None:
    # Two grids: (8, 16, 32) x (64, 128), and (32, 64) x (8, 16, 64); made so that only the right cell gives the answer.
    rows = [entry(i, o, 1e-3 * i + 1e-6 * o) for i in (8, 16, 32) for o in (64, 128)]
    rows += [entry(i, o, 1e-3 * i + 1e-6 * o) for i in (32, 64) for o in (8, 16)]
    rows += [entry(64, 64, 1.0)]
    table = ConvolutionTable("union", rows)
    assert table.seconds(convolution(12, 96)) == pytest.approx(12e-3 + 96e-6)
    assert table.seconds(convolution(40, 12)) == pytest.approx(40e-3 + 12e-6)
    # Along out = 64 both ends are known, though no cell below is.
    assert table.seconds(convolution(48, 64)) == pytest.approx((32e-3 + 64e-6 + 1.0) / 2)
    assert table.seconds(convolution(12, 16)) is None
    assert table.seconds(convolution(64, 128)) is None


def test_a_hole_is_bridged_by_the_cell_around_it() -> None:
    rows = [entry(i, o, linear_seconds(i, o)) for i in (8, 16, 32) for o in (8, 16, 32) if (i, o) != (16, 16)]
    table = ConvolutionTable("hole", rows)
    assert table.seconds(convolution(16, 16)) == pytest.approx(linear_seconds(16, 16))


@pytest.mark.parametrize(
    "others",
    [
        {"batch": 8},
        {"stride": (2, 2)},
        {"kernel": (1, 1)},
        {"kernel": (1, 3)},
        {"input_size": (8, 9)},
        {"input_size": (16, 16)},
        {"dilation": (2, 2)},
        {"groups": 2},
        {"transposed": True},
        {"input_size": (8,), "kernel": (3,), "stride": (1,), "dilation": (1,)},
    ],
)
def test_another_geometry_is_outside(others: dict[str, Any]) -> None:
    table = grid_table((8, 16), (8, 16))
    assert table.seconds(convolution(8, 8, **others)) is None
    assert table.grid(convolution(8, 8, **others)) == ((), ())


def test_depthwise_convolutions_lie_on_a_line() -> None:
    table = ConvolutionTable("deep", [entry(c, c, 1e-5 * c, groups=c) for c in (8, 16, 64)])
    assert table.seconds(convolution(16, 16, groups=16)) == pytest.approx(16e-5)
    assert table.seconds(convolution(40, 40, groups=40)) == pytest.approx(40e-5)
    assert table.seconds(convolution(7, 7, groups=7)) is None
    assert table.seconds(convolution(65, 65, groups=65)) is None
    geometry = Geometry.of(convolution(16, 16, groups=16))
    assert geometry is not None
    assert geometry.groups == DEPTHWISE
    assert list(table.grid(convolution(40, 40, groups=40))[0]) == [8, 16, 64]
    # One channel is no depthwise convolution, and neither is one with a multiplier.
    assert table.seconds(convolution(1, 1)) is None
    assert table.seconds(convolution(16, 32, groups=16)) is None


def test_batches_alignment_and_digest() -> None:
    table = ConvolutionTable("two", [entry(3, 32, 1.0), entry(3, 48, 1.0), entry(3, 64, 1.0, batch=1)])
    assert table.batches == (1, 4)
    assert table.alignment == 16
    assert table.digest == ConvolutionTable("other name", list(table)[::-1]).digest
    assert table.digest != ConvolutionTable("two", list(table)[1:]).digest


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((0, 8, 1.0, {}), "in_channels is 0: it must be at least 1"),
        ((8, 8, 1.0, {"stride": -1}), "stride is -1"),
        ((8, 8, 1.0, {"groups": 3}), "3 groups do not divide 8 -> 8 channels"),
        ((8, 8, -1.0, {}), "a latency must be a number above 0"),
        ((8, 8, 0.0, {}), "a latency must be a number above 0"),
        ((8, 8, float("nan"), {}), "a latency must be a number above 0"),
        ((8, 8, float("inf"), {}), "a latency must be a number above 0"),
    ],
)
def test_rows_are_checked(row: tuple[int, int, float, dict[str, int]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        entry(*row[:3], **row[3])


def test_an_empty_table_is_none() -> None:
    with pytest.raises(InputError, match="nothing holds no convolutions"):
        ConvolutionTable("nothing", [])
