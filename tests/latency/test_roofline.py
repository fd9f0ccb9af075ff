"""The estimate: it finds the coefficients that made the data, and says how far off it is."""

from __future__ import annotations

import numpy as np
import pytest

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_table import ConvolutionTable, Entry
from mdp_fx.latency.roofline import Roofline, macs
from tests.latency.convolutions import convolution, entry, grid_table

LAUNCH, COMPUTE, MEMORY = 5e-5, 2e-13, 3e-12


def bytes_of(inputs: int, outputs: int) -> int:
    return 4 * (4 * inputs * 64 + 4 * outputs * 64 + inputs * outputs * 9)


def made(inputs: int, outputs: int, launch: float, compute: float, memory: float) -> Entry:
    work = 4 * 64 * 9 * inputs * outputs
    return entry(inputs, outputs, launch + compute * work + memory * bytes_of(inputs, outputs))


@pytest.mark.parametrize(
    "coefficients", [(LAUNCH, COMPUTE, MEMORY), (LAUNCH, COMPUTE, 0.0), (0.0, COMPUTE, MEMORY), (0.0, 0.0, MEMORY)]
)
def test_exact_data_gives_its_coefficients(coefficients: tuple[float, float, float]) -> None:
    sizes = (16, 32, 64, 128, 256)
    fit = Roofline(ConvolutionTable("made", [made(i, o, *coefficients) for i in sizes for o in sizes]))
    np.testing.assert_allclose(fit.coefficients, coefficients, rtol=1e-6, atol=1e-18)
    assert fit.error == pytest.approx(0.0, abs=1e-9)
    expected = made(48, 96, *coefficients).seconds
    assert fit.seconds(convolution(48, 96)) == pytest.approx(expected)


def test_no_coefficient_is_negative() -> None:
    # Time that falls with the work would want one.
    rows = [entry(size, size, 1e-3 / size) for size in (8, 16, 32, 64)]
    fit = Roofline(ConvolutionTable("falling", rows))
    assert (fit.coefficients >= 0).all()
    assert fit.seconds(convolution(1024, 1024)) > 0
    assert fit.error > 0.2


def test_short_convolutions_count_as_much_as_long_ones() -> None:
    rows = [entry(8, 8 * i, 1e-6) for i in range(1, 20)] + [entry(4096, 4096, 1.0)]
    fit = Roofline(ConvolutionTable("mixed", rows))
    assert fit.seconds(convolution(8, 80)) == pytest.approx(1e-6, rel=0.3)


def test_it_says_what_it_is() -> None:
    sizes = (16, 32, 64)
    text = str(Roofline(ConvolutionTable("made", [made(i, o, LAUNCH, COMPUTE, MEMORY) for i in sizes for o in sizes])))
    assert text == "50 us + MACs / 5 T/s + bytes / 333 GB/s, median error 0 % on the table's own points"
    assert "MACs" not in str(Roofline(ConvolutionTable("made", [made(i, i, LAUNCH, 0.0, 0.0) for i in sizes])))


def test_two_points_are_too_few() -> None:
    with pytest.raises(InputError, match="grid has 2 points: too few to estimate others from"):
        Roofline(grid_table((8,), (8, 16)))


def test_multiply_accumulates() -> None:
    assert macs(convolution(8, 16)) == 4 * 64 * 9 * 8 * 16
    assert macs(convolution(8, 8, groups=8)) == 4 * 64 * 9 * 8
    up = convolution(8, 16, kernel=(2, 2), stride=(2, 2), output_size=(16, 16), transposed=True)
    assert macs(up) == 4 * 64 * 4 * 8 * 16
