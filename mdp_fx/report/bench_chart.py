"""Networks timed in turn, as a bar chart."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdp_fx.report import cells
from mdp_fx.report.facts import BenchRow
from mdp_fx.report.frontier import write_figure

_COLOURS = {"first": "#444444", "proven": "#1f77b4", "unproven": "#aec7e8"}


def write_chart(rows: Sequence[BenchRow], path: Path, target: str, device: str) -> None:
    """Writes the chart as an HTML page that needs no network, or as PNG.

    Args:
        rows: the networks; ratios are over the first one.
        path: file to write.
        target: where they were timed.
        device: all that is known of it.

    Raises:
        OutputError: it cannot be written.
    """
    write_figure(figure(rows, target, device), path, f"latency on {target}", "bench")


def figure(rows: Sequence[BenchRow], target: str, device: str) -> Any:
    """A bar for the median of each network with a whisker up to its 90th percentile, the first one at the top."""
    import plotly.graph_objects as go

    bars = go.Bar(
        orientation="h",
        # numbers as places and names as their labels: two networks of one name stay two bars
        y=list(range(len(rows))),
        x=[row.median_ms for row in rows],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row.p90_ms - row.median_ms for row in rows],
            "arrayminus": [0.0] * len(rows),
        },
        text=[html.escape(_label(row)) for row in rows],
        textposition="inside",
        insidetextanchor="start",
        hovertext=[_hover(row) for row in rows],
        hoverinfo="text",
        marker_color=[_COLOURS["first" if r.interval is None else "proven" if r.proven else "unproven"] for r in rows],
    )
    return go.Figure(
        [bars],
        go.Layout(
            title={"text": html.escape(f"latency on {target}"), "subtitle": {"text": html.escape(device)}},
            template="plotly_white",
            xaxis={"title": "median latency, whisker to the 90th percentile (ms)", "rangemode": "tozero"},
            yaxis={
                "tickmode": "array",
                "tickvals": list(range(len(rows))),
                "ticktext": [html.escape(row.name) for row in rows],
                "autorange": "reversed",
                "automargin": True,
            },
            hoverlabel_align="left",
        ),
    )


def _label(row: BenchRow) -> str:
    if row.interval is None:
        return cells.millis(row.median_ms)
    low, high = (f"{100 * end:.1f}" for end in row.interval)
    proven = "" if row.proven else ", not proven to differ"
    return f"{cells.millis(row.median_ms)}, {cells.share(row.ratio)} ({low} to {high} %{proven})"


def _hover(row: BenchRow) -> str:
    lines = [
        row.name,
        _label(row),
        f"90th percentile {cells.millis(row.p90_ms)}, {row.per_second:.1f} images/s, {cells.plural(row.runs, 'run')}",
        "input " + ", ".join("x".join(map(str, shape)) for shape in row.inputs),
    ]
    if row.memory_bytes is not None:
        lines.append(f"peak memory {cells.mebibytes(row.memory_bytes)}")
    return "<br>".join(html.escape(line) for line in lines)
