"""What a latency table holds: as data, as rich tables, and as plots."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.text import Text

from mdp_fx.report import cells

_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_SIZES = ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


@dataclass(frozen=True)
class FingerprintRow:
    """What is known of one device and runtime.

    Attributes:
        index: its number in the list, from 1.
        fingerprint: all of its fingerprint, and its parts where it has them.
        regions: how many were measured.
        points: at how many sizes together.
        oldest_s: age of the oldest point in seconds, None where no age is known; `newest_s` that of the newest.
        undated: points of unknown age.
        size_bytes: about what it takes on disk.
        stale: whether its runtime, driver or way of measuring is another one now.
    """

    index: int
    fingerprint: str
    target: str | None
    runtime: str | None
    version: str | None
    device: str | None
    threads: int | None
    dtype: str | None
    regions: int
    points: int
    oldest_s: float | None
    newest_s: float | None
    undated: int
    size_bytes: int
    stale: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class RegionRow:
    """One region of a fingerprint: its number from 1, its key, its points, the range of its latencies."""

    index: int
    region: str
    points: int
    least_us: float
    most_us: float

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class PointRow:
    """One measurement of a region; `low_us` is what the search reads."""

    sizes: tuple[int, ...]
    median_us: float
    p90_us: float
    low_us: float
    spread: float
    runs: int
    age_s: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def age(seconds: float | None) -> str:
    """How long ago, in one unit."""
    if seconds is None:
        return "unknown"
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def _ages(row: FingerprintRow) -> str:
    newest, oldest = age(row.newest_s), age(row.oldest_s)
    return newest if newest == oldest else f"{newest} to {oldest}"


def _bytes(value: int) -> str:
    for size, unit in _SIZES:
        if value >= size:
            return f"{value / size:.0f} {unit}"
    return "0 B"


def list_tables(path: str, rows: Sequence[FingerprintRow]) -> Iterator[RenderableType]:
    """What a table holds, fingerprint by fingerprint."""
    yield Text(path, style="bold")
    if not rows:
        yield Text("no measurements")
        return
    columns = ("#", "target", "runtime", "device", "threads", "dtype", "regions", "points", "age", "size")
    table = cells.table(*columns, left=(1, 2, 3, 5), whole=(1, 5))  # What one looks for stays whole.
    for row in rows:
        runtime = f"{row.runtime} {row.version}{' (not installed now)' if row.stale else ''}" if row.runtime else "-"
        table.add_row(
            str(row.index),
            escape(row.target or "-"),
            escape(runtime),
            escape(row.device or row.fingerprint),
            str(row.threads) if row.threads is not None else "-",
            escape(row.dtype or "-"),
            str(row.regions),
            str(row.points),
            _ages(row),
            _bytes(row.size_bytes),
        )
    yield table


def show_regions(fingerprint: str, rows: Sequence[RegionRow], *, verbose: bool) -> Iterator[RenderableType]:
    """The regions of a fingerprint."""
    yield Text(fingerprint, style="bold")
    table = cells.table("#", "region", "points", "from", "to", left=(1,))
    for row in rows if verbose else rows[: cells.SHOWN]:
        ends = [cells.millis(value / 1000) for value in (row.least_us, row.most_us)]
        table.add_row(str(row.index), escape(row.region), str(row.points), *ends)
    yield table
    yield from cells.rest(table.row_count, len(rows))


def show_points(fingerprint: str, region: str, rows: Sequence[PointRow], *, verbose: bool) -> Iterator[RenderableType]:
    """The points of a region, with a bar for the latency that counts."""
    yield Text(region, style="bold")
    yield Text(fingerprint, style="dim")
    longest = max(row.low_us for row in rows) or 1.0
    table = cells.table("sizes", "lower quartile", "", "median", "p90", "spread", "runs", "age")
    for row in rows if verbose else rows[: 2 * cells.SHOWN]:
        low, *others = (cells.millis(value / 1000) for value in (row.low_us, row.median_us, row.p90_us))
        bar = ProgressBar(total=longest, completed=row.low_us, width=cells.BAR_WIDTH)
        sizes = " x ".join(map(str, row.sizes)) or "-"
        table.add_row(sizes, low, bar, *others, cells.share(row.spread), str(row.runs), age(row.age_s))
    yield table
    yield from cells.rest(table.row_count, len(rows))


def deletion_tables(points: Mapping[str, int], undated: int) -> Iterator[RenderableType]:
    """What is to be deleted: points by fingerprint."""
    if not points:
        yield Text("nothing to delete")
    table = cells.table("points", "fingerprint", left=(1,))
    for fingerprint, count in points.items():
        table.add_row(str(count), escape(fingerprint))
    if points:
        yield table
    if undated:
        yield Text(f"{cells.plural(undated, 'point')} of unknown age not among them", style="dim")


def figure(region: str, points: Mapping[str, Sequence[PointRow]]) -> Any:
    """A region as a plotly figure.

    One axis gives a staircase for each fingerprint: the latency of a size holds down to the size below. Two axes give a
    heat map of the first fingerprint; where there are three, at the largest size of the third.

    Args:
        region: its key.
        points: measurements by fingerprint, all with as many sizes.
    """
    import plotly.graph_objects as go

    first = next(iter(points.values()))
    if len(first[0].sizes) == 1:
        traces = [_staircase(name, rows) for name, rows in points.items()]
        axes = {"xaxis": {"title": "size", "rangemode": "tozero"}, "yaxis": {"title": "ms", "rangemode": "tozero"}}
        subtitle = next(iter(points)) if len(points) == 1 else ""
    else:
        largest = tuple(max(row.sizes[i] for row in first) for i in range(2, len(first[0].sizes)))
        traces = [_heat_map([row for row in first if row.sizes[2:] == largest])]
        axes = {"xaxis": {"title": "first size"}, "yaxis": {"title": "second size"}}
        subtitle = next(iter(points)) + (f"; third size {largest[0]}" if largest else "")
    title = {"text": html.escape(region), "subtitle": {"text": html.escape(subtitle)}}
    return go.Figure(traces, go.Layout(title=title, template="plotly_white", hoverlabel_align="left", **axes))


def _staircase(name: str, rows: Sequence[PointRow]) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        name=html.escape(name),
        x=[row.sizes[0] for row in rows],
        y=[row.low_us / 1000 for row in rows],
        line_shape="vh",
        mode="lines+markers",
        hovertext=[_hover(row) for row in rows],
        hoverinfo="text",
    )


def _heat_map(rows: Sequence[PointRow]) -> Any:
    import plotly.graph_objects as go

    across, up = (sorted({row.sizes[i] for row in rows}) for i in (0, 1))
    at = {row.sizes[:2]: row for row in rows}
    known = [[at.get((x, y)) for x in across] for y in up]
    return go.Heatmap(
        x=across,
        y=up,
        z=[[row.low_us / 1000 if row is not None else None for row in line] for line in known],
        hovertext=[[_hover(row) if row is not None else "not measured" for row in line] for line in known],
        hoverinfo="text",
        colorbar_title="ms",
        hoverongaps=False,
    )


def _hover(row: PointRow) -> str:
    sizes = " x ".join(map(str, row.sizes))
    low, median, p90 = (cells.millis(value / 1000) for value in (row.low_us, row.median_us, row.p90_us))
    return f"{sizes}: {low}<br>median {median}, p90 {p90}, {row.runs} runs, spread {cells.share(row.spread)}"
