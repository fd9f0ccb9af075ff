from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdp_fx.latency import interpolate, resample

SIZES = st.lists(st.integers(1, 2048), min_size=1, max_size=6, unique=True).map(sorted)


@given(SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_exact_at_measured_points(first: list[int], second: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.1, 9.0, (len(first), len(second)))
    np.testing.assert_allclose(resample((first, second), values, (first, second)), values, rtol=1e-12)


@given(st.data(), SIZES, SIZES)
def test_bilinear_functions_are_reproduced(data: st.DataObject, first: list[int], second: list[int]) -> None:
    a, b, c, d = (data.draw(st.floats(-2, 2)) for _ in range(4))

    def bilinear(x: float, y: float) -> float:
        return a + b * x + c * y + d * x * y

    values = np.array([[bilinear(x, y) for y in second] for x in first])
    at = (data.draw(st.integers(first[0], first[-1])), data.draw(st.integers(second[0], second[-1])))
    scale = float(np.abs(values).max()) + 1e-9
    assert interpolate((first, second), values, at) == pytest.approx(bilinear(*at), abs=1e-9 * scale)


@given(st.data(), SIZES, SIZES, SIZES)
def test_between_the_smallest_and_the_largest_value(
    data: st.DataObject, first: list[int], second: list[int], third: list[int]
) -> None:
    points = (first, second, third)
    values = np.random.default_rng(0).uniform(1.0, 2.0, tuple(map(len, points)))
    at = [data.draw(st.integers(axis[0], axis[-1])) for axis in points]
    assert values.min() - 1e-12 <= interpolate(points, values, at) <= values.max() + 1e-12


def test_no_axes_is_the_value_itself() -> None:
    assert interpolate((), np.array(0.25), ()) == 0.25


def test_resample_keeps_the_order_asked_for() -> None:
    assert resample([[8, 16]], np.array([1.0, 3.0]), [[16, 8, 12]]).tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("at", [7, 65])
def test_outside_the_measured_sizes_is_an_error(at: int) -> None:
    with pytest.raises(ValueError, match="outside the measured 8 to 64"):
        interpolate([[8, 64]], np.array([1.0, 2.0]), [at])


def test_unsorted_points_and_wrong_shapes_are_errors() -> None:
    with pytest.raises(ValueError, match="not ascending"):
        interpolate([[64, 8]], np.array([1.0, 2.0]), [8])
    with pytest.raises(ValueError, match="table of shape"):
        interpolate([[8, 64]], np.array([1.0, 2.0, 3.0]), [8])
