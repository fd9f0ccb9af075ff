"""What `mdp-fx solve` decided, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mdp_fx.passes.minlp import Certificate
from mdp_fx.passes.search_space import SearchSpace, Selection, amount, cut_dimensions, evaluate, importance
from mdp_fx.passes.space_blocks import unused
from mdp_fx.report import cells


def decision_tables(
    name: str,
    space: SearchSpace,
    selection: Selection,
    certificate: Certificate,
    written: str | None = None,
    *,
    verbose: bool,
) -> Iterator[RenderableType]:
    """A decision on a search space, part by part.

    Args:
        name: of the space.
        space: the search space that was asked.
        selection: what is kept of it.
        certificate: what is proven of that.
        written: file that the decision was written to, if any.
        verbose: show every dimension.
    """
    whole = importance(space, space.unpruned())
    kept = f"{cells.share(certificate.objective / whole)} of the importance kept" if whole else "nothing is important"
    yield Text(f"{name}: {kept}", style="bold")
    yield Text(
        f"{certificate.method}, {certificate.solver} solver: {certificate.status}, {certificate.seconds:.2f} s",
        style="dim",
    )
    yield Text("")
    bound = "none is known" if certificate.bound is None else _number(certificate.bound)
    if certificate.bound_from is not None:
        bound += f", proven by the {certificate.bound_from} solver"
    gap = "none is known" if certificate.gap is None else f"{100 * certificate.gap:.3g} %"
    yield cells.Notes(
        (
            ("objective", f"{_number(certificate.objective)} of {_number(whole)}", ""),
            ("bound", bound, ""),
            ("gap", gap, "yellow" if certificate.status in ("time limit", "gap open") else ""),
        )
    )
    yield Text("")
    yield _costs(space, certificate)
    yield Text("")
    yield from _dimensions(space, selection, verbose=verbose)
    yield Text("")
    notes = [("blocks", _blocks(space, selection, certificate, verbose=verbose), "")]
    for cost in certificate.exceeded:
        over = f"the {cost} kept is {cells.share(certificate.costs[cost] / certificate.budgets[cost])} of its budget"
        what = f"{certificate.method} was held to it by its 1-D tables; mdp knows the true cost"
        notes.append(("warning", f"{over}: {what}", "yellow"))
    if certificate.status == "time limit":
        notes.append(
            ("warning", "the time limit came before the gap was proven; allow more with --time-limit", "yellow")
        )
    if written is not None:
        notes.append(("wrote", written, "green"))
    yield cells.Notes(tuple(notes))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.6g}"


def _costs(space: SearchSpace, certificate: Certificate) -> Table:
    """What is kept costs, and what the method takes that for where it takes it for something else."""
    modelled = [f"in {certificate.method}"] if certificate.misjudged else []
    table = cells.table("", "dense", "budget", *modelled, "kept", "of budget", "of dense")
    for name, dense in evaluate(space, space.unpruned()).items():
        unit, spent, budget = space.costs[name].unit, certificate.costs[name], certificate.budgets.get(name)
        table.add_row(
            escape(name),
            amount(dense, unit),
            "-" if budget is None else amount(budget, unit),
            *([amount(certificate.modelled_costs[name], unit)] if modelled else []),
            Text(amount(spent, unit), style="bold"),
            cells.share(spent / budget) if budget else "-",
            cells.share(spent / dense) if dense else "-",
        )
    return table


def _dimensions(space: SearchSpace, selection: Selection, *, verbose: bool) -> Iterator[RenderableType]:
    """Dimensions that are cut; with -v all, those that only removed blocks use without a size."""
    idle = unused(space, selection.removed_blocks)
    cut = cut_dimensions(space, selection)
    yield Text(f"{len(cut)} of {cells.plural(len(space.dimensions), 'dimension')} cut", style="bold")
    rows = space.dimensions if verbose else cut[: cells.SHOWN]
    if not rows:
        return
    table = cells.table("dimension", "dense", "kept", "", "")
    for dim in rows:
        size = 0 if dim.name in idle else selection.sizes[dim.name]
        bar = ProgressBar(total=dim.dense or 1, completed=size, width=cells.BAR_WIDTH)
        share = "unused" if dim.name in idle else f"{100 * size / dim.dense:.0f} %" if dim.dense else ""
        table.add_row(escape(dim.name), str(dim.dense), "-" if dim.name in idle else str(size), bar, share)
    yield table
    if not verbose:
        yield from cells.rest(len(rows), len(cut))


def _blocks(space: SearchSpace, selection: Selection, certificate: Certificate, *, verbose: bool) -> str:
    if not space.blocks:
        return "the search space has no removable blocks"
    removed = cells.names(selection.removed_blocks, verbose=verbose)
    most = "" if certificate.max_removed is None else f" (at most {certificate.max_removed} were to go)"
    text = f"{len(selection.removed_blocks)} of {len(space.blocks)} removed{most}"
    return f"{text}: {removed}" if removed else text
