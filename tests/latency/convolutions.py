"""Small convolution tables, and convolutions to look up in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mdp_fx.latency.convolution_table import ConvolutionTable, Entry
from mdp_fx.passes.convolutions import Convolution


def entry(inputs: int, outputs: int, seconds: float, **others: Any) -> Entry:
    """A row: by default 3 x 3 on 8 x 8, batch 4."""
    return Entry(
        inputs,
        outputs,
        **{"input_size": 8, "kernel": 3, "stride": 1, "groups": 1, "batch": 4, **others},
        seconds=seconds,
    )


def convolution(inputs: int, outputs: int, **others: Any) -> Convolution:
    """What `entry` times."""
    shape: dict[str, Any] = {
        "groups": 1,
        "batch": 4,
        "input_size": (8, 8),
        "output_size": (8, 8),
        "kernel": (3, 3),
        "stride": (1, 1),
        "dilation": (1, 1),
    }
    return Convolution("conv", inputs, outputs, **{**shape, **others})


def linear_seconds(inputs: int, outputs: int) -> float:
    """A latency that is bilinear in the channels."""
    return 1e-4 + 1e-6 * inputs + 2e-6 * outputs + 1e-8 * inputs * outputs


def grid_table(ins: Iterable[int], outs: Iterable[int], **others: Any) -> ConvolutionTable:
    """A table on a full grid."""
    outs = tuple(outs)
    rows = [entry(i, o, linear_seconds(i, o), **others) for i in ins for o in outs]
    return ConvolutionTable("grid", rows)
