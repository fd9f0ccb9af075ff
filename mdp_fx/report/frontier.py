"""The curve of importance against a cost: as data, as rich tables, and as a plot."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.text import Text

from mdp_fx.errors import OutputError, first_line
from mdp_fx.files import atomic_write
from mdp_fx.passes.frontier import FrontierPoint
from mdp_fx.passes.search_space import SearchSpace, Unit, amount, cut_dimensions, evaluate, importance
from mdp_fx.report import cells

PLOTS = (".html", ".png")
NAMED = 8
"""Removed blocks that a plot names at each point."""

_BAR = 8
_COLOURS = {"curve": "#1f77b4", "knee": "#d62728", "dense": "#444444"}


@dataclass(frozen=True)
class Curve:
    """What `frontier` found.

    Attributes:
        source: the file or network it belongs to.
        space: what was swept.
        cost: name of the cost.
        method: whose costs they are.
        points: by ascending cost.
        about: how it was scored and where it was measured, if that is known.
        warnings: what the curve does not say.
    """

    source: str
    space: SearchSpace
    cost: str
    method: str
    points: tuple[FrontierPoint, ...]
    about: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it shows, in one line."""
        return f"{self.source}: importance against {self.cost}"

    @property
    def unit(self) -> Unit:
        """Unit of the cost."""
        return self.space.costs[self.cost].unit

    @property
    def dense(self) -> float:
        """Cost of the dense network."""
        return evaluate(self.space, self.space.unpruned())[self.cost]

    @property
    def dense_importance(self) -> float:
        """Importance of the dense network."""
        return importance(self.space, self.space.unpruned())

    @property
    def suggestion(self) -> FrontierPoint:
        """A point to begin with: the knee that keeps most, or else the one nearest to half of the dense cost."""
        knees = [point for point in self.points if point.knee]
        return knees[-1] if knees else min(self.points, key=lambda point: abs(point.cost - self.dense / 2))

    def to_json(self) -> dict[str, Any]:
        """JSON data: costs in the unit of the cost, shares of the dense network."""
        dense, whole = self.dense, self.dense_importance
        return {
            "source": self.source,
            "about": list(self.about),
            "method": self.method,
            "cost": self.cost,
            "unit": self.unit,
            "dense": dense,
            "dense_importance": whole,
            "points": [
                {
                    "cost": point.cost,
                    "share": _share(point.cost, dense),
                    "importance": point.importance,
                    "importance_share": _share(point.importance, whole),
                    "dims": dict(point.selection.sizes),
                    "removed_blocks": list(point.selection.removed_blocks),
                    "knee": point.knee,
                }
                for point in self.points
            ],
            "warnings": list(self.warnings),
        }


def _share(value: float, whole: float) -> float | None:
    return value / whole if whole else None


def _percent(value: float, whole: float) -> str:
    return cells.share(value / whole) if whole else "-"


def _amount(value: float, unit: Unit) -> str:
    if unit == "us":
        return cells.millis(value / 1000)
    return amount(value, unit) if unit == "bytes" else cells.count(value)


def frontier_tables(
    curve: Curve, follow_up: str, written: Mapping[str, str], *, verbose: bool
) -> Iterator[RenderableType]:
    """A curve, part by part: the dense end first.

    Args:
        curve: the curve.
        follow_up: command that prunes to the suggested point.
        written: files that were written, by kind.
        verbose: show every point.
    """
    dense, whole = curve.dense, curve.dense_importance
    yield Text(curve.title, style="bold")
    by = f", {curve.cost} by its 1-D tables" if curve.method in ("halp", "mgp") else ""
    counted = "" if curve.unit in ("us", "bytes") else f" {curve.unit}"
    yield Text(f"{curve.method} method{by}; the dense network has {_amount(dense, curve.unit)}{counted}", style="dim")
    yield from (Text(line, style="dim") for line in curve.about)
    yield Text("")
    shown = range(len(curve.points)) if verbose else _spread(curve.points)
    table = cells.table(
        escape(curve.cost), "of dense", "importance kept", "", "blocks removed", "dims cut", "", left=(3, 6)
    )
    for i in reversed(shown):
        point = curve.points[i]
        table.add_row(
            _amount(point.cost, curve.unit),
            _percent(point.cost, dense),
            _percent(point.importance, whole),
            ProgressBar(total=whole or 1.0, completed=point.importance, width=_BAR),
            str(len(point.selection.removed_blocks)),
            str(len(cut_dimensions(curve.space, point.selection))),
            "knee" if point.knee else "",
            style="bold" if point.knee else "",
        )
    yield table
    yield from cells.rest(len(shown), len(curve.points))
    yield Text("")
    notes = []
    if any(point.knee for point in curve.points):
        notes.append(("knee", "the curve bends: below it, importance is lost faster than above it", ""))
    best, one = f"each keeps the most importance for its {curve.cost}", _amount(curve.suggestion.cost, curve.unit)
    notes.append(("points", f"{best}; this gives the one at {one}:", ""))
    notes.append(("", follow_up, "bold"))
    notes += [("warning", text, "yellow") for text in curve.warnings]
    notes += [("wrote", path, "green") for path in written.values()]
    yield cells.Notes(tuple(notes))


def _spread(points: tuple[FrontierPoint, ...]) -> list[int]:
    """Indices of about `cells.SHOWN` points evenly spread along the curve, and of all knees."""
    places = np.array([(point.cost, point.importance) for point in points])
    extent = np.ptp(places, axis=0)
    steps = np.diff(places / np.where(extent > 0, extent, 1.0), axis=0)
    along = np.concatenate([[0.0], np.hypot(steps[:, 0], steps[:, 1]).cumsum()])
    nearest = {int(np.abs(along - at).argmin()) for at in np.linspace(0.0, along[-1], cells.SHOWN)}
    return sorted(nearest | {i for i, point in enumerate(points) if point.knee})


def check_plot(path: Path) -> None:
    """Checks, before the work starts, that a plot can be written in the format that a file's name asks for.

    Raises:
        OutputError: it cannot; the message names a format that can.
    """
    if path.suffix.lower() not in PLOTS:
        raise OutputError(f"cannot plot to {path}: name a file that ends in .html, or in .png")
    if path.suffix.lower() == ".png":
        import plotly.graph_objects as go

        _png(go.Figure(), path)


def write_plot(curve: Curve, path: Path) -> None:
    """Writes the plot as an HTML page that needs no network, or as PNG.

    Raises:
        OutputError: it cannot be written.
    """
    write_figure(figure(curve), "frontier", curve.title, path)


def write_figure(drawn: Any, name: str, title: str, path: Path) -> None:
    """Writes a plotly figure as `write_plot` does; `name` is that of its element in the page.

    Raises:
        OutputError: it cannot be written.
    """
    content = _png(drawn, path) if path.suffix.lower() == ".png" else _page(drawn, name, title).encode()
    atomic_write(path, lambda file: file.write(content))


def _png(drawn: Any, path: Path) -> bytes:
    try:
        content: bytes = drawn.to_image(format="png", width=1000, height=600, scale=2)
    except Exception as error:  # kaleido's and the browser's: whatever they raise, there is no image
        reason = first_line(error).rstrip(" ,.:")
        msg = f"cannot make {path}: plotly needs kaleido and a Chrome browser for PNG ({reason}); choose a .html file"
        raise OutputError(msg) from error
    return content


def _page(drawn: Any, name: str, title: str) -> str:
    plot = drawn.to_html(
        full_html=False, include_plotlyjs=True, div_id=name, default_height="95vh", config={"displaylogo": False}
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>'
        f"{html.escape(title)}</title></head>\n<body>\n{plot}\n</body>\n</html>\n"
    )


def figure(curve: Curve) -> Any:
    """The curve as a plotly figure: its knees, the dense network, and at each point what it is made of."""
    import plotly.graph_objects as go

    factor, unit = {"us": (1e-3, "ms"), "bytes": (2.0**-20, "MiB")}.get(curve.unit, (1.0, curve.unit))
    whole = curve.dense_importance or 1.0
    dense = FrontierPoint(curve.dense, curve.dense_importance, curve.space.unpruned())

    def trace(name: str, points: tuple[FrontierPoint, ...], colour: str, **style: Any) -> go.Scatter:
        return go.Scatter(
            name=name,
            x=[factor * point.cost for point in points],
            y=[100 * point.importance / whole for point in points],
            hovertext=[_hover(curve, point) for point in points],
            hoverinfo="text",
            marker_color=_COLOURS[colour],
            textfont_color=_COLOURS[colour],
            **style,
        )

    knees = tuple(point for point in curve.points if point.knee)
    labels = [f"{_amount(p.cost, curve.unit)}, {100 * p.importance / whole:.0f} %" for p in knees]
    label = f"dense, {_amount(dense.cost, curve.unit)}"
    traces = [trace("best structures", curve.points, "curve", mode="lines+markers", marker_size=5)]
    if knees:
        # Below and to the right of a bend there is room: no structure of the curve lies there.
        named = {"mode": "markers+text", "text": labels, "textposition": "bottom right", "marker_size": 11}
        traces.append(trace("knees", knees, "knee", **named))
    alone = {"mode": "markers+text", "text": [label], "textposition": "top left", "marker_size": 11}
    traces.append(trace("dense network", (dense,), "dense", marker_symbol="diamond", **alone))
    about = "; ".join((f"{curve.method} method", *curve.about))
    return go.Figure(
        traces,
        go.Layout(
            title={"text": html.escape(curve.title), "subtitle": {"text": html.escape(about)}},
            template="plotly_white",
            xaxis={"title": f"{html.escape(curve.cost)} ({unit})", "rangemode": "tozero"},
            yaxis={"title": "importance kept (% of the dense network's)", "rangemode": "tozero"},
            legend={"x": 0.98, "xanchor": "right", "y": 0.02, "yanchor": "bottom"},
            hoverlabel_align="left",
        ),
    )


def _hover(curve: Curve, point: FrontierPoint) -> str:
    """What a point is: HTML lines, names escaped."""
    space, removed = curve.space, point.selection.removed_blocks
    names = ", ".join(removed[:NAMED]) + (", ..." if len(removed) > NAMED else "")
    cut = len(cut_dimensions(space, point.selection))
    lines = (
        f"{curve.cost} {_amount(point.cost, curve.unit)} ({_percent(point.cost, curve.dense)} of dense)",
        f"importance kept {_percent(point.importance, curve.dense_importance)}",
        f"{len(removed)} of {cells.plural(len(space.blocks), 'block')} removed" + (f": {names}" if names else ""),
        f"{cut} of {cells.plural(len(space.dimensions), 'dimension')} cut",
    )
    return "<br>".join(html.escape(line) for line in lines)
