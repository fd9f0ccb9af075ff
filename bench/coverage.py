"""Which networks can be pruned, how fast, and right? `python bench/coverage.py [PATTERN ...] [--resume]`

Every network of bench/zoo_networks.py whose name fits a pattern (all by default: "timm:*", "resnet*") is examined in a
process of its own, see bench/coverage_checks.py; rows go into bench/results/coverage.json and coverage.md as they come,
so that a killed run goes on with --resume. One thread per process; networks too big for two at once run alone, at last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from bench.common import load, save, write
from bench.coverage_checks import COUNTED, examine
from bench.coverage_row import WANTING
from bench.coverage_table import Row, faults, markdown
from bench.zoo_networks import Network, find, networks
from mdp_fx.files import finite
from mdp_fx.passes.base import VERIFY_VARIABLE

NAME = "coverage"
ALONE_MILLIONS = 150
"""Networks with more parameters run alone: two of them in float64 with their copies do not fit into 24 GiB."""


def one(spec: str, peer: bool) -> None:
    """Examines one network; prints what is known of it as a line of JSON after every stage, the last one is whole."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = sys.stdout

    def emit(data: Row) -> None:
        print(json.dumps(finite(data)), file=lines, flush=True)

    with contextlib.redirect_stdout(sys.stderr):
        examine(find(spec), emit, peer=peer)


def in_process(network: Network, timeout: float, peer: bool) -> Row:
    """The row of a network, whatever becomes of its process."""
    command = [sys.executable, __file__, "--one", network.spec, *([] if peer else ["--no-peer"])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop(VERIFY_VARIABLE, None)
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
        output, end = done.stdout, _end(done)
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        end = f"stopped after {timeout:.0f} s"
    whole = [line for line in output.splitlines(keepends=True) if line.endswith("\n")]
    row: Row = {
        "spec": network.spec,
        "library": network.library,
        "model": network.name,
        "family": network.family,
        "stages": {},
    }
    if whole:
        row = json.loads(whole[-1])
    for name in COUNTED:
        row["stages"].setdefault(name, {"ok": False, "reason": end, "seconds": 0.0})
    row["counts"] = all(row["stages"][name]["ok"] for name in COUNTED)
    row["wall_seconds"] = time.perf_counter() - begin
    return row


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process did not come to a stage."""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}: out of memory?"
    if done.returncode:
        return f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
    return WANTING


def examined(todo: Sequence[Network], jobs: int, timeout: float, peer: bool) -> Iterator[Row]:
    """Rows as they come, of small networks first."""
    ordered = sorted(todo, key=lambda network: network.millions)
    together = [network for network in ordered if network.millions <= ALONE_MILLIONS]
    for part, workers in ((together, jobs), (ordered[len(together) :], 1)):
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(in_process, network, timeout, peer) for network in part]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def store(rows: dict[str, Row]) -> None:
    """Writes the JSON and the table, in the order of the list."""
    listed = [rows[network.spec] for network in networks() if network.spec in rows]
    peers = {name: metadata.version(name) for name in ("torch-pruning", "transformers")}
    save(NAME, {"threads": 1, "peers": peers, "rows": listed}, quiet=True)
    write(f"{NAME}.md", markdown(listed, len(networks())))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Which networks can be pruned, how fast, and right?")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help='of names, such as "timm:*" or "resnet18"')
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time (default: 2)")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--resume", action="store_true", help="skip networks that are in the results")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one network (default: 3600)")
    parser.add_argument("--one", metavar="SPEC", help="examine one network in this process and print JSON lines")
    return parser.parse_args()


def chosen(patterns: Sequence[str]) -> list[Network]:
    """Networks whose spec or name fits one of the patterns; all where there is none."""
    found = [
        network
        for network in networks()
        if not patterns or any(fnmatchcase(name, p) for name in (network.spec, network.name) for p in patterns)
    ]
    if not found:
        sys.exit(f"no network fits {' '.join(patterns)}")
    return found


def main() -> None:
    """Examines the chosen networks and puts their rows into bench/results/coverage.json and coverage.md."""
    asked = arguments()
    if asked.one:
        one(asked.one, not asked.no_peer)
        return
    before: list[dict[str, Any]] = load(NAME).get("rows", [])
    rows = {row["spec"]: row for row in before}
    todo = [network for network in chosen(asked.patterns) if not (asked.resume and network.spec in rows)]
    if not asked.resume:
        for network in todo:
            rows.pop(network.spec, None)
    for row in examined(todo, asked.jobs, asked.timeout, not asked.no_peer):
        rows[row["spec"]] = row
        store(rows)
        verdict = "counts" if row["counts"] else "MISSES " + "; ".join(faults(row))
        print(f"{row['spec']} {row['wall_seconds']:.0f} s {verdict}", flush=True)


if __name__ == "__main__":
    main()
