"""The rows of bench/coverage.py as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from bench.coverage_checks import COUNTED
from bench.coverage_row import WANTING
from mdp_fx.passes.front_end import InferAxisTypes, TraceModel

Row = dict[str, Any]

LARGE_BYTES = 20e6
"""Of smaller models a ratio of memory says nothing: the growth is that of the interpreter."""

LOW_SHARE = 0.9
"""Below this share of prunable MACs the table says what is frozen."""


def markdown(rows: Sequence[Row], listed: int) -> str:
    """The whole report.

    Args:
        rows: the networks that were examined.
        listed: how many there are to examine.
    """
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    parts = [[row for row in rows if row["library"] == library] for library in libraries]
    summary = [_summary(library, part) for library, part in zip(libraries, parts, strict=True)]
    if len(parts) > 1:
        summary.append(_summary("all", rows))
    some = (
        [f"{len(rows)} of {listed} listed networks were examined, the smallest first.", ""]
        if len(rows) < listed
        else []
    )
    lines = ["# Coverage", "", *some, *_table(SUMMARY, summary), "", HOW, "", *_table(COLUMNS, map(_cells, rows))]
    missed = [row for row in rows if not row["counts"]]
    if missed:
        cells = [[row["spec"], "; ".join(faults(row))] for row in missed]
        lines += ["", "## Misses", "", *_table(("network", "why"), cells)]
    frozen = [row for row in rows if row.get("prunable_macs", 1) < LOW_SHARE]
    if frozen:
        cells = [[row["spec"], _percent(row["prunable_macs"]), _frozen(row)] for row in frozen]
        lines += ["", "## Frozen parts", "", *_table(("network", "prunable MACs", "units frozen, and why"), cells)]
    return "\n".join(lines) + "\n"


HOW = f"""A network counts if it passes all of these: {", ".join(COUNTED)}.
"halved" keeps a random half of every free dimension, "blocks" removes every removable block. Errors are those of
parity, in float64, with the zeroed dense network, over the largest value. Seconds are the best of up to five runs in
float32 with one thread. Memory is what the passes from tracing to rewriting add to the peak resident set of a process
that built the network and ran it once, over the bytes of parameters and buffers; the peak is theirs over that one."""

SUMMARY = (
    "library",
    "count",
    "share",
    "prunable MACs, median",
    "types, worst",
    "Torch-Pruning can",
    "times faster, median",
    "slowest",
    f"memory, worst above {LARGE_BYTES / 1e6:.0f} MB",
    "memory, worst below",
    "peak, worst",
)

COLUMNS = (
    "library",
    "model",
    "family",
    "counts",
    "groups",
    "blocks",
    "parameters left",
    "prunable MACs",
    "error, halved",
    "error, blocks",
    "trace s",
    "types s",
    "rest s",
    "total s",
    "Torch-Pruning s",
    "memory",
    "peak",
)


def faults(row: Row) -> list[str]:
    """Why a network does not count, by reason; what failed only for want of another stage is left out."""
    failed = {name: row["stages"][name]["reason"] for name in COUNTED if not row["stages"][name]["ok"]}
    own = {name: reason for name, reason in failed.items() if reason != WANTING} or failed
    return [
        f"{', '.join(name for name, found in own.items() if found == reason)}: {reason}"
        for reason in dict.fromkeys(own.values())
    ]


def _summary(library: str, rows: Sequence[Row]) -> list[str]:
    counting = sum(row["counts"] for row in rows)
    timed = [row for row in rows if "seconds" in row]
    beside = [row["torch_pruning"]["total"] / row["seconds"]["total"] for row in timed if "torch_pruning" in row]
    large = [row for row in timed if row["memory"]["model_bytes"] >= LARGE_BYTES]
    small = [row for row in timed if row["memory"]["model_bytes"] < LARGE_BYTES]
    return [
        library,
        f"{counting} of {len(rows)}",
        _percent(counting / len(rows)),
        _percent(median(row["prunable_macs"] for row in rows if "prunable_macs" in row))
        if any("prunable_macs" in row for row in rows)
        else "",
        _worst(timed, _types, lambda row: f"{_types(row):.3f} s"),
        f"{len(beside)} of {sum('torch-pruning' in row['stages'] for row in rows)}",
        f"{median(beside):.1f}" if beside else "",
        _worst(timed, _total, lambda row: f"{_total(row):.1f} s"),
        _worst(large, _memory, lambda row: f"{_memory(row):.2f} x"),
        _worst(small, _growth, lambda row: f"{_growth(row):.0f} MB"),
        _worst(timed, _peak, lambda row: f"{_peak(row):.2f} x"),
    ]


def _worst(rows: Sequence[Row], key: Callable[[Row], float], text: Callable[[Row], str]) -> str:
    if not rows:
        return ""
    row = max(rows, key=key)
    return f"{text(row)} ({row['model']})"


def _types(row: Row) -> float:
    return float(row["seconds"]["passes"][InferAxisTypes().name])


def _trace(row: Row) -> float:
    return float(row["seconds"]["passes"][TraceModel().name])


def _total(row: Row) -> float:
    return float(row["seconds"]["total"])


def _growth(row: Row) -> float:
    return float(row["memory"]["growth_bytes"]) / 1e6


def _memory(row: Row) -> float:
    return float(row["memory"]["growth_over_model"])


def _peak(row: Row) -> float:
    return float(row["memory"]["peak_over_peak"])


def _cells(row: Row) -> list[str]:
    return [
        row["library"],
        row["model"],
        row["family"],
        "yes" if row["counts"] else "no",
        str(row.get("groups", "")),
        str(row.get("blocks", "")),
        _percent(row.get("halved parameters")),
        _percent(row.get("prunable_macs")),
        _error(row.get("halved error")),
        _error(row.get("blocks error")),
        *([f"{seconds:.3f}" for seconds in _seconds(row)] if "seconds" in row else [""] * 4),
        _peer(row),
        f"{_memory(row):.2f} x, {_growth(row):.0f} MB" if "memory" in row else "",
        f"{_peak(row):.2f} x" if "memory" in row else "",
    ]


def _seconds(row: Row) -> tuple[float, float, float, float]:
    """Trace, types, the rest, and all."""
    trace, types, total = _trace(row), _types(row), _total(row)
    return trace, types, total - trace - types, total


def _peer(row: Row) -> str:
    if "torch_pruning" in row:
        return f"{row['torch_pruning']['total']:.3f}"
    stage = row["stages"].get("torch-pruning")
    return f"cannot: {str(stage['reason'])[:90]}" if stage is not None else ""


def _frozen(row: Row) -> str:
    return "; ".join(f"{size} {reason}" for reason, size in row["frozen"][:3])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    clean = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *clean)]
