"""The parts that all tables are made of: columns, numbers as text, notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

SHOWN = 16
"""Rows of a long list that are shown without --verbose."""

BAR_WIDTH = 16
"""Columns of a bar."""


@dataclass(frozen=True)
class Notes:
    """Lines of (label, text, style): wrapped beside their labels on a terminal, one line each in a pipe."""

    lines: tuple[tuple[str, str, str], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max((len(label) for label, _, _ in self.lines), default=0)
        if not console.is_terminal:
            for label, text, _ in self.lines:
                yield Text(f"{label:<{width}}  {text}", no_wrap=True, overflow="ignore")
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(min_width=width, no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text, style in self.lines:
            grid.add_row(Text(label, style=style or "dim"), Text(text, style=style))
        yield grid


def table(*columns: str, left: Sequence[int] = (0,), whole: Sequence[int] = ()) -> Table:
    """A table without lines; the columns `left` are text, the others numbers; `whole` ones stay on one line."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        side: Literal["left", "right"] = "left" if i in left else "right"
        grid.add_column(column, justify=side, overflow="fold", no_wrap=i in whole, header_style="dim")
    return grid


def count(value: float) -> str:
    """Three significant digits and a unit: 11.7M, 149M, 512."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


def millis(value: float) -> str:
    """Milliseconds, or seconds where there are many."""
    if value < 0.9995:
        return f"{value:.3g} ms"
    return f"{value:.2f} ms" if value < 999.995 else f"{value / 1000:.2f} s"


def mebibytes(value: float) -> str:
    """Bytes of memory."""
    return f"{value / 2**20:.1f} MiB"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %"


def plural(number: int, what: str, ending: str = "s") -> str:
    """So many of something."""
    return f"{number} {what}{'' if number == 1 else ending}"


def rest(shown: int, total: int) -> Iterator[RenderableType]:
    """A line about the rows of a long list that are not shown, if any."""
    if shown < total:
        yield Text(f"... and {_more(total - shown)}", style="dim")


def names(of: Sequence[str], *, verbose: bool) -> str:
    """Names in one line, a long list in full only if verbose."""
    shown = of if verbose else of[:SHOWN]
    return ", ".join(shown) + (f" and {_more(len(of) - len(shown))}" if len(shown) < len(of) else "")


def _more(number: int) -> str:
    return f"{number} more (-v shows all)"
