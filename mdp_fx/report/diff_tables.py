"""What `mdp-fx diff` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mdp_fx.report import cells
from mdp_fx.report.diff import Diff, DiffRow


def diff_tables(found: Diff, a: str, b: str, *, verbose: bool) -> Iterator[RenderableType]:
    """Two networks compared, part by part; without --verbose only modules with a matrix that differs."""
    yield Text(f"{a} -> {b}", style="bold")
    yield Text("")
    timed = found.ms is not None
    wanted = [row for row in found.rows if verbose or (row.changed and row.is_matrix)]
    table = cells.table(
        "module", *(["op"] if verbose else []), "weight", "parameters", "MACs", *(["ms"] if timed else []), left=(0, 1)
    )
    for row in wanted:
        table.add_row(*_diff_cells(row, timed, verbose), style="red" if row.removed else "")
    yield table if wanted else Text("no layer differs in shape")
    if not verbose:
        small = sum(row.changed and not row.is_matrix for row in found.rows)
        same = sum(not row.changed for row in found.rows)
        if small or same:
            yield Text(
                f"{small} norms and other small modules follow, {same} modules are equal (-v shows all)", style="dim"
            )
    yield Text("")
    yield cells.Notes(tuple(_totals(found, verbose=verbose)))


def _diff_cells(row: DiffRow, timed: bool, verbose: bool) -> list[str]:
    def sizes(shape: tuple[int, ...] | None) -> str:
        # The kernel does not change: without it the row fits a narrow terminal.
        return "-" if shape is None else "x".join(map(str, shape if verbose else shape[:2]))

    def both(before: float | None, after: float | None, text: Any) -> str:
        if before is None and after is None:
            return ""
        return f"{'-' if before is None else text(before)} -> {'-' if after is None else text(after)}"

    texts = [escape(row.module), *([row.op] if verbose else [])]
    texts.append(f"{sizes(row.before)} -> {'removed' if row.removed else sizes(row.after)}")
    texts.append(both(row.params_before, row.params_after, cells.count))
    texts.append(both(row.macs_before, row.macs_after, cells.count) if row.macs_before or row.macs_after else "")
    if timed:
        texts.append(both(row.ms_before, row.ms_after, lambda value: f"{value:.3f}"))
    return texts


def _totals(found: Diff, *, verbose: bool) -> Iterator[tuple[str, str, str]]:
    def both(pair: Sequence[Any], text: Any) -> str:
        share = f" ({cells.share(pair[1] / pair[0])})" if pair[0] else ""
        return f"{text(pair[0])} -> {text(pair[1])}{share}"

    yield "parameters", both(found.params, cells.count), ""
    yield "MACs", both(found.macs, cells.count), ""
    if found.ms is not None:
        yield "latency", both(found.ms, cells.millis) + ", sums of regions measured alone", ""
    if found.removed:
        yield "removed", cells.names(found.removed, verbose=verbose), "red"
