"""Rich tables of what mdp-fx found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mdp_fx.report.diff import Diff
from mdp_fx.report.facts import BenchRow, BlockRow, Change, Inspection, LatencyFacts, Profile, PruneReport

SHOWN = 12
"""Rows of a long list that are shown without --verbose."""


class Parity(Protocol):
    """What an export says of its agreement with torch."""

    @property
    def max_abs_error(self) -> float:
        """Largest absolute difference."""

    @property
    def dynamic_batch(self) -> bool:
        """Whether any batch size is taken."""


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold", header_style="dim")
    return table


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))


def prune_tables(
    report: PruneReport, written: Mapping[str, str], parity: Parity | None, *, verbose: bool
) -> Iterable[RenderableType]:
    """The report of a pruning run, part by part."""
    yield Text(
        f"{report.model} on {report.target}, batch {report.batch}, {report.threads} thread{'s' * (report.threads > 1)}",
        style="bold",
    )
    yield _summary(report)
    yield Text("")
    yield Text(_solver_line(report), style="dim")
    yield Text(_removed_line(report.blocks))
    changed = [row for row in report.groups if row.before != row.after]
    rows = changed if verbose else changed[:SHOWN]
    if rows:
        groups = _table("channel group", "before", "after", "kept", title=f"{len(changed)} channel groups cut")
        for row in rows:
            groups.add_row(escape(row.name), str(row.before), str(row.after), f"{100 * row.after / row.before:.0f} %")
        yield Text("")
        yield groups
        if len(rows) < len(changed):
            yield Text(f"... and {len(changed) - len(rows)} more (-v shows all)", style="dim")
    if verbose:
        yield Text("")
        yield _seconds(report.seconds)
    yield Text("")
    for warning in report.warnings:
        yield Text(f"warning: {warning}", style="yellow")
    for kind, path in written.items():
        note = ""
        if kind == "onnx" and parity is not None:
            batch = "dynamic batch" if parity.dynamic_batch else "fixed batch"
            note = f" ({batch}, agrees with torch to {parity.max_abs_error:.1e})"
        yield Text(f"wrote {path}{note}", style="green")


def _summary(report: PruneReport) -> Table:
    table = _table("", "dense", "asked", "predicted", "measured", "of dense")
    facts: LatencyFacts = report.latency
    table.add_row(
        "latency",
        f"{facts.dense_ms:.2f} ms",
        "-" if facts.asked_ms is None else f"{facts.asked_ms:.2f} ms",
        "-" if facts.predicted_ms is None else f"{facts.predicted_ms:.2f} ms",
        Text(f"{facts.measured_ms:.2f} ms", style="bold"),
        f"{100 * facts.measured_ms / facts.dense_ms:.1f} %",
    )
    for name, change in (("parameters", report.params), ("MACs", report.macs)):
        budget = report.solver.get("budgets", {}).get("params" if name == "parameters" else "macs")
        table.add_row(name, *_change(change, budget))
    return table


def _change(change: Change, budget: float | None) -> list[str]:
    asked = "-" if budget is None else _count(budget)
    return [_count(change.dense), asked, "", _count(change.slim), f"{100 * change.share:.1f} %"]


def _solver_line(report: PruneReport) -> str:
    solver, facts = report.solver, report.latency
    gap = "no bound is known" if solver["gap"] is None else f"gap {100 * solver['gap']:.3g} %"
    parts = [
        f"{report.method} by {solver['solver']}: {solver['status']}, {gap}, {solver['seconds']:.1f} s",
        f"{report.importance} importance",
    ]
    if facts.asked_ms is not None and facts.calibration is not None:
        parts.append(
            f"{facts.rounds} round{'s' * (facts.rounds > 1)}, {facts.regions_measured} regions measured, "
            f"{facts.regions_cached} known, calibration {facts.calibration:.3f}"
        )
    return "; ".join(parts)


def _removed_line(blocks: Sequence[BlockRow]) -> str:
    removed = [row.name for row in blocks if row.removed]
    removable = sum(row.reason is None for row in blocks)
    if not removable:
        return "no removable residual blocks"
    names = f": {', '.join(removed)}" if removed else ""
    return f"{len(removed)} of {removable} residual blocks removed{names}"


def _seconds(seconds: Mapping[str, float]) -> Table:
    table = _table("pass", "seconds")
    for name, value in seconds.items():
        table.add_row(escape(name), f"{value:.2f}")
    return table


def inspect_tables(found: Inspection, *, verbose: bool) -> Iterable[RenderableType]:
    """What can be pruned, part by part."""
    yield Text(
        f"{found.model}: {100 * found.prunable_params_share:.0f} % of the parameters and "
        f"{100 * found.prunable_macs_share:.0f} % of the MACs lie in prunable channel groups",
        style="bold",
    )
    groups = _table("channel group", "units", "modules that share it", title=f"{len(found.groups)} channel groups")
    groups.columns[2].justify = "left"
    for row in found.groups if verbose else found.groups[: 2 * SHOWN]:
        members = row.members if verbose else row.members[:4]
        more = f" and {len(row.members) - len(members)} more" if len(members) < len(row.members) else ""
        groups.add_row(escape(row.name), str(row.before), escape(", ".join(members)) + more)
    yield groups
    if not verbose and len(found.groups) > 2 * SHOWN:
        yield Text(f"... and {len(found.groups) - 2 * SHOWN} more (-v shows all)", style="dim")
    yield Text("")
    blocks = _table("residual block", "", title=f"{len(found.blocks)} residual blocks")
    blocks.columns[1].justify = "left"
    for block in found.blocks if verbose else found.blocks[: 2 * SHOWN]:
        blocks.add_row(escape(block.name), "removable" if block.reason is None else f"must stay: {escape(block.reason)}")
    yield blocks if found.blocks else Text("no residual blocks")
    if found.frozen:
        yield Text("")
        frozen = _table("frozen", "units", "because", title="Frozen channels")
        frozen.columns[2].justify = "left"
        for axis in found.frozen if verbose else found.frozen[: 2 * SHOWN]:
            frozen.add_row(escape(axis.where), str(axis.size), escape(axis.reason))
        yield frozen
        if not verbose and len(found.frozen) > 2 * SHOWN:
            yield Text(f"... and {len(found.frozen) - 2 * SHOWN} more (-v shows all)", style="dim")


def profile_tables(found: Profile, *, verbose: bool) -> Iterable[RenderableType]:
    """Where the time goes, part by part."""
    yield Text(f"{found.model} on {found.target}: {found.dense_ms:.2f} ms", style="bold")
    yield Text(
        f"the {len(found.regions)} regions measured alone add up to {found.sum_ms:.2f} ms (calibration "
        f"{found.calibration:.3f}); {found.regions_measured} points measured, {found.regions_cached} known",
        style="dim",
    )
    table = _table("region", "kind", "ms", "share", "MACs")
    rows = sorted(found.regions, key=lambda row: -row.ms)
    for row in rows if verbose else rows[:SHOWN]:
        table.add_row(escape(row.name), row.kind, f"{row.ms:.3f}", f"{100 * row.share:.1f} %", _count(row.macs))
    yield table
    if not verbose and len(rows) > SHOWN:
        yield Text(f"... and {len(rows) - SHOWN} more (-v shows all)", style="dim")
    yield Text(f"latency table: {found.table}", style="dim")


def bench_table(rows: Sequence[BenchRow], target: str, batch: int) -> Table:
    """Networks timed in turn."""
    table = _table("network", "median", "p90", "images/s", "ratio", "runs", title=f"{target}, batch {batch}")
    for row in rows:
        table.add_row(
            escape(row.name),
            f"{row.median_ms:.3f} ms",
            f"{row.p90_ms:.3f} ms",
            f"{row.per_second:.1f}",
            f"{row.ratio:.3f}",
            str(row.runs),
        )
    return table


def diff_tables(found: Diff, a: str, b: str, *, verbose: bool) -> Iterable[RenderableType]:
    """Two networks compared, part by part."""
    yield Text(f"{a} -> {b}", style="bold")
    timed = found.ms is not None
    table = _table("module", "op", "before", "after", "parameters", "MACs", *(["predicted ms"] if timed else []))
    for row in found.rows:
        if not verbose and not row.changed:
            continue
        cells = [
            escape(row.module),
            row.op,
            _shape(row.before),
            _shape(row.after) if row.after is not None else "removed",
            f"{_count(row.params_before)} -> {_count(row.params_after)}",
            f"{_count(row.macs_before)} -> {_count(row.macs_after)}" if row.macs_before else "",
        ]
        if timed:
            cells.append(f"{_ms(row.ms_before)} -> {_ms(row.ms_after)}" if row.ms_before is not None else "")
        table.add_row(*cells, style="red" if row.after is None else "")
    yield table if table.row_count else Text("no module differs in shape")
    yield Text(_totals(found))
    if found.removed:
        yield Text(f"removed: {', '.join(found.removed)}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _totals(found: Diff) -> str:
    def both(what: str, pair: Sequence[Any], text: Any) -> str:
        share = f" ({100 * pair[1] / pair[0]:.1f} %)" if pair[0] else ""
        return f"{what} {text(pair[0])} -> {text(pair[1])}{share}"

    parts = [both("parameters", found.params, _count), both("MACs", found.macs, _count)]
    if found.ms is not None:
        parts.append(both("sum of regions", found.ms, lambda value: f"{value:.2f} ms"))
    return "; ".join(parts)
