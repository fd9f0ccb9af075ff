"""How fast a table's convolutions would be: what tells whether its latencies are in the unit that they are read in."""

from __future__ import annotations

from pathlib import Path

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_table import ConvolutionTable
from mdp_fx.latency.roofline import macs

SLOWEST, FASTEST = 1e7, 3e15
"""Multiply-accumulates a second between which the fastest convolution of a table must lie: a microcontroller does more
than the one, and no accelerator comes to the other."""

UNUSUAL = 1e10
"""Below it there are small devices, and tables of GPUs in a wrong unit."""


def fastest_rate(table: ConvolutionTable) -> float:
    """Multiply-accumulates a second of the convolution that does most."""
    return max(macs(entry.convolution) / entry.seconds for entry in table)


def check_rates(path: Path, table: ConvolutionTable, unit: str, remedy: str) -> None:
    """Checks that a table's fastest convolution is as fast as some device.

    Args:
        path: where it was read.
        table: what was read.
        unit: the one its latencies were read in.
        remedy: what to do where that cannot be, for the message.

    Raises:
        InputError: no device is that slow or fast.
    """
    rate = fastest_rate(table)
    if not SLOWEST <= rate <= FASTEST:
        speed = "slow" if rate < SLOWEST else "fast"
        msg = (
            f"{path}: in {unit} the fastest convolution would do {rate:.1e} multiply-accumulates a second, which is "
            f"too {speed} for any device: {remedy}"
        )
        raise InputError(msg)
