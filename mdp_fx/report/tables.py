"""What mdp-fx found out, as rich tables: for 80 columns and more, with or without colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from rich.console import RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mdp_fx.report import cells
from mdp_fx.report.facts import (
    BRANCH,
    BUSY,
    LOADING,
    PEAK_MEMORY,
    BenchRow,
    BlockRow,
    Change,
    GroupRow,
    Inspection,
    LatencyFacts,
    MaskReport,
    Prediction,
    Profile,
    PruneReport,
)

_FAR = 0.2


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


def prune_tables(
    report: PruneReport, written: Mapping[str, str], parity: Parity | None, *, verbose: bool
) -> Iterator[RenderableType]:
    """The report of a pruning run, part by part."""
    facts = report.latency
    faster = f"{facts.dense_ms / facts.slim_ms:.2f} times as fast"
    predicted = report.prediction is not None
    yield Text(f"{report.model}: {'predicted to be ' if predicted else ''}{faster}", style="bold")
    yield Text(f"{report.device}, batch {report.batch}", style="dim")
    yield Text("")
    yield _summary(report)
    yield Text("")
    table = prediction_notes(report.prediction, verbose=verbose) if report.prediction is not None else ()
    yield cells.Notes((*_decision(report, verbose=verbose), *table))
    yield Text("")
    yield from _groups(report.groups, verbose=verbose)
    if verbose:
        yield Text("")
        yield _seconds(report.seconds)
    yield Text("")
    notes = [("warning", text, "yellow") for text in report.warnings]
    for kind, path in written.items():
        notes.append(
            ("wrote", path + (f" ({_parity(parity)})" if kind == "onnx" and parity is not None else ""), "green")
        )
    yield cells.Notes((*notes, ("next", _next_step(written), "")))


def _summary(report: PruneReport) -> Table:
    facts: LatencyFacts = report.latency
    found = facts.measured_ms
    table = cells.table("", "dense", "asked", "predicted", *(["measured"] if found is not None else []), "of dense")
    table.add_row(
        "latency",
        cells.millis(facts.dense_ms),
        "-" if facts.asked_ms is None else cells.millis(facts.asked_ms),
        "-" if facts.predicted_ms is None else cells.millis(facts.predicted_ms),
        *([Text(cells.millis(found), style="bold")] if found is not None else []),
        cells.share(facts.slim_ms / facts.dense_ms),
    )
    if report.prediction is not None:
        table.add_row("images/s", *_rates(report.prediction))
    budgets = report.solver.get("budgets", {})
    for name, key, change in (("parameters", "params", report.params), ("MACs", "macs", report.macs)):
        row = _change(change, budgets.get(key))
        table.add_row(name, *(row if found is not None else [*row[:2], *row[3:]]))
    return table


def _rates(prediction: Prediction) -> list[str]:
    dense, slim = prediction.dense_per_s, prediction.slim_per_s or 0.0
    return [f"{dense:.0f}", "-", f"{slim:.0f}", cells.share(slim / dense)]


def prediction_notes(prediction: Prediction, *, verbose: bool) -> Iterator[tuple[str, str, str]]:
    """What a predicted latency rests on, and what it leaves out."""
    yield "predicted", f"by {prediction.table}: nothing was run; a network takes the sum of its convolutions", ""
    if prediction.estimated:
        yield (
            "estimated",
            f"{prediction.estimated_points} of {prediction.points} points, which the table does not have: "
            f"{cells.names(prediction.estimated, verbose=verbose)}; by {prediction.fit}",
            "yellow",
        )
    if prediction.not_counted:
        share = f"{100 * (1 - prediction.counted_macs):.2g} % of the MACs"
        without = cells.names(prediction.not_counted, verbose=verbose)
        yield "not counted", f"{without}: no convolutions, so no table has them; {share}", ""
    if prediction.held:
        held = cells.names(prediction.held, verbose=verbose)
        yield "held", f"{held}: the table has no smaller size at this --step", ""


def _change(change: Change, budget: float | None) -> list[str]:
    asked = "-" if budget is None else cells.count(budget)
    return [cells.count(change.dense), asked, "", cells.count(change.slim), cells.share(change.share)]


def _decision(report: PruneReport, *, verbose: bool) -> Iterator[tuple[str, str, str]]:
    solver, facts = report.solver, report.latency
    gap = "no bound is known" if solver["gap"] is None else f"gap {100 * solver['gap']:.3g} %"
    rounds = (
        f", {cells.plural(facts.rounds, 'round')}" if facts.asked_ms is not None and report.prediction is None else ""
    )
    yield (
        "decision",
        f"{report.method}, {report.importance} importance; {solver['solver']} solver: {solver['status']}, {gap}, "
        f"{solver['seconds']:.1f} s{rounds}",
        "",
    )
    if facts.dense_sum_ms is not None and facts.calibration is not None:
        yield (
            "latencies",
            f"{facts.regions_measured} measured now, {facts.regions_cached} known; dense regions add up to "
            f"{cells.millis(facts.dense_sum_ms)}, {_calibration(facts.calibration, facts.calibration_per_region_us)}",
            "",
        )
    yield "blocks", _removed(report.blocks, verbose=verbose), ""
    yield "front end", f"{report.front_end} ({report.front_end_why})", ""


def _removed(blocks: Sequence[BlockRow], *, verbose: bool) -> str:
    removed = [row.name for row in blocks if row.removed]
    removable = sum(row.reason is None for row in blocks)
    if not removable:
        return "the network has no removable blocks"
    names = f": {cells.names(removed, verbose=verbose)}" if removed else ""
    return f"{len(removed)} of {removable} removed{names}"


def _groups(groups: Sequence[GroupRow], *, verbose: bool) -> Iterator[RenderableType]:
    changed = [row for row in groups if row.before != row.after]
    yield Text(f"{len(changed)} of {cells.plural(len(groups), 'channel group')} cut", style="bold")
    rows = groups if verbose else changed[: cells.SHOWN]
    if not rows:
        return
    table = cells.table("channel group", "before", "after", "", "kept")
    for row in rows:
        bar = ProgressBar(total=row.before, completed=row.after, width=cells.BAR_WIDTH)
        table.add_row(escape(row.name), str(row.before), str(row.after), bar, f"{100 * row.after / row.before:.0f} %")
    yield table
    if not verbose:
        yield from cells.rest(len(rows), len(changed))


def _seconds(seconds: Mapping[str, float]) -> Table:
    table = cells.table("pass", "seconds")
    for name, value in seconds.items():
        table.add_row(escape(name), f"{value:.2f}")
    return table


def _parity(parity: Parity) -> str:
    batch = "dynamic batch" if parity.dynamic_batch else "fixed batch"
    return f"{batch}, max abs error {parity.max_abs_error:.1e}, relative {parity.max_rel_error:.1e}"


def _next_step(written: Mapping[str, str]) -> str:
    if "slim" not in written:
        return f'make it again with mdp_fx.apply(model, mdp_fx.Recipe.load("{written["recipe"]}"))'
    slim = written["slim"]
    export = "" if "onnx" in written else f"; then mdp-fx export {slim} -o {slim.removesuffix('.pt')}.onnx"
    return f'fine-tune mdp_fx.load("{slim}") as any torch module{export}'


def apply_tables(params: Mapping[str, int], path: str) -> Iterator[RenderableType]:
    """What applying a recipe did."""
    dense, slim = params["dense"], params["slim"]
    change = f"{cells.count(dense)} -> {cells.count(slim)} ({cells.share(slim / max(1, dense))})"
    yield cells.Notes((("parameters", change, ""), ("wrote", path, "green")))


def mask_tables(report: MaskReport, path: str, *, verbose: bool) -> Iterator[RenderableType]:
    """What applying layer masks did, part by part."""
    yield Text(f"{report.source}: {cells.plural(report.layers, 'layer')} with masks", style="bold")
    yield Text("")
    yield from _groups(report.groups, verbose=verbose)
    yield Text("")
    removed = cells.names(report.removed_blocks, verbose=verbose) or "no block"
    params = report.params
    change = f"{cells.count(params.dense)} -> {cells.count(params.slim)} ({cells.share(params.share)})"
    notes = [("removed", removed, ""), ("parameters", change, "")]
    notes += [("warning", text, "yellow") for text in report.warnings]
    yield cells.Notes((*notes, ("wrote", path, "green")))


def export_tables(path: str, parity: Parity) -> Iterator[RenderableType]:
    """What an export wrote, and how far it is from torch."""
    yield cells.Notes((("wrote", path, "green"), ("checked", f"{_parity(parity)}, ONNX Runtime against torch", "")))


def demo_tables(facts: Mapping[str, float], seconds: float) -> Iterator[RenderableType]:
    """Accuracy and latency of the demo's networks, before and after."""
    table = cells.table("", "accuracy", "latency")
    table.add_row("dense", cells.share(facts["dense"]), cells.millis(facts["dense_ms"]))
    table.add_row("pruned", cells.share(facts["pruned"]), cells.millis(facts["slim_ms"]))
    table.add_row("fine-tuned", cells.share(facts["tuned"]), cells.millis(facts["slim_ms"]))
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
    shown = None if verbose else 2 * cells.SHOWN
    branches = [row for row in found.blocks if row.kind == BRANCH]
    residual = [row for row in found.blocks if row.kind != BRANCH]
    yield Text(cells.plural(len(found.groups), "channel group"), style="bold")
    if found.groups:
        groups = cells.table("channel group", "units", "modules that share it", left=(0, 2))
        for row in found.groups[:shown]:
            members = row.members if verbose else row.members[:3]
            more = f" and {len(row.members) - len(members)} more" if len(members) < len(row.members) else ""
            groups.add_row(escape(row.name), str(row.before), escape(", ".join(members)) + more)
        yield groups
        yield from cells.rest(groups.row_count, len(found.groups))
    yield Text("")
    yield Text(cells.plural(len(residual), "residual block"), style="bold")
    yield from _blocks("residual block", residual, shown)
    if branches:
        yield Text("")
        yield Text(cells.plural(len(branches), "concatenated branch", "es"), style="bold")
        yield from _blocks("concatenated branch", branches, shown)
    if found.frozen:
        yield Text("")
        yield Text(f"{cells.plural(len(found.frozen), 'frozen axis').replace('axiss', 'axes')}", style="bold")
        frozen = cells.table("module", "units", "because", left=(0, 2))
        for axis in found.frozen[:shown]:
            frozen.add_row(escape(axis.where), str(axis.size), escape(axis.reason))
        yield frozen
        yield from cells.rest(frozen.row_count, len(found.frozen))
    if found.baked_in:
        yield Text("")
        yield Text("baked in by tracing", style="bold")
        yield from (Text(fact) for fact in found.baked_in)


def _blocks(kind: str, rows: Sequence[BlockRow], shown: int | None) -> Iterator[RenderableType]:
    if rows:
        table = cells.table(kind, "", left=(0, 1))
        for row in rows[:shown]:
            answer = "removable" if row.reason is None else f"must stay: {row.reason}"
            table.add_row(escape(row.name), escape(answer))
        yield table
        yield from cells.rest(table.row_count, len(rows))


def profile_tables(found: Profile, *, verbose: bool) -> Iterator[RenderableType]:
    """Where the time goes, part by part."""
    rate = f" predicted, {found.prediction.dense_per_s:.0f} images/s" if found.prediction is not None else ""
    yield Text(f"{found.model}: {cells.millis(found.dense_ms)}{rate}", style="bold")
    yield Text(found.device, style="dim")
    yield Text("")
    table = cells.table("region", "kind", "ms", "", "share", "MACs", left=(0, 1))
    rows = sorted(found.regions, key=lambda row: -row.ms)
    for row in rows if verbose else rows[: cells.SHOWN]:
        bar = ProgressBar(total=rows[0].ms or 1.0, completed=row.ms, width=cells.BAR_WIDTH)
        table.add_row(
            escape(row.name), escape(row.kind), f"{row.ms:.3f}", bar, cells.share(row.share), cells.count(row.macs)
        )
    yield table
    yield from cells.rest(table.row_count, len(rows))
    yield Text("")
    if found.prediction is not None:
        yield cells.Notes(tuple(prediction_notes(found.prediction, verbose=verbose)))
        return
    line = _calibration(found.calibration, found.calibration_per_region_us)
    residual = cells.share(found.residual_ms / found.dense_ms)
    why = (
        "that no region has: calls, layouts" if found.residual_ms >= 0 else "beside the regions, which take more alone"
    )
    far = abs(found.residual_ms) > _FAR * found.dense_ms
    if far:
        again = f"delete what was measured (mdp-fx table gc --fingerprint '{found.device}') and measure again"
        why += f"; that is much: see that the machine is quiet, {again}"
    known = f"{found.regions_measured} measured now, {found.regions_cached} known"
    yield cells.Notes(
        (
            ("sum", f"{cells.millis(found.sum_ms)}, each region as a part; {line}", ""),
            ("residual", f"{found.residual_ms:+.3f} ms ({residual}) {why}", "yellow" if far else ""),
            ("points", f"{known}; table error about {cells.share(found.expected_error)}", ""),
            ("table", found.table, ""),
        )
    )


def _calibration(factor: float, per_region_us: float | None) -> str:
    """From regions alone to a whole network."""
    return f"calibration {factor:.3f}" + (f" {per_region_us:+.1f} us each" if per_region_us else "")


def bench_tables(
    rows: Sequence[BenchRow], target: str, batch: int, written: Mapping[str, str] | None = None
) -> Iterator[RenderableType]:
    """Networks timed in turn."""
    yield Text(f"{target}, batch {batch}, timed in turn", style="bold")
    measured = any(row.memory_bytes is not None or row.memory_failure for row in rows)
    columns = ["network", "p50", "p90", "images/s", "of first", "95 % interval", "runs"]
    table = cells.table(*columns, *(["peak memory"] if measured else []))
    for row in rows:
        texts = [f"{row.median_ms:.3f} ms", f"{row.p90_ms:.3f} ms", f"{row.per_second:.1f}", cells.share(row.ratio)]
        interval = "" if row.interval is None else f"{100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f} %"
        memory = ["failed" if row.memory_bytes is None else cells.mebibytes(row.memory_bytes)] if measured else []
        table.add_row(escape(row.name), *texts, interval, str(row.runs), *memory)
    yield table
    yield Text("")
    wrote = (("wrote", path, "green") for path in (written or {}).values())
    yield cells.Notes((*_bench_notes(rows, measured), *wrote))


def _bench_notes(rows: Sequence[BenchRow], measured: bool) -> Iterator[tuple[str, str, str]]:
    def shapes(row: BenchRow) -> str:
        return ", ".join("x".join(map(str, shape)) for shape in row.inputs) or "none"

    if len({row.inputs for row in rows}) == 1:
        yield "input", shapes(rows[0]), ""
    else:
        yield from (("input", f"{shapes(row)} for {row.name}", "") for row in rows)
    for row in rows:
        if row.interval is not None and not row.proven:
            what = f"that {row.name} and {rows[0].name} differ: two loadings may, by {100 * LOADING:g} %"
            yield "not proven", what, "yellow"
    if len({row.inputs[0][:1] for row in rows if row.inputs}) > 1:
        yield "warning", "the batches differ, and the ratios are of whole batches: compare images/s", "yellow"
    busiest = max(row.disturbed for row in rows)
    if busiest > BUSY:
        what = f"the processor was shared or slowed down in {100 * busiest:.0f} % of the runs"
        yield "warning", f"{what}: a quiet machine gives narrower intervals", "yellow"
    if measured:
        yield "peak memory", PEAK_MEMORY, ""
        for row in rows:
            if row.memory_failure:
                yield "failed", f"peak memory of {row.name}: {row.memory_failure}", "yellow"
