"""How well a detector detects, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mdp_fx.report import cells


def detection_tables(scores: Mapping[str, Any], model: str, data: str, pretrained: bool) -> Iterator[RenderableType]:
    """Average precision of every class, and its mean.

    Args:
        scores: what `mdp_fx.detection.evaluate` gives.
        model: name of the detector.
        data: what it was evaluated on.
        pretrained: false adds a warning that the weights are random.
    """
    yield Text(f"{model}: mAP@0.5 {cells.share(scores['map_50'])}", style="bold")
    yield Text(f"{data}, {cells.plural(scores['images'], 'image')}", style="dim")
    yield Text("")
    table = cells.table("class", "AP@0.5")
    for name, value in scores["map_50_per_class"].items():
        table.add_row(escape(name), cells.share(value))
    yield table
    yield Text("")
    notes = [("mAP", f"{cells.share(scores['map'])} over overlaps of 0.5 to 0.95", "")]
    if not pretrained:
        notes.append(("warning", "the weights are random", "yellow"))
    yield cells.Notes(tuple(notes))
