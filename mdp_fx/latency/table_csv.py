"""Latency tables as CSV.

The header is `fingerprint,region,sizes,median_us,p90_us,low_us,spread,runs`. Sizes are joined by "x" ("64x128"), and
empty for a region without axes. Times are microseconds with all their digits: what is read again is exactly what was
written. When a point was measured is not in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path

from mdp_fx.errors import InputError
from mdp_fx.latency.csv_rows import read_header, read_rows, scaled, unscaled, write_rows
from mdp_fx.latency.measurement import Measurement
from mdp_fx.latency.timing import Timing

HEADER = ("fingerprint", "region", "sizes", "median_us", "p90_us", "low_us", "spread", "runs")
_DIGITS = 18
"""Most digits of a whole number: SQLite holds no larger ones."""


def is_table_csv(path: Path) -> bool:
    """Whether a file begins as a latency table does.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    return read_header(path) == HEADER


def write_measurements(measurements: Iterable[Measurement], path: Path) -> int:
    """Writes measurements, and says how many.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = [
        (
            each.fingerprint,
            each.region,
            "x".join(map(str, each.sizes)),
            *(scaled(seconds, 6) for seconds in (each.timing.median_s, each.timing.p90_s, each.timing.low_s)),
            repr(each.timing.spread),
            each.timing.runs,
        )
        for each in measurements
    ]
    write_rows(path, HEADER, rows)
    return len(rows)


def read_measurements(path: Path) -> list[Measurement]:
    """Reads measurements.

    Raises:
        InputError: the file cannot be read, or a row is wrong; the message names its line.
    """
    found: list[Measurement] = []
    lines: dict[tuple[str, str, tuple[int, ...]], int] = {}
    for line, row in read_rows(path, HEADER):
        try:
            each = _measurement(row)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        place = (each.fingerprint, each.region, each.sizes)
        if lines.setdefault(place, line) != line:
            raise InputError(f"{path}, line {line}: repeats the point of line {lines[place]}")
        found.append(each)
    return found


def _measurement(row: Sequence[str]) -> Measurement:
    fingerprint, region, sizes, *times, spread, runs = row
    for name, text in (("fingerprint", fingerprint), ("region", region)):
        if not text.strip():
            raise InputError(f"{name} is empty")
    parts = sizes.split("x") if sizes else []
    if not all(part.isdecimal() and len(part) <= _DIGITS for part in parts):
        raise InputError(f"sizes are {sizes!r}, not whole numbers joined by x, such as 64x128")
    if not runs.isdecimal() or len(runs) > _DIGITS or int(runs) < 1:
        raise InputError(f"runs are {runs!r}, not a whole number above 0")
    median, p90, low = (_number(name, text, 6) for name, text in zip(HEADER[3:6], times, strict=True))
    timing = Timing(median, p90, low, _number("spread", spread, 0), int(runs))
    found = Measurement(fingerprint, region, tuple(map(int, parts)), timing)
    if found.fault is not None:
        raise InputError(found.fault)
    return found


def _number(name: str, text: str, digits: int) -> float:
    try:
        value = unscaled(text, digits)
    except ValueError as error:
        raise InputError(f"{name} is {text!r}, not a number") from error
    if not isfinite(value) or value < 0:
        raise InputError(f"{name} is {text!r}: it must be a number of at least 0")
    return value
