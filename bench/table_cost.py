"""What does a latency table cost, and does it survive? `python bench/table_cost.py [NETWORK] [--target T] [--kills N]`

Cold and warm seconds of the table that pruning a network needs, and how many points of the full grid (every size that
each region may have) are measured for it. Then the same is done by processes that are killed with SIGKILL at random
moments: after each, the file must be sound and hold every measurement that was reported, and the next process must go
on where it was. Results: bench/results/table_cost.json.
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision

from bench.common import full_grid, save
from mdp_fx.latency.network import region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import get_target
from mdp_fx.passes.choices import choose
from mdp_fx.pipeline import analyse

STEP = 8
FILE = "latency.sqlite"
START_S = 10.0
"""About what a process takes before its first measurement."""


def fill(network: str, target: str, threads: int, path: Path) -> dict[str, Any]:
    """Measures what the table lacks; a line goes to stdout after every measurement."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    analysis = analyse(model, torch.randn(1, 3, 224, 224), step=STEP)
    choices, device = choose(analysis), get_target(target, threads)
    with LatencyTable(path) as table:
        begin = time.perf_counter()
        found = region_tables(analysis, choices, device, table, progress=tell)
        seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "measured": found.measured,
        "known": found.cached,
        "full_grid": full_grid(analysis, choices),
        "expected_error": found.expected_error,
    }


def tell(done: int, total: int, text: str) -> None:
    """A line for every new measurement, not for those made again."""
    if not text.startswith("again"):
        print(f"{done} of {total}", flush=True)


def rows(path: Path) -> dict[tuple[str, str, str], float]:
    """Everything a table holds, after its integrity is checked."""
    with sqlite3.connect(path) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            message = f"{path} is damaged: {verdict}"
            raise AssertionError(message)
        found = connection.execute("SELECT fingerprint, region, sizes, low_s FROM measurement").fetchall()
    return {row[:3]: row[3] for row in found}


def killed(args: argparse.Namespace, path: Path, cold_s: float) -> list[dict[str, Any]]:
    """Processes that are killed at random moments, one after the other, on one table; then one that may finish."""
    command = [sys.executable, __file__, args.network, "--target", args.target, "--threads", str(args.threads)]
    draw = random.Random(0)
    found = []
    before: dict[tuple[str, str, str], float] = {}
    for number in range(args.kills + 1):
        child = subprocess.Popen([*command, "--fill", str(path)], stdout=subprocess.PIPE, text=True)
        last = number == args.kills
        after_s = None if last else draw.uniform(0.0, START_S + 2 * cold_s / args.kills)
        timer = threading.Timer(after_s, child.send_signal, [signal.SIGKILL]) if after_s is not None else None
        if timer is not None:
            timer.start()
        assert child.stdout is not None
        reports = [line.split() for line in child.stdout if line.endswith("\n")]
        child.wait()
        if timer is not None:
            timer.cancel()
        reported = max((int(done) for done, *_ in reports), default=0)
        after = rows(path) if path.exists() else {}
        lost = [key for key in before if key not in after]
        new = len(after) - len(before)
        found.append({"after_s": after_s, "reported": reported, "stored": new, "known": len(before)})
        print(found[-1], flush=True)
        if lost:
            message = f"{len(lost)} measurements lost"
            raise AssertionError(message)
        if new < reported:
            message = f"{reported} reported, {new} stored"
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
        kills = killed(args, Path(folder) / f"killed-{FILE}", cold["seconds"])
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
    main()
