"""The bar chart of networks timed in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdp_fx.report.bench_chart import figure, write_chart
from mdp_fx.report.facts import BenchRow

ROWS = (
    BenchRow("dense", 10.0, 11.0, 50, 100.0, 1.0, None, ((1, 3, 8, 8),), memory_bytes=40 * 2**20),
    BenchRow("slim<b>.pt", 5.0, 7.5, 50, 200.0, 0.5, (0.49, 0.52), ((1, 3, 8, 8),)),
    BenchRow("dense", 9.9, 11.0, 50, 101.0, 0.99, (0.98, 1.01), ((1, 3, 8, 8),)),
)


def test_each_network_has_a_bar_and_a_whisker() -> None:
    (bars,) = figure(ROWS, "torch:cpu", "a machine").data
    assert list(bars.x) == [10.0, 5.0, 9.9]
    assert list(bars.error_x.array) == pytest.approx([1.0, 2.5, 1.1])
    assert list(bars.text) == [
        "10.00 ms",
        "5.00 ms, 50.0 % (49.0 to 52.0 %)",
        "9.90 ms, 99.0 % (98.0 to 101.0 %, not proven to differ)",
    ]
    # two networks of one name stay two bars
    assert len(set(bars.y)) == 3
    assert len(set(bars.marker.color)) == 3
    assert "peak memory 40.0 MiB" in bars.hovertext[0]
    assert "slim&lt;b&gt;.pt" in bars.hovertext[1]


def test_the_first_is_at_the_top_with_its_name() -> None:
    layout = figure(ROWS, "torch:cpu", "a <machine>").layout
    assert layout.yaxis.autorange == "reversed"
    assert layout.yaxis.ticktext == ("dense", "slim&lt;b&gt;.pt", "dense")
    assert layout.title.subtitle.text == "a &lt;machine&gt;"


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    write_chart(ROWS, tmp_path / "c.html", "torch:cpu", "a machine")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<title>latency on torch:cpu</title>" in page
    assert '<div id="bench"' in page
    assert "src=" not in page.split("</script>")[-1]
