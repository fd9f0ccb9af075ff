"""A curve as tables, as JSON data and as a plot: every fact is there."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plotly import graph_objects

from mdp_fx.errors import OutputError
from mdp_fx.passes.frontier import FrontierPoint, frontier
from mdp_fx.passes.search_space import CostModel, SearchSpace, Selection
from mdp_fx.report import cells
from mdp_fx.report.frontier import NAMED, Curve, check_plot, figure, frontier_tables, write_plot
from tests.passes.spaces import chain_space, random_space
from tests.report.rendering import has_row, lines

CHAIN = chain_space()
CURVE = Curve(
    source="chain.json",
    space=CHAIN,
    cost="latency",
    method="mdp",
    points=(
        FrontierPoint(3.0, 3.0, Selection({"a": 1, "b": 2}, ("block",))),
        FrontierPoint(7.0, 8.0, Selection({"a": 1, "b": 2}), knee=True),
        FrontierPoint(15.0, 9.0, Selection({"a": 2, "b": 2})),
    ),
    about=("l2 importance, batch 1", "some device"),
    warnings=("accuracy is unknown",),
)


def bent(count: int, knee: int) -> Curve:
    """A curve of many points, crowded at its cheap end."""
    costs = [15.0 * (i / (count - 1)) ** 3 for i in range(count)]
    points = [FrontierPoint(c, 9 * math.sqrt(c / 15), CHAIN.dense(), i == knee) for i, c in enumerate(costs)]
    return replace(CURVE, points=tuple(points))


def shown(curve: Curve = CURVE, *, verbose: bool = False, width: int = 80, terminal: bool = False) -> list[str]:
    parts = frontier_tables(curve, "mdp-fx solve chain.json", {"plot": "c.html"}, verbose=verbose)
    return lines(parts, width, terminal)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_every_fact_is_there(width: int, terminal: bool) -> None:
    found = shown(width=width, terminal=terminal)
    assert not terminal or all(len(line) <= width for line in found)
    assert found[:4] == [
        "chain.json: importance against latency",
        "mdp method; the dense network has 0.015 ms",
        "l2 importance, batch 1",
        "some device",
    ]
    rows = [" ".join(re.sub("[━╸]", "", line).split()) for line in found]
    dense = rows.index("0.015 ms 100.0 % 100.0 % 0 0")
    assert rows[dense + 1 : dense + 3] == ["0.007 ms 46.7 % 88.9 % 0 1 knee", "0.003 ms 20.0 % 33.3 % 1 1"]
    assert has_row(found, "knee", "the curve")
    assert "this gives the one at 0.007 ms:" in " ".join(rows)
    assert "others may lie below the lines between them" in " ".join(rows)
    assert "mdp-fx solve chain.json" in rows
    assert has_row(found, "warning", "accuracy is unknown")
    assert has_row(found, "wrote", "c.html")


def test_costs_of_one_dimensional_methods_are_named_so() -> None:
    found = shown(replace(CURVE, method="mgp"))
    assert found[1].startswith("mgp method, latency by its 1-D tables; ")
    assert not any("takes some latency" in line for line in found)


@pytest.mark.parametrize(("method", "warned"), [("halp", True), ("mgp", True), ("mdlm", False)])
def test_costs_that_a_method_misjudges_stand_beside_the_true_ones(method: str, warned: bool) -> None:
    cheap = (replace(CURVE.points[0], cost=2.0), *CURVE.points[1:])
    curve = replace(CURVE, method=method, points=cheap)
    rows = [" ".join(re.sub("[━╸]", "", line).split()) for line in shown(curve)]
    assert ("0.002 ms 0.003 ms 13.3 % 33.3 % 1 1" in rows) is warned
    assert any(f"{method} takes some latency for less than it is: see true" in row for row in rows) is warned
    assert [point["cost"] for point in curve.to_json()["points"]] == [2.0, 7.0, 15.0]
    assert [point["true_cost"] for point in curve.to_json()["points"]] == [3.0 if warned else 2.0, 7.0, 15.0]


def test_counts_have_their_unit() -> None:
    counted = replace(CHAIN, costs={"params": CostModel("params", 25e6, ())})
    curve = Curve("net", counted, "params", "mdp", (FrontierPoint(25e6, 9.0, CHAIN.dense()),))
    found = shown(curve)
    assert found[1] == "mdp method; the dense network has 25.0M params"
    assert has_row(found, "25.0M", "100.0 %")
    assert not any(line.startswith("knee") for line in found)


def test_a_long_curve_is_thinned_without_verbose() -> None:
    def rows(found: list[str]) -> list[str]:
        return [line for line in found if " %" in line]

    curve = bent(200, knee=3)
    few, every = shown(curve), shown(curve, verbose=True)
    assert len(rows(every)) == 200
    assert cells.SHOWN <= len(rows(few)) <= cells.SHOWN + 1
    assert f"... and {200 - len(rows(few))} more (-v shows all)" in few
    assert {line.split()[-1] for line in rows(few)} >= {"knee"}
    assert (rows(few)[0], rows(few)[-1]) == (rows(every)[0], rows(every)[-1])
    # Neighbours lie about as far apart on the curve everywhere, however crowded its points are.
    places = [
        tuple(float(text) for text in re.findall(r"([\d.]+) %", line)) for line in rows(few) if "knee" not in line
    ]
    steps = [math.dist(a, b) for a, b in itertools.pairwise(places)]
    assert max(steps) < 2 * sorted(steps)[len(steps) // 2]


def test_a_curve_of_one_point() -> None:
    found = shown(replace(CURVE, points=CURVE.points[:1]))
    assert sum(" %" in line for line in found) == 1
    assert any("this gives the one at 0.003 ms:" in line for line in found)


def test_the_suggestion_is_the_knee_that_keeps_most_or_lies_in_the_middle() -> None:
    assert CURVE.suggestion is CURVE.points[1]
    straight = tuple(replace(point, knee=False) for point in CURVE.points)
    assert replace(CURVE, points=straight).suggestion == straight[1]
    nothing = tuple(replace(point, importance=0.0) for point in straight[:2])
    assert replace(CURVE, points=(*nothing, straight[2])).suggestion == straight[2]
    assert replace(CURVE, points=nothing).suggestion == nothing[1]
    every = tuple(replace(point, knee=True) for point in CURVE.points)
    assert replace(CURVE, points=every).suggestion == every[2]


def test_json_has_every_point() -> None:
    found = CURVE.to_json()
    assert (found["cost"], found["unit"], found["dense"], found["dense_importance"]) == ("latency", "us", 15.0, 9.0)
    assert found["points"][1] == {
        "cost": 7.0,
        "true_cost": 7.0,
        "share": pytest.approx(7 / 15),
        "importance": 8.0,
        "importance_share": pytest.approx(8 / 9),
        "dims": {"a": 1, "b": 2},
        "removed_blocks": [],
        "knee": True,
    }
    assert [point["removed_blocks"] for point in found["points"]] == [["block"], [], []]


def test_shares_of_nothing_are_none() -> None:
    free = replace(CHAIN, importance=(), costs={"latency": CostModel("us", 0.0, ())})
    curve = Curve("free", free, "latency", "mdp", frontier(free))
    assert [(point["share"], point["importance_share"]) for point in curve.to_json()["points"]] == [(None, None)]
    assert any(line.split()[:4] == ["0", "ms", "-", "-"] for line in shown(curve))


def traces(curve: Curve) -> dict[str, Any]:
    return {trace.name: trace for trace in figure(curve).data}


def test_the_plot_shows_the_curve_its_knees_and_the_dense_network() -> None:
    found = traces(CURVE)
    assert list(found) == ["best structures", "knees", "dense network"]
    assert found["best structures"].x == pytest.approx((0.003, 0.007, 0.015))
    assert found["best structures"].y == pytest.approx((100 / 3, 800 / 9, 100.0))
    assert (found["knees"].x, found["knees"].text) == ((0.007,), ("0.007 ms, 89 %",))
    assert (found["dense network"].x, found["dense network"].text) == ((0.015,), ("dense, 0.015 ms",))
    assert found["best structures"].hovertext[0] == (
        "latency 0.003 ms (20.0 % of dense)<br>importance kept 33.3 %<br>"
        "1 of 1 block removed: block<br>1 of 2 dimensions cut"
    )
    layout = figure(CURVE).layout
    assert layout.title.text == "chain.json: importance against latency"
    assert layout.title.subtitle.text == "mdp method; l2 importance, batch 1; some device"
    assert layout.xaxis.title.text == "latency (ms)"
    assert layout.yaxis.title.text == "importance kept (% of the dense network's)"


def test_a_straight_curve_has_no_knees_in_its_plot() -> None:
    assert "knees" not in traces(replace(CURVE, points=CURVE.points[:1]))


def test_names_in_a_plot_are_text_and_long_lists_are_cut() -> None:
    names = tuple(f"<b{i}>" for i in range(NAMED + 1))
    removed = Selection({"a": 1, "b": 2}, names)
    curve = replace(CURVE, source="<net>", points=(FrontierPoint(3.0, 3.0, removed),))
    hover = traces(curve)["best structures"].hovertext[0]
    assert "&lt;b0&gt;, " in hover
    assert f"&lt;b{NAMED - 1}&gt;, ...<br>" in hover
    assert f"b{NAMED}" not in hover
    assert figure(curve).layout.title.text.startswith("&lt;net&gt;: ")


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    write_plot(CURVE, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<title>chain.json: importance against latency</title>" in page
    assert "plotly.js v" in page
    # Nothing is loaded from anywhere: neither before the library nor after it.
    around = page[: page.index("plotly.js v")] + page[page.rindex("</script>", 0, page.rindex("Plotly.newPlot")) :]
    assert not re.search(r"<script[^>]+src|<link|https?:", around)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.html"]


@pytest.mark.parametrize("name", ["c.svg", "c", "c.htm"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(OutputError, match=rf"cannot plot to {name}: name a file that ends in \.html, or in \.png"):
        check_plot(Path(name))


def test_png_without_its_renderer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("\nImage export requires the Kaleido package,\nwhich can be installed")

    monkeypatch.setattr(graph_objects.Figure, "to_image", fail)
    with pytest.raises(
        OutputError, match=r"kaleido and a Chrome browser for PNG \(Image .* package\); choose a \.html"
    ):
        check_plot(tmp_path / "c.png")
    with pytest.raises(OutputError, match="cannot make "):
        write_plot(CURVE, tmp_path / "c.PNG")
    assert list(tmp_path.iterdir()) == []


def test_png_is_what_plotly_renders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        graph_objects.Figure, "to_image", lambda self, format, **_: f"{format} {len(self.data)}".encode()
    )
    check_plot(tmp_path / "c.png")
    write_plot(CURVE, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() == b"png 3"


@pytest.mark.parametrize("seed", range(5))
def test_any_curve_is_told_and_drawn(seed: int) -> None:
    space: SearchSpace = random_space(seed)
    curve = Curve("random", space, "latency", "mdp", frontier(space))
    assert sum(" %" in line for line in shown(curve, verbose=True)) == len(curve.points)
    assert len(traces(curve)["best structures"].x) == len(curve.points)
