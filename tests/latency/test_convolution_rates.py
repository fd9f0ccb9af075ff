"""Rates that tell whether a unit can be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_rates import FASTEST, SLOWEST, check_rates, fastest_rate
from mdp_fx.latency.convolution_table import ConvolutionTable
from tests.latency.convolutions import entry

MACS = 4 * 8 * 8 * 9 * 16 * 16
"""Of `entry(16, 16)`: batch, places, kernel, channels."""


def table(rate: float) -> ConvolutionTable:
    """A table whose fastest convolution has a rate, beside one that is a thousand times as slow."""
    return ConvolutionTable("t", [entry(16, 16, MACS / rate), entry(16, 32, 2000 * MACS / rate)])


def test_the_fastest_counts() -> None:
    assert fastest_rate(table(5e11)) == pytest.approx(5e11)


@pytest.mark.parametrize("rate", [SLOWEST * 1.01, 1e12, FASTEST / 1.01])
def test_rates_of_devices_pass(rate: float) -> None:
    check_rates(Path("t.csv"), table(rate), "us", "look again")


@pytest.mark.parametrize(("rate", "speed"), [(SLOWEST / 1.01, "slow"), (FASTEST * 1.01, "fast")])
def test_rates_of_no_device_are_refused(rate: float, speed: str) -> None:
    with pytest.raises(InputError, match=rf"^t\.csv: in us the fastest .* too {speed} for any device: look again$"):
        check_rates(Path("t.csv"), table(rate), "us", "look again")
