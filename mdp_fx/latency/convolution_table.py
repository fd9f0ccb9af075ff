"""Published latency tables: single convolutions on one device, looked up by geometry and channels.

Such a table knows nothing of a network's other layers, of padding, or of what a runtime fuses. It is read from CSV
(`convolution_csv.py`) or from the pickles of HALP and MDP (`convolution_pickle.py`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, isfinite

import numpy as np

from mdp_fx.errors import InputError
from mdp_fx.latency.interpolation import interpolate
from mdp_fx.passes.convolutions import Convolution

DEPTHWISE = 0
"""In place of a number of groups: as many as there are channels, one filter each."""

Channels = tuple[int, int]
"""(channels read, channels made)."""


@dataclass(frozen=True, order=True)
class Geometry:
    """What distinguishes convolutions of a table but their channels: square inputs and kernels, no dilation."""

    input_size: int
    kernel: int
    stride: int
    groups: int
    batch: int

    @classmethod
    def of(cls, convolution: Convolution) -> Geometry | None:
        """The geometry of a convolution, None where tables have no place for it."""
        if convolution.transposed or set(convolution.dilation) != {1}:
            return None
        sides = [convolution.input_size, convolution.kernel, convolution.stride]
        if any(len(lengths) != 2 or lengths[0] != lengths[1] for lengths in sides):
            return None
        groups = _groups(convolution.in_channels, convolution.out_channels, convolution.groups)
        return cls(sides[0][0], sides[1][0], sides[2][0], groups, convolution.batch)

    @property
    def output_size(self) -> int:
        """Side of the result: tables hold convolutions whose padding loses no places."""
        return -(-self.input_size // self.stride)


def _groups(in_channels: int, out_channels: int, groups: int) -> int:
    return DEPTHWISE if groups > 1 and groups == in_channels == out_channels else groups


@dataclass(frozen=True)
class Entry:
    """One row of a table: a convolution and its seconds."""

    in_channels: int
    out_channels: int
    input_size: int
    kernel: int
    stride: int
    groups: int
    batch: int
    seconds: float

    def __post_init__(self) -> None:
        """Checks it.

        Raises:
            InputError: a size below 1, channels that the groups do not divide, or a latency that is none.
        """
        for name in ("in_channels", "out_channels", "input_size", "kernel", "stride", "groups", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InputError(f"{self.groups} groups do not divide {self.in_channels} -> {self.out_channels} channels")
        if not (isfinite(self.seconds) and self.seconds > 0):
            raise InputError("a latency must be a number above 0")

    @property
    def geometry(self) -> Geometry:
        """Where it belongs."""
        groups = _groups(self.in_channels, self.out_channels, self.groups)
        return Geometry(self.input_size, self.kernel, self.stride, groups, self.batch)

    @property
    def convolution(self) -> Convolution:
        """What was timed."""
        return Convolution(
            layer="table",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            groups=self.groups,
            batch=self.batch,
            input_size=(self.input_size,) * 2,
            output_size=(self.geometry.output_size,) * 2,
            kernel=(self.kernel,) * 2,
            stride=(self.stride,) * 2,
            dilation=(1, 1),
        )


class _Points:
    """The points of one geometry: a union of grids over (in, out), or a diagonal where it is depthwise."""

    def __init__(self, seconds: Mapping[Channels, float]) -> None:
        self.seconds = dict(seconds)
        self.ins = sorted({inputs for inputs, _ in seconds})
        self.outs = sorted({outputs for _, outputs in seconds})
        self._made_of: dict[int, set[int]] = {}
        for inputs, outputs in seconds:
            self._made_of.setdefault(inputs, set()).add(outputs)

    def within(self, at: Channels) -> float | None:
        """Bilinear on the smallest cell around `at` whose corners are all known; None where there is none."""
        if at in self.seconds:
            return self.seconds[at]
        best: tuple[int, Sequence[int], Sequence[int]] | None = None
        below = self.ins[: bisect_right(self.ins, at[0])]
        above = self.ins[bisect_left(self.ins, at[0]) :]
        for low in reversed(below):
            for high in above:
                common = sorted(self._made_of[low] & self._made_of[high])
                first, last = bisect_right(common, at[1]) - 1, bisect_left(common, at[1])
                if first < 0 or last == len(common):
                    continue
                area = (high - low + 1) * (common[last] - common[first] + 1)
                if best is None or area < best[0]:
                    best = (area, sorted({low, high}), sorted({common[first], common[last]}))
        return None if best is None else self._interpolate(best[1], best[2], at)

    def along(self, channels: int) -> float | None:
        """Linear between the two nearest points of the diagonal; None outside of it."""
        first, last = bisect_right(self.ins, channels) - 1, bisect_left(self.ins, channels)
        if first < 0 or last == len(self.ins):
            return None
        known = sorted({self.ins[first], self.ins[last]})
        return interpolate([known], np.array([self.seconds[size, size] for size in known]), [channels])

    def _interpolate(self, ins: Sequence[int], outs: Sequence[int], at: Channels) -> float:
        values = np.array([[self.seconds[inputs, outputs] for outputs in outs] for inputs in ins])
        return interpolate([ins, outs], values, at)


class ConvolutionTable:
    """Latencies of single convolutions.

    Attributes:
        name: where it comes from, for messages.
        entries: its rows, in the order of their geometry and channels.
    """

    def __init__(self, name: str, entries: Sequence[Entry]) -> None:
        """Holds the rows of a table; no point may be given twice.

        Raises:
            InputError: there are none.
        """
        if not entries:
            raise InputError(f"{name} holds no convolutions")
        self.name = name
        self.entries = tuple(sorted(entries, key=lambda e: (e.geometry, e.in_channels, e.out_channels)))
        points: dict[Geometry, dict[Channels, float]] = {}
        for entry in entries:
            points.setdefault(entry.geometry, {})[entry.in_channels, entry.out_channels] = entry.seconds
        self._points = {geometry: _Points(seconds) for geometry, seconds in points.items()}

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that it has, ascending."""
        return tuple(sorted({geometry.batch for geometry in self._points}))

    @property
    def alignment(self) -> int:
        """The step of its channel grid: what all its output channels are multiples of."""
        return gcd(*(outputs for points in self._points.values() for outputs in points.outs))

    @cached_property
    def digest(self) -> str:
        """Eight letters that another table does not have."""
        return hashlib.sha256(repr(self.entries).encode()).hexdigest()[:8]

    def seconds(self, convolution: Convolution) -> float | None:
        """Seconds of a convolution: of its point, or bilinear between four; None outside of the table.

        Nothing is extrapolated. Depthwise ones lie on a line and are interpolated along it.
        """
        geometry = Geometry.of(convolution)
        points = self._points.get(geometry) if geometry is not None else None
        if geometry is None or points is None:
            return None
        if geometry.groups == DEPTHWISE:
            return points.along(convolution.in_channels)
        return points.within((convolution.in_channels, convolution.out_channels))

    def grid(self, convolution: Convolution) -> tuple[Sequence[int], Sequence[int]]:
        """Numbers of channels (read, made) at which the table has points of this geometry."""
        geometry = Geometry.of(convolution)
        points = self._points.get(geometry) if geometry is not None else None
        return (points.ins, points.outs) if points is not None else ((), ())
