"""Does the sum of measured parts predict a network? `python bench/latency.py [NETWORK ...] [--target T] [--batch N]`

Per network: the latency table that pruning needs, and the whole networks that calibrate, measured cold; then slim
variants, random in their sizes and their removed blocks, each predicted from the table alone (none of its sizes is
measured for it) and timed in turn with the dense network. The networks that calibrate, dense and slim, are none of the
variants. Beside it stands the prediction from the regions measured at exactly the sizes of the variant (--exact): the
difference is what reading the table costs.
Rows go into bench/results/latency.json as they come, by target, threads, batch and network.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision

from bench import readme_tables
from bench.common import TORCHVISION, full_grid, load, save
from mdp_fx.latency.fingerprints import Fingerprint
from mdp_fx.latency.measuring import compare
from mdp_fx.latency.network import region_tables
from mdp_fx.latency.tables import LatencyTable
from mdp_fx.latency.targets import get_target
from mdp_fx.passes.base import silent
from mdp_fx.passes.build_space import build_space, unit_order
from mdp_fx.passes.choices import choose
from mdp_fx.passes.importance import score
from mdp_fx.passes.search_space import SearchSpace, Selection, normalise, violations
from mdp_fx.pipeline import analyse, rewrite
from mdp_fx.whole_network import dense_runner, exact_seconds, measure_network

STEP = 8
MEAN_ERROR, WORST_ERROR = 0.03, 0.08


def random_selection(space: SearchSpace, seed: int) -> Selection:
    """Some structure of the space: sizes around a random share of the dense ones, some blocks gone."""
    draw = random.Random(seed)
    share = draw.uniform(0.25, 0.95)
    while True:
        gone = {block.name for block in space.blocks if draw.random() < 0.5 * (1 - share)}
        sizes = {}
        for dimension in space.dimensions:
            wanted = dimension.dense * min(1.0, max(0.1, draw.gauss(share, 0.15)))
            options = [size for size in space.options(dimension.name) if size]
            sizes[dimension.name] = min(options, key=lambda size: abs(size - wanted))
        selection = normalise(space, Selection(sizes, tuple(gone)))
        if not violations(space, selection):
            return selection


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network on one target: its table, and its variants."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    inputs = (torch.randn(args.batch, 3, 224, 224),)
    target = get_target(args.target, args.threads)
    analysis = analyse(model, inputs, step=STEP)
    choices = choose(analysis)
    scores = score(analysis.graph, analysis.groups, "l2", model=model)
    order = unit_order(scores, analysis.groups)
    with (
        dense_runner(analysis, target, inputs) as dense,
        tempfile.TemporaryDirectory() as folder,
        LatencyTable(Path(folder) / "table.sqlite") as table,
    ):
        begin = time.perf_counter()
        network = measure_network(analysis, choices, target, table, inputs, dense, stage=silent)
        cold_s = time.perf_counter() - begin
        begin = time.perf_counter()
        tables = region_tables(analysis, choices, target, table)
        warm_s = time.perf_counter() - begin
        seconds = {region: (points, 1e6 * values) for region, (points, values) in tables.seconds.items()}
        space = build_space(analysis, choices, scores, seconds)
        dense_s, calibration = network.whole_s, network.calibration
        row: dict[str, Any] = {
            "network": name,
            "target": args.target,
            "device": target.fingerprint(),
            "threads": target.threads,
            "batch": args.batch,
            "dense_ms": 1e3 * dense_s,
            "dense_sum_ms": 1e3 * network.sum_s,
            "calibrating": [
                {"ms": 1e3 * seconds, "sum_ms": 1e3 * sum(parts)} for parts, seconds in network.calibrating
            ],
            "calibration": calibration.factor,
            "calibration_per_region_us": 1e6 * calibration.per_region_s,
            "cold_s": cold_s,
            "warm_s": warm_s,
            "points": network.tables.measured,
            "full_grid": full_grid(analysis, choices),
            "expected_error": tables.expected_error,
            "variants": [],
        }
        for seed in range(args.variants):
            selection = random_selection(space, seed)
            kept = {group: sorted(map(int, order[group][:size])) for group, size in selection.sizes.items()}
            runner = target.prepare(rewrite(analysis, kept, selection.removed_blocks), inputs)
            timings = compare({"dense": dense, "slim": runner}, min_time_s=0.3, max_time_s=6, error=0.01)
            runner.close()
            measured = timings["slim"].median_s / timings["dense"].median_s * dense_s
            gone = set(selection.removed_blocks)
            terms = [term for term in space.costs["latency"].terms if term.block not in gone]
            parts = [1e-6 * term.cost(selection.sizes) for term in terms]
            predicted = calibration.whole(parts)
            variant = {
                "seed": seed,
                "removed_blocks": len(selection.removed_blocks),
                "regions": len(parts),
                "sum_ms": 1e3 * sum(parts),
                "predicted_ms": 1e3 * predicted,
                "measured_ms": 1e3 * measured,
                "spread": timings["slim"].spread,
                "disturbed": timings["slim"].disturbed,
                "error": predicted / measured - 1,
            }
            if args.exact:
                exact = exact_seconds(analysis, selection, target, table).values()
                variant["exact_sum_ms"] = 1e3 * sum(exact)
                variant["exact_error"] = calibration.whole(exact) / measured - 1
            row["variants"].append(variant)
            print(name, {key: round(value, 4) for key, value in variant.items()}, flush=True)
    errors = [abs(variant["error"]) for variant in row["variants"]]
    row |= {"mean_error": fmean(errors), "worst_error": max(errors)}
    if args.exact:
        row["mean_exact_error"] = fmean(abs(variant["exact_error"]) for variant in row["variants"])
    return row


def main() -> None:
    """Runs the named networks, all by default, and puts their rows into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=TORCHVISION)
    parser.add_argument("--target", default="onnxruntime:cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--variants", type=int, default=20)
    parser.add_argument("--exact", action="store_true", help="also measure the regions of every variant")
    args = parser.parse_args()
    for name in args.networks:
        row = run(name, args)
        print({key: value for key, value in row.items() if key != "variants"}, flush=True)
        # A row of another runtime, or of another way of measuring, says nothing of this one.
        rows = {
            _key(known): known
            for known in load("latency").get("rows", ())
            if not Fingerprint.parse(known["device"]).is_stale
        }
        rows[_key(row)] = row
        ordered = [rows[key] for key in sorted(rows, key=lambda key: (*key[:3], TORCHVISION.index(key[3]), key[4]))]
        missed = [_key(row) for row in ordered if row["mean_error"] > MEAN_ERROR or row["worst_error"] > WORST_ERROR]
        limits = {"mean_error": MEAN_ERROR, "worst_error": WORST_ERROR}
        save("latency", {"limits": limits, "missed": missed, "rows": ordered}, quiet=True)
    readme_tables.main()


def _key(row: dict[str, Any]) -> tuple[str, int, int, str, str]:
    return (row["target"], row["threads"], row["batch"], row["network"], row["device"])


if __name__ == "__main__":
    main()
