"""What mdp-fx found out, as rich tables: for 80 columns and more, with or without colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mdp_fx.report.diff import Diff, DiffRow
from mdp_fx.report.facts import BRANCH, BenchRow, BlockRow, Change, Inspection, LatencyFacts, Profile, PruneReport

SHOWN = 16
"""Rows of a long list that are shown without --verbose."""

_BAR_WIDTH = 16


class Parity(Protocol):
    """What an export says of its agreement with torch."""

    @property
    def max_abs_error(self) -> float:
        """Largest absolute difference."""

    @property
    def max_rel_error(self) -> float:
        """Largest absolute difference over the largest magnitude of the output."""

    @property
    def dynamic_batch(self) -> bool:
        """Whether any batch size is taken."""


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


def _table(*columns: str, left: Sequence[int] = (0,)) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", overflow="fold", header_style="dim")
    return table


def _count(value: float) -> str:
    """Three significant digits and a unit: 11.7M, 149M, 512."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


def _millis(value: float) -> str:
    if value < 0.9995:
        return f"{value:.3g} ms"
    return f"{value:.2f} ms" if value < 999.995 else f"{value / 1000:.2f} s"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plural(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}{'' if count == 1 else ending}"


def _rest(shown: int, total: int) -> Iterator[RenderableType]:
    if shown < total:
        yield Text(f"... and {total - shown} more (-v shows all)", style="dim")


def prune_tables(
    report: PruneReport, written: Mapping[str, str], parity: Parity | None, *, verbose: bool
) -> Iterator[RenderableType]:
    """The report of a pruning run, part by part."""
    facts = report.latency
    yield Text(f"{report.model}: {facts.dense_ms / facts.measured_ms:.2f} times as fast", style="bold")
    yield Text(f"{report.device}, batch {report.batch}", style="dim")
    yield Text("")
    yield _summary(report)
    yield Text("")
    yield Notes(tuple(_decision(report)))
    yield Text("")
    yield from _groups(report, verbose=verbose)
    if verbose:
        yield Text("")
        yield _seconds(report.seconds)
    yield Text("")
    notes = [("warning", text, "yellow") for text in report.warnings]
    for kind, path in written.items():
        notes.append(
            ("wrote", path + (f" ({_parity(parity)})" if kind == "onnx" and parity is not None else ""), "green")
        )
    yield Notes((*notes, ("next", _next_step(written), "")))


def _summary(report: PruneReport) -> Table:
    table = _table("", "dense", "asked", "predicted", "measured", "of dense")
    facts: LatencyFacts = report.latency
    table.add_row(
        "latency",
        _millis(facts.dense_ms),
        "-" if facts.asked_ms is None else _millis(facts.asked_ms),
        "-" if facts.predicted_ms is None else _millis(facts.predicted_ms),
        Text(_millis(facts.measured_ms), style="bold"),
        _share(facts.measured_ms / facts.dense_ms),
    )
    budgets = report.solver.get("budgets", {})
    for name, key, change in (("parameters", "params", report.params), ("MACs", "macs", report.macs)):
        table.add_row(name, *_change(change, budgets.get(key)))
    return table


def _change(change: Change, budget: float | None) -> list[str]:
    asked = "-" if budget is None else _count(budget)
    return [_count(change.dense), asked, "", _count(change.slim), _share(change.share)]


def _decision(report: PruneReport) -> Iterator[tuple[str, str, str]]:
    solver, facts = report.solver, report.latency
    gap = "no bound is known" if solver["gap"] is None else f"gap {100 * solver['gap']:.3g} %"
    rounds = f", {_plural(facts.rounds, 'round')}" if facts.asked_ms is not None else ""
    yield (
        "decision",
        f"{report.method}, {report.importance} importance; {solver['solver']} solver: {solver['status']}, {gap}, "
        f"{solver['seconds']:.1f} s{rounds}",
        "",
    )
    if facts.dense_sum_ms is not None and facts.calibration is not None:
        offset = f" + {facts.calibration_offset_ms:.2f} ms" if facts.calibration_offset_ms else ""
        yield (
            "latencies",
            f"{facts.regions_measured} measured now, {facts.regions_cached} known; dense regions add up to "
            f"{_millis(facts.dense_sum_ms)}, calibration {facts.calibration:.3f}{offset}",
            "",
        )
    yield "blocks", _removed(report.blocks), ""
    yield "front end", f"{report.front_end} ({report.front_end_why})", ""


def _removed(blocks: Sequence[BlockRow]) -> str:
    removed = [row.name for row in blocks if row.removed]
    removable = sum(row.reason is None for row in blocks)
    if not removable:
        return "the network has no removable blocks"
    names = f": {', '.join(removed)}" if removed else ""
    return f"{len(removed)} of {removable} removed{names}"


def _groups(report: PruneReport, *, verbose: bool) -> Iterator[RenderableType]:
    changed = [row for row in report.groups if row.before != row.after]
    yield Text(f"{len(changed)} of {_plural(len(report.groups), 'channel group')} cut", style="bold")
    rows = report.groups if verbose else changed[:SHOWN]
    if not rows:
        return
    table = _table("channel group", "before", "after", "", "kept")
    for row in rows:
        bar = ProgressBar(total=row.before, completed=row.after, width=_BAR_WIDTH)
        table.add_row(escape(row.name), str(row.before), str(row.after), bar, f"{100 * row.after / row.before:.0f} %")
    yield table
    if not verbose:
        yield from _rest(len(rows), len(changed))


def _seconds(seconds: Mapping[str, float]) -> Table:
    table = _table("pass", "seconds")
    for name, value in seconds.items():
        table.add_row(escape(name), f"{value:.2f}")
    return table


def _parity(parity: Parity) -> str:
    batch = "dynamic batch" if parity.dynamic_batch else "fixed batch"
    return f"{batch}, max abs error {parity.max_abs_error:.1e}, relative {parity.max_rel_error:.1e}"


def _next_step(written: Mapping[str, str]) -> str:
    slim = written["slim"]
    export = "" if "onnx" in written else f"; then mdp-fx export {slim} -o {slim.removesuffix('.pt')}.onnx"
    return f'fine-tune mdp_fx.load("{slim}") as any torch module{export}'


def apply_tables(params: Mapping[str, int], path: str) -> Iterator[RenderableType]:
    """What applying a recipe did."""
    dense, slim = params["dense"], params["slim"]
    change = f"{_count(dense)} -> {_count(slim)} ({_share(slim / max(1, dense))})"
    yield Notes((("parameters", change, ""), ("wrote", path, "green")))


def export_tables(path: str, parity: Parity) -> Iterator[RenderableType]:
    """What an export wrote, and how far it is from torch."""
    yield Notes((("wrote", path, "green"), ("checked", f"{_parity(parity)}, ONNX Runtime against torch", "")))


def demo_tables(facts: Mapping[str, float], seconds: float) -> Iterator[RenderableType]:
    """Accuracy and latency of the demo's networks, before and after."""
    table = _table("", "accuracy", "latency")
    table.add_row("dense", _share(facts["dense"]), _millis(facts["dense_ms"]))
    table.add_row("pruned", _share(facts["pruned"]), _millis(facts["slim_ms"]))
    table.add_row("fine-tuned", _share(facts["tuned"]), _millis(facts["slim_ms"]))
    yield Text("")
    yield Text("On the test digits", style="bold")
    yield table
    yield Text(f"{seconds:.0f} s in all", style="dim")


def inspect_tables(found: Inspection, *, verbose: bool) -> Iterator[RenderableType]:
    """What can be pruned, part by part."""
    yield Text(
        f"{found.model}: {100 * found.prunable_params_share:.0f} % of the parameters and "
        f"{100 * found.prunable_macs_share:.0f} % of the MACs are in reach of channel groups",
        style="bold",
    )
    yield Text(f"front end: {found.front_end} ({found.front_end_why})", style="dim")
    yield Text("")
    shown = None if verbose else 2 * SHOWN
    branches = [row for row in found.blocks if row.kind == BRANCH]
    residual = [row for row in found.blocks if row.kind != BRANCH]
    yield Text(_plural(len(found.groups), "channel group"), style="bold")
    if found.groups:
        groups = _table("channel group", "units", "modules that share it", left=(0, 2))
        for row in found.groups[:shown]:
            members = row.members if verbose else row.members[:3]
            more = f" and {len(row.members) - len(members)} more" if len(members) < len(row.members) else ""
            groups.add_row(escape(row.name), str(row.before), escape(", ".join(members)) + more)
        yield groups
        yield from _rest(groups.row_count, len(found.groups))
    yield Text("")
    yield Text(_plural(len(residual), "residual block"), style="bold")
    yield from _blocks("residual block", residual, shown)
    if branches:
        yield Text("")
        yield Text(_plural(len(branches), "concatenated branch", "es"), style="bold")
        yield from _blocks("concatenated branch", branches, shown)
    if found.frozen:
        yield Text("")
        yield Text(f"{_plural(len(found.frozen), 'frozen axis').replace('axiss', 'axes')}", style="bold")
        frozen = _table("module", "units", "because", left=(0, 2))
        for axis in found.frozen[:shown]:
            frozen.add_row(escape(axis.where), str(axis.size), escape(axis.reason))
        yield frozen
        yield from _rest(frozen.row_count, len(found.frozen))
    if found.baked_in:
        yield Text("")
        yield Text("baked in by tracing", style="bold")
        yield from (Text(fact) for fact in found.baked_in)


def _blocks(kind: str, rows: Sequence[BlockRow], shown: int | None) -> Iterator[RenderableType]:
    if rows:
        table = _table(kind, "", left=(0, 1))
        for row in rows[:shown]:
            answer = "removable" if row.reason is None else f"must stay: {row.reason}"
            table.add_row(escape(row.name), escape(answer))
        yield table
        yield from _rest(table.row_count, len(rows))


def profile_tables(found: Profile, *, verbose: bool) -> Iterator[RenderableType]:
    """Where the time goes, part by part."""
    yield Text(f"{found.model}: {_millis(found.dense_ms)}", style="bold")
    yield Text(found.device, style="dim")
    yield Text("")
    table = _table("region", "kind", "ms", "", "share", "MACs", left=(0, 1))
    rows = sorted(found.regions, key=lambda row: -row.ms)
    for row in rows if verbose else rows[:SHOWN]:
        bar = ProgressBar(total=rows[0].ms or 1.0, completed=row.ms, width=_BAR_WIDTH)
        table.add_row(escape(row.name), escape(row.kind), f"{row.ms:.3f}", bar, _share(row.share), _count(row.macs))
    yield table
    yield from _rest(table.row_count, len(rows))
    yield Text("")
    yield Notes(
        (
            ("sum", f"{_millis(found.sum_ms)}, each region alone; calibration {found.calibration:.3f}", ""),
            ("points", f"{found.regions_measured} measured now, {found.regions_cached} known", ""),
            ("table", found.table, ""),
        )
    )


def bench_tables(rows: Sequence[BenchRow], target: str, batch: int) -> Iterator[RenderableType]:
    """Networks timed in turn."""
    yield Text(f"{target}, batch {batch}, timed in turn", style="bold")
    table = _table("network", "median", "p90", "images/s", "of first", "runs")
    for row in rows:
        cells = [f"{row.median_ms:.3f} ms", f"{row.p90_ms:.3f} ms", f"{row.per_second:.1f}", _share(row.ratio)]
        table.add_row(escape(row.name), *cells, str(row.runs))
    yield table


def diff_tables(found: Diff, a: str, b: str, *, verbose: bool) -> Iterator[RenderableType]:
    """Two networks compared, part by part; without --verbose only modules with a matrix that differs."""
    yield Text(f"{a} -> {b}", style="bold")
    yield Text("")
    timed = found.ms is not None
    wanted = [row for row in found.rows if verbose or (row.changed and row.is_matrix)]
    table = _table(
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
    yield Notes(tuple(_totals(found)))


def _diff_cells(row: DiffRow, timed: bool, verbose: bool) -> list[str]:
    def sizes(shape: tuple[int, ...] | None) -> str:
        # The kernel does not change: without it the row fits a narrow terminal.
        return "-" if shape is None else "x".join(map(str, shape if verbose else shape[:2]))

    def both(before: float | None, after: float | None, text: Any) -> str:
        if before is None and after is None:
            return ""
        return f"{'-' if before is None else text(before)} -> {'-' if after is None else text(after)}"

    cells = [escape(row.module), *([row.op] if verbose else [])]
    cells.append(f"{sizes(row.before)} -> {'removed' if row.removed else sizes(row.after)}")
    cells.append(both(row.params_before, row.params_after, _count))
    cells.append(both(row.macs_before, row.macs_after, _count) if row.macs_before or row.macs_after else "")
    if timed:
        cells.append(both(row.ms_before, row.ms_after, lambda value: f"{value:.3f}"))
    return cells


def _totals(found: Diff) -> Iterator[tuple[str, str, str]]:
    def both(pair: Sequence[Any], text: Any) -> str:
        share = f" ({_share(pair[1] / pair[0])})" if pair[0] else ""
        return f"{text(pair[0])} -> {text(pair[1])}{share}"

    yield "parameters", both(found.params, _count), ""
    yield "MACs", both(found.macs, _count), ""
    if found.ms is not None:
        yield "latency", both(found.ms, _millis) + ", sums of regions measured alone", ""
    if found.removed:
        yield "removed", ", ".join(found.removed), "red"
