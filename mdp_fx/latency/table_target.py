"""Targets `titan-v` and `table:PATH`: devices that only a published table knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from mdp_fx.errors import InputError, TargetError
from mdp_fx.latency.convolution_csv import HEADER, is_convolution_csv, read_convolutions
from mdp_fx.latency.convolution_pickle import is_pickle
from mdp_fx.latency.convolution_table import ConvolutionTable
from mdp_fx.latency.cpu import check_threads
from mdp_fx.latency.roofline import Roofline
from mdp_fx.latency.targets import SHIPPED_TABLES, TABLE_PREFIX, RegionSpec, Runner, Target, runs_nothing
from mdp_fx.latency.timing import Effort, Timing
from mdp_fx.passes.convolutions import Convolution

Fill = Literal["analytic"]
"""How latencies that a table does not have are estimated."""


@dataclass(frozen=True)
class Lookup:
    """What a table says of a region.

    Attributes:
        seconds: the sum over its convolutions, 0 without any.
        convolutions: how many it has.
        estimated: how many of them the table does not have.
    """

    seconds: float
    convolutions: int
    estimated: int


class TableTarget(Target):
    """A device by its table of convolutions: it predicts, and can run nothing.

    A region takes the sum of its convolutions; what else it holds (norms, activations, additions) is not in the table,
    and a region without a convolution costs nothing.

    Attributes:
        table: the table.
        roofline: what estimates the convolutions that it does not have; None where these are an error.
    """

    can_run = False

    def __init__(
        self, table: ConvolutionTable, threads: int | None = None, *, name: str, fill: Fill | None = None
    ) -> None:
        """Takes a table; `threads` are those of the solver, as nothing runs."""
        self.name = name
        self.threads = check_threads(threads)
        self.table = table
        self.alignment = table.alignment
        self.roofline = Roofline(table) if fill is not None else None
        self._known: dict[tuple[str, tuple[int, ...]], tuple[tuple[Convolution, float | None], ...]] = {}

    @classmethod
    def named(cls, name: str, threads: int | None = None, fill: Fill | None = None) -> TableTarget:
        """The target of that name: one of `SHIPPED_TABLES`, or `table:PATH`.

        Raises:
            InputError: the file cannot be read or is no table of convolutions.
        """
        return cls(_read(name), threads, name=name, fill=fill)

    def fingerprint(self) -> str:
        batches = ", ".join(map(str, self.table.batches))
        filled = ", filled by a fit" if self.roofline is not None else ""
        return f"{self.name} table of {len(self.table):,} convolutions, batch {batches} ({self.table.digest}){filled}"

    def check_batch(self, batch: int) -> None:
        """Checks that the table has a batch size.

        Raises:
            TargetError: it has others, which the message names.
        """
        known = self.table.batches
        if batch not in known and self.roofline is None:
            have = f"batch {known[0]}" if len(known) == 1 else f"the batches {', '.join(map(str, known))}"
            msg = f"the table of {self.name} has {have}, not {batch}: pass --batch {known[-1]}"
            raise TargetError(msg)

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        """Always fails.

        Raises:
            TargetError: a table runs no networks.
        """
        raise runs_nothing(self.name)

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """What the table says, without any spread.

        Raises:
            TargetError: a convolution lies outside of the table and nothing fills it.
        """
        seconds = self.look_up(region, sizes).seconds
        return Timing(seconds, seconds, seconds, 0.0, 1)

    def look_up(self, region: RegionSpec, sizes: tuple[int, ...]) -> Lookup:
        """Seconds of a region at `sizes`, and how they came about.

        Raises:
            TargetError: a convolution lies outside of the table and nothing fills it; the message names it.
        """
        found = self._find(region, sizes)
        total = sum(self._estimate(each) if seconds is None else seconds for each, seconds in found)
        return Lookup(total, len(found), sum(seconds is None for _, seconds in found))

    def _estimate(self, convolution: Convolution) -> float:
        if self.roofline is not None:
            return self.roofline.seconds(convolution)
        msg = f"outside of the table of {self.name}: {convolution}; --fill analytic estimates what a table lacks"
        raise TargetError(msg)

    def has(self, region: RegionSpec, sizes: tuple[int, ...]) -> bool:
        """Whether every convolution of a region at `sizes` lies inside of the table."""
        return all(seconds is not None for _, seconds in self._find(region, sizes))

    def _find(self, region: RegionSpec, sizes: tuple[int, ...]) -> tuple[tuple[Convolution, float | None], ...]:
        place = (region.key, sizes)
        if place not in self._known:
            self._known[place] = tuple((each, self.table.seconds(each)) for each in region.convolutions(sizes))
        return self._known[place]

    def on_grid(self, region: RegionSpec, sizes: tuple[int, ...]) -> bool:
        """Whether every number of channels that differs from the dense network's is one that the table has."""
        dense = self._find(region, region.dense_sizes)
        for (now, _), (before, _) in zip(self._find(region, sizes), dense, strict=True):
            ins, outs = self.table.grid(now)
            if now.in_channels != before.in_channels and now.in_channels not in ins:
                return False
            if now.out_channels != before.out_channels and now.out_channels not in outs:
                return False
        return True

    def channels(self, region: RegionSpec) -> tuple[int, ...]:
        """Numbers of channels, ascending, at which what the table says of a region may bend."""
        grids = [self.table.grid(each) for each, _ in self._find(region, region.dense_sizes)]
        return tuple(sorted({size for grid in grids for side in grid for size in side}))


@cache
def _shipped(name: str) -> ConvolutionTable:
    return read_convolutions(Path(__file__).parent / "data" / SHIPPED_TABLES[name], name)


def _read(name: str) -> ConvolutionTable:
    if name in SHIPPED_TABLES:
        return _shipped(name)
    text = name.removeprefix(TABLE_PREFIX)
    path = Path(text)
    if not text:
        raise InputError(f"{name} names no file: the target is {TABLE_PREFIX}PATH, with the path of a CSV file")
    if text in SHIPPED_TABLES and not path.exists():
        raise InputError(f"there is no file {text}; did you mean --target {text}, the table that comes with mdp-fx?")
    if is_pickle(path):
        msg = f"{path} is a pickle, which does not say its unit: mdp-fx table import {path} makes a CSV file of it"
        raise InputError(msg)
    if not is_convolution_csv(path):
        columns = ",".join(HEADER)
        msg = f"{path} is no table of convolutions: the target {TABLE_PREFIX}PATH takes CSV with the columns {columns}"
        raise InputError(msg)
    return read_convolutions(path)
