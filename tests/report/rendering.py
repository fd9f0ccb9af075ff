"""Tables as printed."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType


def lines(parts: Iterable[RenderableType], width: int = 80, terminal: bool = False) -> list[str]:
    """Parts as printed without colour, line by line."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, no_color=True, color_system=None, legacy_windows=False
    )
    for part in parts:
        console.print(part, highlight=False, crop=terminal)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def has_row(found: list[str], *cells: str) -> bool:
    """Whether some line starts with these cells."""
    return any(line.split()[: len(" ".join(cells).split())] == " ".join(cells).split() for line in found)
