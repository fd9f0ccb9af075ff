"""What an export to a TensorRT engine did, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mdp_fx.report import cells


def engine_tables(path: str, facts: Mapping[str, Any], *, verbose: bool) -> Iterator[RenderableType]:
    """The layers of an engine, what it is for, and how far it is from torch.

    Args:
        path: of the engine's file.
        facts: `EngineReport` as data.
        verbose: every layer, with its kernel.
    """
    layers = facts["layers"]
    yield Text(cells.plural(len(layers), "layer"), style="bold")
    table = cells.table("layer", "kind", "output", *(["kernel"] if verbose else []), left=(0, 1, 2, 3))
    for layer in layers if verbose else layers[: cells.SHOWN]:
        columns = [layer["name"], layer["kind"], layer["output"], *([layer["tactic"]] if verbose else [])]
        table.add_row(*map(escape, columns))
    yield table
    yield from cells.rest(table.row_count, len(layers))
    yield Text("")
    batch = f"batch 1 to {facts['batch']}" if facts["dynamic_batch"] else f"batch {facts['batch']}"
    yield cells.Notes(
        (
            ("wrote", path, "green"),
            ("for", f"{facts['device']}, TensorRT {facts['tensorrt']}, {facts['dtype']}, {batch}", ""),
            ("checked", f"max abs error {facts['max_abs_error']:.1e}, relative {facts['max_rel_error']:.1e}", ""),
        )
    )
