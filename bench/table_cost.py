"""What does a latency table cost, and does it survive? `python bench/table_cost.py [NETWORK] [--target T] [--kills N]`

Cold and warm seconds of the table that pruning a network needs, and how many points of the full grid (every size that
each region may have) are measured for it. Then the same is done by processes that are killed with SIGKILL at random
moments: after each, the file must be sound and hold every measurement that was reported, and the next process must go
on where it was. Results: bench/results/table_cost.json.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision

from bench.common import save
from mdp_fx.latency.network import region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import get_target
from mdp_fx.passes.build_space import reachable_sizes
from mdp_fx.passes.choices import choose
from mdp_fx.pipeline import analyse

STEP = 8
FILE = "latency.sqlite"
LOW = 2
"""Column of the lower quartile behind those of the key."""


def fill(network: str, target: str, threads: int, path: Path) -> dict[str, Any]:
    """Measures what the table lacks; a line goes to stdout after every measurement."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    analysis = analyse(model, torch.randn(1, 3, 224, 224))
    choices, device = choose(analysis, STEP), get_target(target, threads)
    grids = {(region.key, reachable_sizes(analysis, choices, region)) for region in analysis.regions}
    with LatencyTable(path) as table:
        begin = time.perf_counter()
        found = region_tables(
            analysis, choices, device, table, progress=lambda done, total, _: print(f"{done} of {total}", flush=True)
        )
        seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "measured": found.measured,
        "known": found.cached,
        "full_grid": sum(prod(len(axis) for axis in sizes) for _, sizes in grids),
        "expected_error": found.expected_error,
    }


def rows(path: Path) -> dict[tuple[str, str, str], tuple[Any, ...]]:
    """Everything a table holds, after its integrity is checked."""
    with sqlite3.connect(path) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            message = f"{path} is damaged: {verdict}"
            raise AssertionError(message)
        found = connection.execute("SELECT * FROM measurement").fetchall()
    return {row[:3]: row[3:] for row in found}


def killed(args: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """Processes that are killed at random moments, one after the other, on one table."""
    command = [sys.executable, __file__, args.network, "--target", args.target, "--threads", str(args.threads)]
    draw = random.Random(0)
    found = []
    before: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for _ in range(args.kills):
        child = subprocess.Popen([*command, "--fill", str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        wanted, reported = draw.randrange(1, 25), 0
        for line in child.stdout:
            reported = int(line.split()[0])
            if reported >= wanted:
                time.sleep(draw.uniform(0, 0.1))  # in the middle of a measurement, or of writing it
                break
        child.send_signal(signal.SIGKILL)
        rest = [int(line.split()[0]) for line in child.stdout]
        child.wait()
        reported = max([reported, *rest])
        after = rows(path)
        # A noisy point may have been measured again, and then counts where it came out faster.
        lost = [key for key, row in before.items() if key not in after or after[key][LOW] > row[LOW]]
        new = len(after) - len(before)
        found.append({"reported": reported, "stored": new, "known_before": len(before)})
        print(found[-1], flush=True)
        if lost or new < reported:
            message = f"{len(lost)} measurements lost or changed, {reported} reported, {new} stored"
            raise AssertionError(message)
        before = after
    return found


def main() -> None:
    """Cold, warm, killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--target", default="onnxruntime:cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fill is not None:
        fill(args.network, args.target, args.threads, args.fill)
        return
    with tempfile.TemporaryDirectory() as folder:
        cold = fill(args.network, args.target, args.threads, Path(folder) / FILE)
        warm = fill(args.network, args.target, args.threads, Path(folder) / FILE)
        kills = killed(args, Path(folder) / f"killed-{FILE}")
    save(
        "table_cost",
        {
            "network": args.network,
            "target": args.target,
            "threads": args.threads,
            "cold": cold,
            "warm_seconds": warm["seconds"],
            "share_of_full_grid": cold["measured"] / cold["full_grid"],
            "kills": kills,
        },
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
