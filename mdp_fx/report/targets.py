"""The list of targets as rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mdp_fx.report import cells
from mdp_fx.report.facts import TargetRow


def target_tables(rows: Sequence[TargetRow]) -> Iterator[RenderableType]:
    """Every target with its device here; below, what the others lack, and what measurements are kept under."""
    here = [row for row in rows if row.available]
    yield Text(f"{len(here)} of {cells.plural(len(rows), 'target')} can be used on this machine", style="bold")
    table = cells.table("target", "device", "dtypes", "alignment", left=(0, 1, 2))
    for row in rows:
        device = Text("-", style="dim") if row.device is None else Text(row.device)
        table.add_row(
            escape(row.name), device, ", ".join(row.dtypes), "" if row.alignment is None else f"{row.alignment}"
        )
    yield table
    yield Text("")
    yield cells.Notes(tuple(("missing", row.why_not, "yellow") for row in rows if row.why_not is not None))
    yield Text("")
    yield cells.Notes(tuple(("measured as", row.fingerprint, "") for row in rows if row.fingerprint is not None))
