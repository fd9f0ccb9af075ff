"""README.md's tables of results and what is counted in them.

`python bench/readme_tables.py` writes them anew from bench/results.
Each stands between the comments "NAME:begin" and "NAME:end" for the file NAME.json it is made of.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.common import MET, load
from mdp_fx.files import atomic_write
from mdp_fx.whole_network import MIXED_SHARES

README = Path(__file__).parent.parent / "README.md"
SETTINGS = {
    ("onnxruntime:cpu", 1, 1): "ONNX Runtime",
    ("onnxruntime:cpu", 16, 1): "batch 16",
    ("onnxruntime:cpu", 1, 2): "two threads",
    ("torch:cpu", 1, 1): "PyTorch",
    ("torch:cpu", 16, 1): "PyTorch, batch 16",
    ("torch:cpu", 1, 2): "PyTorch, two threads",
}
"""Target, batch and threads of the predictions, in the order of their columns."""
METHODS = {
    "mdp": "mdp",
    "mgp": "mgp",
    "mdlm": "mdlm",
    "halp": "halp",
    "uniform": "uniform",
    "random": "mdp, random importance",
    "group-l2": "Torch-Pruning, group-l2",
    "isomorphic": "Torch-Pruning, isomorphic",
    "taylor": "Torch-Pruning, taylor",
}


def speedup(results: dict[str, Any]) -> str:
    """Networks by budgets: measured latency, and what it is over the asked one, timed anew; then who misses it."""
    rows = {(row["network"], row["asked_share"]): row for row in results["rows"]}
    shares = sorted({share for _, share in rows}, reverse=True)
    lines = []
    for name in dict.fromkeys(name for name, _ in rows):
        own = [rows.get((name, share)) for share in shares]
        dense = next(row for row in own if row)["dense_ms"]
        cells = [f"{row['measured_ms']:.2f} ms ({row['remeasured_over_asked']:.3f})" if row else "" for row in own]
        lines.append([name, f"{dense:.1f} ms", *cells])
    table = _table(["network", "dense", *(f"{100 * share:.0f} %" for share in shares)], lines)
    outside = [
        f"{row['network']} at {100 * row['asked_share']:.0f} % ({row['remeasured_over_asked']:.3f})"
        for row in results["rows"]
        if _side(row["remeasured_over_asked"])
    ]
    within = f"{len(rows) - len(outside)} of {len(rows)} are within {MET[0]} and {MET[1]}"
    return f"{table}\n\n{within}" + f"; outside: {', '.join(outside)}" * bool(outside) + "."


def latency(results: dict[str, Any]) -> str:
    """Networks by settings: mean and worst error of the prediction in %.

    Bold misses a limit, ° is older: fewer networks calibrate than do now. Where rows of several processors are known,
    that of the last run counts.
    """
    cells: dict[tuple[str, Any], str] = {}
    limits = results["limits"]
    networks = dict.fromkeys(row["network"] for row in results["rows"])
    for row in sorted(results["rows"], key=lambda row: results["machine"]["cpu"] in row["device"]):
        text = f"{100 * row['mean_error']:.1f}, {100 * row['worst_error']:.1f}"
        if any(row[name] > limit for name, limit in limits.items()):
            text = f"**{text}**"
        if len(row["calibrating"]) < len(MIXED_SHARES) + 2:
            text += " °"
        cells[row["network"], (row["target"], row["batch"], row["threads"])] = text
    settings = [setting for setting in SETTINGS if any(known == setting for _, known in cells)]
    lines = [[name, *(cells.get((name, setting), "") for setting in settings)] for name in networks]
    table = _table(["error, mean and worst (%)", *(SETTINGS[setting] for setting in settings)], lines)
    missed = sum("**" in text for text in cells.values())
    asked = f"{100 * limits['mean_error']:.0f} % in the mean and {100 * limits['worst_error']:.0f} % at worst"
    within = f"{len(cells) - missed} of {len(cells)} cells are within the limits, {asked}"
    return f"{table}\n\n{within}; **bold** misses one."


def accuracy(results: dict[str, Any]) -> str:
    """Methods by networks and budgets: accuracy after fine-tuning, see `_accuracy`."""
    rows = results["rows"]
    columns = sorted({(row["network"], row["budget"]) for row in rows}, key=lambda column: (column[0], -column[1]))
    lines = [
        [
            shown,
            *(
                _accuracy([row for row in rows if (row["network"], row["budget"], row["method"]) == (*column, method)])
                for column in columns
            ),
        ]
        for method, shown in METHODS.items()
    ]
    return _table(["method", *(f"{network}, {100 * budget:.0f} %" for network, budget in columns)], lines)


def _accuracy(rows: Sequence[dict[str, Any]]) -> str:
    """What the seeds of a method say: mean and spread in %, and its share of the latency where the budget is not met.

    Where one is above and one below the budget, each for itself.
    """
    found = [row for row in rows if "after" in row]
    if not rows:
        return "not run"
    single = len(found or rows) == 1
    if not found:
        return "cannot" + " (one seed)" * single

    def shown(some: Sequence[dict[str, Any]], spread: str) -> str:
        share = fmean(row["latency"]["share"] for row in some)
        at = "" if _side(share / some[0]["budget"]) == 0 else f" at {100 * share:.0f} %"
        return f"{100 * fmean(row['after'] for row in some):.1f}{spread}{at}"

    if {-1, 1} <= {_side(row["latency"]["share"] / row["budget"]) for row in found}:
        return ", ".join(shown([row], "") for row in found)
    after = [row["after"] for row in found]
    return shown(found, " (one seed)" if single else f" ({100 * (max(after) - min(after)):.1f})")


def _side(ratio: float) -> int:
    return (ratio > MET[1]) - (ratio < MET[0])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("| --- ", "|---").replace("|--- |", "|---|")


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"speedup": speedup, "latency": latency, "accuracy": accuracy}


def filled(text: str) -> str:
    """The README with its tables as the results are now.

    Raises:
        ValueError: a table has no place there, or several.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
        before, *between, after = re.split(f"{begin}|{end}", text)
        if len(between) != 1 or text != before + begin + between[0] + end + after:
            msg = f"README.md needs one {begin.strip()} with {end.strip()} after it"
            raise ValueError(msg)
        text = before + begin + table(load(name)) + end + after
    return text


def main() -> None:
    """Fills the README."""
    text = filled(README.read_text(encoding="utf-8"))
    atomic_write(README, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
