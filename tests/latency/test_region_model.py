"""Reading a region's table: exact where measured, multilinear between treads, padding at its price."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdp_fx.latency.region_model import AxisModel, RegionModel

LINES = st.lists(st.integers(1, 600), min_size=1, max_size=5, unique=True).map(sorted)


def read(model: RegionModel, *sizes: int) -> float:
    return float(model.at([(size,) for size in sizes]).reshape(()))


@given(LINES, LINES, st.integers(0, 2**32 - 1))
def test_measured_points_are_read_as_measured(first: list[int], second: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.1, 9.0, (len(first), len(second)))
    model = RegionModel((AxisModel(tuple(first)), AxisModel(tuple(second))), values)
    np.testing.assert_allclose(model.at((first, second)), values, rtol=1e-12)


def test_a_line_off_the_treads_is_read_as_measured_too() -> None:
    model = RegionModel((AxisModel((24, 64, 256), 16, ((24, 1.25),)),), np.array([2.5, 4.0, 16.0]))
    assert [read(model, size) for size in (24, 64, 256)] == pytest.approx([2.5, 4.0, 16.0])


def test_sizes_on_one_tread_take_the_same_time() -> None:
    model = RegionModel((AxisModel((16, 256), 16),), np.array([1.0, 16.0]))
    assert [read(model, size) for size in (17, 24, 31, 32)] == pytest.approx([2.0] * 4)
    assert read(model, 33) == pytest.approx(3.0)


def test_what_is_padded_costs_more_than_its_tread() -> None:
    model = RegionModel((AxisModel((16, 256), 16, ((120, 1.5),)),), np.array([1.0, 16.0]))
    assert read(model, 32) == pytest.approx(2.0)
    assert read(model, 24) == pytest.approx(3.0)


def test_prices_of_several_axes_multiply() -> None:
    axis = AxisModel((16, 256), 16, ((120, 1.5),))
    model = RegionModel((axis, axis), np.outer([1.0, 16.0], [1.0, 16.0]))
    assert read(model, 24, 24) == pytest.approx(2.0 * 2.0 * 1.5 * 1.5)
    assert read(model, 24, 32) == pytest.approx(2.0 * 2.0 * 1.5)


def test_a_region_without_axes_has_one_time() -> None:
    found = RegionModel((), np.array(0.25)).at(())
    found[()] *= 2  # an array, into which what was measured exactly is written
    assert found == 0.5


def test_without_a_line_its_neighbours_are_read() -> None:
    axes = (AxisModel((8, 16, 32)), AxisModel((1, 2)))
    values = np.array([[8.0, 16.0], [99.0, 99.0], [32.0, 64.0]])
    left = RegionModel(axes, values).without(0, 1)
    assert left.axes[0].lines == (8, 32)
    assert read(left, 16, 2) == pytest.approx(32.0)


def test_outside_of_what_was_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="outside the measured 8 to 64"):
        read(RegionModel((AxisModel((8, 64)),), np.ones(2)), 65)
