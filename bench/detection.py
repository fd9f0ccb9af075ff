"""Does every detector come out slim, of its own class? `python bench/detection.py [--threads N] [DETECTOR ...]`

Per detector of torchvision, and those of ours: a full prune at 50 % of its latency on the processor; then of the slim
detector its losses in train mode, its boxes in eval mode, its raw maps in float64 against the zeroed dense ones,
slim.pt there and back, and ONNX of the tensor part and of the whole. Beside it half of every channel group, by our
passes and by Torch-Pruning: whether what is left detects and trains, whether the heads shrank, and seconds.

Weights are random and images small: this is about structure and latency, not about accuracy. A row is saved as soon as
it is there; those that are there are not made again unless they are named. `ok` says that the limits below hold.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from bench.common import MET, load, machine, save
from bench.detection_networks import BOXES, SIDES, boxes, detect, head_channels, head_parameters, images, losses, make
from bench.detection_peers import attempt, halved
from bench.peers import count
from mdp_fx.api import PruneResult, prune
from mdp_fx.checkpoint import load_slim, save_slim
from mdp_fx.detectors.onnx import export_onnx
from mdp_fx.detectors.subject import subject_of
from mdp_fx.pipeline import analyse
from tests.pruning import reference, tensors

SHARE = 0.5
STEP = 64
LIMITS: dict[str, Any] = {"latency_over_asked": list(MET), "parity": 1e-10, "onnx": 1e-3}
"""What must hold: latency over what was asked, and the largest errors relative to the largest value of a map."""


def parity(model: nn.Module, result: PruneResult, name: str) -> float:
    """Largest error of the slim raw maps in float64 against the zeroed dense ones, over the largest value."""
    given = (images(name, 1).double(),)
    dense = subject_of(copy.deepcopy(model).double(), given)
    slim = subject_of(copy.deepcopy(result.module).double(), given)
    analysis = analyse(dense.module, dense.inputs)
    inputs = analysis.graph.example_inputs
    with torch.no_grad():
        expected = tensors(reference(analysis, result.recipe.kept, result.recipe.removed_blocks).run(*inputs))
        found = tensors(slim.module(*inputs))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


def round_trip(slim: nn.Module, result: PruneResult, name: str, folder: Path) -> bool:
    """Whether a slim.pt gives a detector of the same class that finds the same."""
    save_slim(folder / "slim.pt", slim, result.recipe, result.report.to_json())
    loaded = load_slim(folder / "slim.pt").module
    pairs = zip(detect(slim, name), detect(loaded, name), strict=True)
    return type(loaded) is type(slim) and all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)


def whole_onnx(model: nn.Module, slim: nn.Module, name: str, path: Path) -> dict[str, Any]:
    """ONNX from one image to its boxes, which counts only where torchvision's own detector can have it."""
    found = attempt(lambda: export_onnx(slim, images(name, 1), path, force=True, whole=True).max_rel_error)
    if not found["ok"]:
        dense = attempt(lambda: export_onnx(model, images(name, 1), path, force=True, whole=True).max_rel_error)
        found["dense"] = {key: dense[key] for key in dense if key != "value"}
    return found


def row(name: str, threads: int) -> dict[str, Any]:
    """All that is asked of one detector."""
    model = make(name)
    begin = time.perf_counter()
    result = prune(model, images(name, 1), latency=SHARE, threads=threads, step=STEP, name=name)
    seconds = time.perf_counter() - begin
    slim, latency = result.module, result.report.latency
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        facts: dict[str, Any] = {
            "side": SIDES[name],
            "seconds": round(seconds, 1),
            "stages": {stage: round(value, 2) for stage, value in result.report.seconds.items()},
            "dense_ms": latency.dense_ms,
            "asked_ms": latency.asked_ms,
            "predicted_ms": latency.predicted_ms,
            "measured_ms": latency.measured_ms,
            "disturbed": latency.disturbed,
            "parameters": count(slim) / count(model),
            "head_parameters": head_parameters(slim) / head_parameters(model),
            "head_channels": head_channels(slim) / head_channels(model),
            "removed_blocks": list(result.recipe.removed_blocks),
            "same_class": type(slim) is type(model),
            "parity": attempt(lambda: parity(model, result, name)),
            "round_trip": attempt(lambda: round_trip(slim, result, name, Path(folder))),
            "onnx": attempt(lambda: export_onnx(slim, images(name, 1), path).max_rel_error),
            "whole_onnx": whole_onnx(model, slim, name, path),
            "detects": attempt(lambda: boxes(slim, name)),
            "trains": attempt(lambda: losses(slim, name)),
            "halved": halved(model, name),
        }
    failed = misses(facts)
    return {"ok": not failed, "failed": failed} | facts


def misses(facts: dict[str, Any]) -> list[str]:
    """Names of what does not hold."""
    low, high = LIMITS["latency_over_asked"]
    whole = facts["whole_onnx"]
    held = {
        "latency": low <= facts["measured_ms"] / facts["asked_ms"] <= high,
        "smaller": facts["parameters"] < 1,
        "same_class": facts["same_class"],
        "parity": facts["parity"]["ok"] and facts["parity"]["value"] <= LIMITS["parity"],
        "round_trip": facts["round_trip"]["ok"] and facts["round_trip"]["value"],
        "onnx": facts["onnx"]["ok"] and facts["onnx"]["value"] <= LIMITS["onnx"],
        "whole_onnx": whole["value"] <= LIMITS["onnx"] if whole["ok"] else not whole["dense"]["ok"],
        "detects": facts["detects"]["ok"],
        "trains": facts["trains"]["ok"],
    }
    return [name for name, holds in held.items() if not holds]


def told(name: str, found: dict[str, Any]) -> str:
    """A row in one line."""
    if "reason" in found:
        return f"{name}: {found['reason']}"
    verdict = "ok" if found["ok"] else f"FAILED: {', '.join(found['failed'])}"
    over = found["measured_ms"] / found["asked_ms"]
    ways = ", ".join(f"{way} {'ok' if each['ok'] else 'fails'}" for way, each in found["halved"].items())
    return f"{name}: {verdict}; {found['seconds']} s, {over:.3f} of the latency asked; halved: {ways}"


def main() -> None:
    """Adds rows to bench/results/detection.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", metavar="DETECTOR", help="make these rows, anew where they are there")
    parser.add_argument("--threads", type=int, default=1, help="processor threads of latency and of torch")
    parser.add_argument("--name", default="detection", help="of the JSON file")
    given = parser.parse_args()
    unknown = sorted(set(given.detectors) - set(SIDES))
    if unknown:
        parser.error(f"there is no detector {unknown[0]}; there are {', '.join(SIDES)}")
    torch.set_num_threads(given.threads)
    settings = {"share": SHARE, "step": STEP, "threads": given.threads, "boxes": BOXES, "limits": LIMITS}
    before = load(given.name)
    same = before.get("settings") == settings and before.get("machine") == machine()
    rows: dict[str, Any] = before.get("detectors", {}) if same else {}
    for name in given.detectors or [name for name in SIDES if name not in rows]:
        begin = time.perf_counter()
        done = attempt(lambda name=name: row(name, given.threads))  # type: ignore[misc]
        found = done["value"] if done["ok"] else {"ok": False, "failed": ["prune"], "reason": done["reason"]}
        rows[name] = found | {"all_seconds": round(time.perf_counter() - begin, 1)}
        ordered = {name: rows[name] for name in SIDES if name in rows}
        save(given.name, {"settings": settings, "detectors": ordered}, quiet=True)
        print(told(name, rows[name]), flush=True)
    failed = [name for name in SIDES if not rows.get(name, {}).get("ok")]
    print(f"{len(SIDES) - len(failed)} of {len(SIDES)} detectors hold all limits", *failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
