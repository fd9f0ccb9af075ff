"""Seconds and memory against the granularity of the options; every measurement in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from bench.solver_runs import SOLVERS, THREADS, timed_bound, warm_up
from mdp_fx.errors import MdpFxError
from mdp_fx.passes import minlp, space_json
from mdp_fx.passes.search_space import SearchSpace, evaluate

GAP = 1e-3

SOLVER_NAMES = ("exact", "lagrangian", "mindtpy")

SPLITS = (1, 2, 4, 8)

GRACE_S = 120.0
"""After so long past its time limit a solver is stopped."""


def split(data: dict[str, Any], parts: int) -> dict[str, Any]:
    """A published MINLP (as JSON) with every option in `parts`; importance and latency linear between the old ones.

    Option 0 is the lower end of the first one: K options become parts * K, a table parts * parts times as large.
    """

    def finer(values: np.ndarray, axis: int) -> np.ndarray:
        old = np.arange(values.shape[axis])
        new = np.arange((len(old) - 1) * parts + 1) / parts
        return np.apply_along_axis(lambda line: np.interp(new, old, line), axis, values)

    def layer(old: dict[str, Any]) -> dict[str, Any]:
        latency = np.array(old["latency_us"], dtype=float)
        for axis in range(latency.ndim):
            latency = finer(latency, axis)
        importance = finer(np.array(old["importance"], dtype=float), 0)
        return {**old, "importance": importance.tolist(), "latency_us": latency.tolist()}

    dims = {name: {**dim, "options": parts * dim["options"]} for name, dim in data["dims"].items()}
    return {**data, "dims": dims, "layers": [layer(old) for old in data["layers"]]}


def measure(path: Path, solver: str, parts: int, share: float, time_limit: float) -> dict[str, Any]:
    """Seconds, peak memory and gap of one solve in a fresh process."""
    command = [sys.executable, __file__, str(path), solver, str(parts), str(share), str(time_limit)]
    row: dict[str, Any] = {"network": path.stem.split("_")[0], "share": share, "parts": parts, "solver": solver}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=time_limit + GRACE_S, check=False)
    except subprocess.TimeoutExpired:
        return row | {"status": "stopped", "seconds": time_limit + GRACE_S}
    if done.returncode != 0:
        return row | {"status": "failed", "fault": done.stderr.strip().splitlines()[-1][:300]}
    return row | json.loads(done.stdout.splitlines()[-1])


def one(path: Path, solver: str, parts: int, share: float, time_limit: float) -> dict[str, Any]:
    """What the fresh process does."""
    space = space_json.from_minlp(split(json.loads(path.read_text(encoding="utf-8")), parts))
    budgets = {"latency": share * evaluate(space, space.dense())["latency"]}
    options = {"solver": SOLVERS[solver][0], "gap": GAP, "threads": THREADS}
    warm_up(solver)
    before = peak_bytes()
    beside = [0.0]
    begin = time.perf_counter()
    try:
        with timed_bound(beside):
            _, proof = minlp.solve(space, budgets, time_limit=time_limit, **options)
        found = {"status": proof.status, "objective": proof.objective, "bound": proof.bound, "gap": proof.gap}
    except MdpFxError as error:
        found = {"status": "nothing found", "fault": str(error)}
    seconds = time.perf_counter() - begin - beside[0]
    return found | {"seconds": seconds, "peak_bytes": peak_bytes(), "peak_bytes_before": before, "cells": cells(space)}


def peak_bytes() -> int:
    """Peak resident memory of this process, imports included; GLPK and the like run in others."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux counts a process's ru_maxrss from that of the process that started it.
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cells(space: SearchSpace) -> int:
    """Entries of all latency tables: what the products multiply to."""
    return sum(term.table.size for term in space.costs["latency"].terms)


def plot(rows: list[dict[str, Any]]) -> str:
    """Seconds against granularity as an SVG, both axes logarithmic; open circles did not prove the gap."""
    rows = [row for row in rows if "seconds" in row]
    names = sorted({(row["network"], row["solver"]) for row in rows})
    colours = ("#1b6ca8", "#c0392b", "#27824a", "#8e5ea2", "#b9770e", "#444444")
    left, top, width, height = 70, 30, 520, 330
    seconds = [row["seconds"] for row in rows]
    low, high = np.floor(np.log10(min(seconds))), np.ceil(np.log10(max(seconds)) + 1e-9)
    widest = max(np.log2(max(row["parts"] for row in rows)), 1.0)

    def x(parts: int) -> float:
        return left + width * float(np.log2(parts)) / widest

    def y(value: float) -> float:
        return top + height * float((high - np.log10(value)) / (high - low))

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{words}</text>'

    drawn = [text(left + width / 2, top + height + 45, "parts that each option is split in")]
    drawn.append(text(left, 18, f"seconds to a gap of {GAP:.1%} (open: not proven)", "start"))
    for power in range(int(low), int(high) + 1):
        drawn.append(text(left - 8, y(10.0**power) + 4, f"{10.0**power:g}", "end"))
        drawn.append(f'<path d="M{left} {y(10.0**power):.1f}h{width}" stroke="#ddd"/>')
    drawn += [text(x(parts), top + height + 22, str(parts)) for parts in sorted({row["parts"] for row in rows})]
    for i, (network, solver) in enumerate(names):
        colour = colours[i % len(colours)]
        line = sorted((r for r in rows if (r["network"], r["solver"]) == (network, solver)), key=lambda r: r["parts"])
        points = " ".join(f"{x(r['parts']):.1f},{y(r['seconds']):.1f}" for r in line)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for r in line:
            fill = colour if r["status"] in ("optimal", "gap reached") else "white"
            at = f'cx="{x(r["parts"]):.1f}" cy="{y(r["seconds"]):.1f}"'
            drawn.append(f'<circle {at} r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<path d="M{left + width + 20} {top + 20 * i + 8}h24" stroke="{colour}" stroke-width="2"/>')
        drawn.append(text(left + width + 50, top + 20 * i + 12, f"{solver}, {network}", "start"))
    style = 'font-family="sans-serif" font-size="13"'
    size = f'width="{left + width + 220}" height="{top + height + 60}"'
    shown = "\n".join(drawn)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="white"/>\n{shown}\n</svg>\n'


if __name__ == "__main__":
    file, back_end, factor, part, limit = sys.argv[1:]
    print(json.dumps(one(Path(file), back_end, int(factor), float(part), float(limit))))
