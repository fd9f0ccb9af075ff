"""Reading and writing CSV files of a known header, with errors that name the line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from mdp_fx.errors import InputError
from mdp_fx.files import atomic_write, reading


def read_header(path: Path) -> tuple[str, ...]:
    """The first line of a CSV file.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    for row in _Rows(path):
        return tuple(row)
    return ()


def read_rows(path: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows under a header, each with the number of its line; empty lines do not count.

    Raises:
        InputError: the file cannot be read, has another header, or a row with too many or too few fields.
    """
    rows = _Rows(path)
    found = next(rows, [])
    if found != list(header):
        begins = f"it begins with {','.join(found)[:120]!r}" if found else "it is empty"
        raise InputError(f"{path} has another header than {','.join(header)}: {begins}")
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}, line {rows.line}: {len(row)} fields instead of {len(header)}")
        yield rows.line, row


class _Rows(Iterator[list[str]]):
    """Rows of a CSV file; `line` is the number of the last line read."""

    def __init__(self, path: Path) -> None:
        try:
            with reading(path, InputError):
                text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no CSV file: it holds bytes that are no text") from error
        self._path = path
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True)

    @property
    def line(self) -> int:
        return self._reader.line_num

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as error:
            raise InputError(f"{self._path}, line {self.line}: {error}") from error


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def scaled(seconds: float, digits: int) -> str:
    """Seconds times ten to the `digits`, exactly: a float times 1e6 and back would be another one."""
    return format(Decimal(repr(seconds)).scaleb(digits).normalize(), "f")


def unscaled(text: str, digits: int) -> float:
    """The seconds that `scaled` wrote.

    Raises:
        ValueError: it is no number.
    """
    try:
        return float(Decimal(text).scaleb(-digits))
    except ArithmeticError as error:
        raise ValueError(text) from error
