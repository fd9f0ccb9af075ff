"""Convolution tables as CSV: the columns of the shipped ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdp_fx.errors import InputError
from mdp_fx.latency.convolution_rates import check_rates
from mdp_fx.latency.convolution_table import Channels, ConvolutionTable, Entry, Geometry
from mdp_fx.latency.csv_rows import read_header, read_rows, scaled, unscaled, write_rows

HEADER = ("in_channels", "out_channels", "input_size", "kernel", "stride", "groups", "batch", "latency_us")
_DIGITS = 12
"""Most characters of a size."""


def is_convolution_csv(path: Path) -> bool:
    """Whether a file begins as a convolution table does.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    return read_header(path) == HEADER


def read_convolutions(path: Path, name: str | None = None) -> ConvolutionTable:
    """Reads a convolution table.

    Args:
        path: the CSV file.
        name: what to call the table, by default its path.

    Raises:
        InputError: it cannot be read, a row is wrong (the message names its line), or no device is that fast or slow.
    """
    entries: list[Entry] = []
    lines: dict[tuple[Geometry, Channels], int] = {}
    for line, row in read_rows(path, HEADER):
        try:
            entry = _entry(row)
        except (InputError, ValueError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        place = (entry.geometry, (entry.in_channels, entry.out_channels))
        if lines.setdefault(place, line) != line:
            raise InputError(f"{path}, line {line}: repeats the convolution of line {lines[place]}")
        entries.append(entry)
    table = ConvolutionTable(name or str(path), entries)
    check_rates(path, table, "us", f"{HEADER[-1]} is in microseconds")
    return table


def _entry(row: Sequence[str]) -> Entry:
    sizes: dict[str, int] = {}
    for name, text in zip(HEADER[:-1], row[:-1], strict=True):
        if not text.strip().isdecimal() or len(text) > _DIGITS:
            msg = f"{name} is {text!r}, not a whole number"
            raise InputError(msg)
        sizes[name] = int(text)
    try:
        seconds = unscaled(row[-1], 6)
    except ValueError as error:
        raise InputError(f"latency_us is {row[-1]!r}, not a number") from error
    return Entry(**sizes, seconds=seconds)


def write_convolutions(table: ConvolutionTable, path: Path) -> None:
    """Writes a convolution table.

    Raises:
        OutputError: it cannot be written.
    """
    rows = [
        (e.in_channels, e.out_channels, e.input_size, e.kernel, e.stride, e.groups, e.batch, scaled(e.seconds, 6))
        for e in table
    ]
    write_rows(path, HEADER, rows)
