"""What scoring a network found, as facts and as rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mdp_fx.passes.importance import LayerImportance
from mdp_fx.report import cells


def score_facts(model: str, importance: str, batches: int, layers: Sequence[LayerImportance]) -> dict[str, Any]:
    """The importance of every group as JSON data: its sum over layers, and how it is spread over the units."""
    totals: dict[str, Any] = {}
    for each in layers:
        totals[each.group] = totals.get(each.group, 0.0) + each.values
    whole = sum(float(values.sum()) for values in totals.values())
    rows = [
        {
            "group": group,
            "units": int(values.size),
            "importance": float(values.sum()),
            "share": float(values.sum()) / whole if whole else 0.0,
            "least": float(values.min(initial=np.inf)),
            "median": float(np.median(values)),
            "most": float(values.max(initial=0.0)),
        }
        for group, values in totals.items()
    ]
    return {"model": model, "importance": importance, "batches": batches, "groups": rows}


def score_tables(facts: Mapping[str, Any], path: str, *, verbose: bool) -> Iterator[RenderableType]:
    """The importance of every group.

    Args:
        facts: from `score_facts`.
        path: the file that the scores were written to.
        verbose: all groups.
    """
    batches = f" of {cells.plural(facts['batches'], 'batch', 'es')}" if facts["batches"] else ""
    yield Text(f"{facts['model']}: {facts['importance']} importance{batches}", style="bold")
    yield Text("")
    table = cells.table("channel group", "units", "of all importance", "least", "median", "most")
    for row in facts["groups"] if verbose else facts["groups"][: cells.SHOWN]:
        spread = (f"{row[name]:.2e}" for name in ("least", "median", "most"))
        table.add_row(escape(row["group"]), str(row["units"]), cells.share(row["share"]), *spread)
    yield table
    yield from cells.rest(table.row_count, len(facts["groups"]))
    yield Text("")
    yield cells.Notes((("wrote", path, "green"), ("next", f"mdp-fx prune MODEL --scores {path}", "")))
