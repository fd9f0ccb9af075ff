"""Is whatever is pruned pruned right? `python bench/random_networks.py [--seeds 10000] [--first 0] [--jobs 2]`

Every seed is a random network of tests/graph/random_networks.py, pruned at random: at most half, a quarter or most of
the units of every group, each its own share, and half of the removable blocks. The sliced network must equal the zeroed
dense one in float64, on another batch than the traced one. Seeds that fail, crash or hang are listed; each makes its
network again by itself.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from bench.common import save
from tests.graph.random_networks import random_network
from tests.pruning import parity_error, randomise

LIMIT = 1e-9
SHARES = (0.5, 0.25, 0.8)
"""Shares of the units that are kept at most, in turn."""

SECONDS = 60
"""After so long a seed hangs."""


@dataclass(frozen=True)
class Result:
    """One seed.

    Attributes:
        error: difference to the zeroed network, None where there was none to take.
        steps: what the network is made of.
        fault: what went wrong, None where nothing did.
    """

    seed: int
    error: float | None
    steps: tuple[str, ...]
    fault: str | None


def examine(seed: int) -> Result:
    """Makes, prunes and compares one network."""
    network = random_network(seed)
    signal.alarm(SECONDS)
    try:
        model, share = randomise(network, seed), SHARES[seed % len(SHARES)]
        error = parity_error(model, network.inputs(seed), seed, share, fixed_batch=network.fixes_batch)
    except Exception as failure:  # noqa: BLE001 - whatever a seed finds is a result
        return Result(seed, None, network.log, f"{type(failure).__name__}: {failure}"[:300])
    finally:
        signal.alarm(0)
    return Result(seed, error, network.log, None if error <= LIMIT else f"error {error:.2g}")


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"no result after {SECONDS} s")


def _start() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _hang)


def main() -> None:
    """Examines the seeds and writes bench/results/random_networks.json; exits with 1 if one fails."""
    parser = argparse.ArgumentParser(description="Is whatever is pruned pruned right?")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    begin = time.perf_counter()
    kinds: Counter[str] = Counter()
    failures: list[Result] = []
    worst = 0.0
    with ProcessPoolExecutor(asked.jobs, initializer=_start) as pool:
        seeds = range(asked.first, asked.first + asked.seeds)
        for done, result in enumerate(pool.map(examine, seeds, chunksize=25), 1):
            names = {step.partition(" = ")[2].partition("(")[0] for step in result.steps[:-1]}
            kinds.update({name.rstrip("0123456789") for name in names})
            worst = max(worst, result.error or 0.0)
            if result.fault is not None:
                failures.append(result)
                print(f"seed {result.seed}: {result.fault}", flush=True)
            if done % 1000 == 0:
                print(f"{done} seeds, {len(failures)} failures, worst error {worst:.2g}", flush=True)
    save(
        "random_networks",
        {
            "first_seed": asked.first,
            "seeds": asked.seeds,
            "limit": LIMIT,
            "failures": [{"seed": r.seed, "fault": r.fault, "steps": r.steps} for r in failures],
            "worst_error": worst,
            "seconds": time.perf_counter() - begin,
            "networks_with_step": dict(sorted(kinds.items())),
        },
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
