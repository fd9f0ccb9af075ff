"""Accuracy against measured latency as an SVG: one panel per data set and network, one line per method."""

from __future__ import annotations

import statistics
from typing import Any

_COLOURS = (
    *("#1b6ca8", "#c0392b", "#27824a", "#8e5ea2", "#b9770e", "#444444"),
    *("#16a085", "#d35400", "#7f8c8d", "#2c3e50", "#e84393"),
)
_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP = 60, 40, 420, 320, 90
_MARGIN = 0.02


def plot(rows: list[dict[str, Any]], dense: list[dict[str, Any]]) -> str:
    """The plot; points are means over the seeds, bars reach from the worst to the best of them.

    Args:
        rows: of the comparison; those without an accuracy are left out.
        dense: accuracy of the dense networks, which the dashed lines are.
    """
    rows = [row for row in rows if "after" in row]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = list(dict.fromkeys((row["data"], row["network"]) for row in dense))
    drawn: list[str] = []
    for number, panel in enumerate(panels):
        left = _LEFT + number * (_WIDTH + _GAP)
        top1 = next(row["top1"] for row in dense if (row["data"], row["network"]) == panel)
        drawn += _panel(left, panel, [row for row in rows if (row["data"], row["network"]) == panel], methods, top1)
    right = _LEFT + len(panels) * (_WIDTH + _GAP) - _GAP + 20
    for i, method in enumerate(methods):
        colour = _COLOURS[i % len(_COLOURS)]
        drawn.append(f'<path d="M{right} {_TOP + 20 * i + 8}h24" stroke="{colour}" stroke-width="2"/>')
        drawn.append(_text(right + 30, _TOP + 20 * i + 12, method, "start"))
    size = f'width="{right + 150}" height="{_TOP + _HEIGHT + 60}"'
    style = 'font-family="sans-serif" font-size="13"'
    shown = "\n".join(drawn)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="white"/>\n{shown}\n</svg>\n'


def _panel(left: int, panel: tuple[str, str], rows: list[dict[str, Any]], methods: list[str], top1: float) -> list[str]:
    values = [row["after"] for row in rows] + [top1]
    low, high = min(values) - _MARGIN, max(values) + _MARGIN
    widest = max([row["latency"]["share"] for row in rows] + [0.1]) * 1.1

    def x(share: float) -> float:
        return left + _WIDTH * share / widest

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (high - value) / (high - low)

    drawn = [_text(left, 22, f"{panel[1]} on {panel[0]}: top-1 after fine-tuning", "start")]
    drawn.append(_text(left + _WIDTH / 2, _TOP + _HEIGHT + 45, "measured latency, share of the dense network's"))
    drawn.append(f'<path d="M{left} {y(top1):.1f}h{_WIDTH}" stroke="#888" stroke-dasharray="5 4"/>')
    for i in range(5):
        value = low + (high - low) * i / 4
        drawn.append(_text(left - 8, y(value) + 4, f"{100 * value:.0f} %", "end"))
        drawn.append(f'<path d="M{left} {y(value):.1f}h{_WIDTH}" stroke="#ddd"/>')
    for tenth in range(1, int(10 * widest) + 1):
        drawn.append(_text(x(tenth / 10), _TOP + _HEIGHT + 22, f"{10 * tenth} %"))
    for i, method in enumerate(methods):
        colour = _COLOURS[i % len(_COLOURS)]
        points = []
        for budget in sorted({row["budget"] for row in rows}):
            found = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
            if found:
                accuracies = [row["after"] for row in found]
                at = statistics.mean(row["latency"]["share"] for row in found)
                points.append((x(at), y(statistics.mean(accuracies))))
                bar = f"M{x(at):.1f} {y(min(accuracies)):.1f}V{y(max(accuracies)):.1f}"
                drawn.append(f'<path d="{bar}" stroke="{colour}"/>')
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in points]
    return drawn


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
