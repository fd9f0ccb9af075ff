"""Does the slim network take the time that was asked? `python bench/speedup.py [NETWORK ...]`

Per network and budget: latency asked, predicted and measured (dense and slim in turn), parity of the slim network with
the zeroed dense one in float64 and float32; for resnet50 seconds with a cold and a warm table, and peak memory.
One CPU thread, so that other processes of a shared machine do not decide the result.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision
from torch import nn

from bench import readme_tables
from bench.common import MET, TORCHVISION, load, save
from bench.resnet_cifar import resnet56
from mdp_fx.api import bench, prune
from mdp_fx.graph.verify import Reference
from mdp_fx.passes.drop_blocks import chosen_blocks
from mdp_fx.passes.slice_channels import unit_masks
from mdp_fx.pipeline import analyse, rewrite
from mdp_fx.recipe import Recipe

BUDGETS = (0.8, 0.6, 0.4, 0.2)
NETWORKS = (*TORCHVISION, "resnet56_cifar")
THREADS = 1


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights (the CIFAR one with trained ones), and its input."""
    generator = torch.Generator().manual_seed(0)
    if name == "resnet56_cifar":
        return resnet56(), torch.randn(1, 3, 32, 32, generator=generator)
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224, generator=generator)


def parity(model: nn.Module, x: torch.Tensor, recipe: Recipe, dtype: torch.dtype) -> float:
    """Largest error of the slim network against the zeroed dense one, over the largest output."""
    model = copy.deepcopy(model).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Statistics of a trained network, so that no branch is zero by its initialisation.
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    for parameter in model.parameters():
        if not parameter.any():  # The last layer of a vision transformer starts at zero.
            nn.init.normal_(parameter, std=0.02, generator=generator)
    x = torch.cat([x, x + 0.5]).to(dtype)
    analysis = analyse(model, x)
    masks = unit_masks(analysis.groups, recipe.kept, analysis.blocks.emptied(recipe.removed_blocks))
    chosen = chosen_blocks(analysis.blocks, recipe.removed_blocks)
    flows = {block.join: block.kept for block in chosen if block.kept is not None}
    with torch.no_grad():
        expected = Reference(analysis.graph, masks, flows).run(x)
        found = rewrite(analysis, recipe.kept, recipe.removed_blocks)(x)
        dense = model(x)
    if not expected.abs().max() > 0 or torch.equal(expected, dense):
        msg = "the zeroed reference is zero or unchanged: it proves nothing"
        raise AssertionError(msg)
    return float((found - expected).abs().max() / expected.abs().max())


def run(name: str, share: float) -> dict[str, Any]:
    """One network at one budget."""
    model, x = make(name)
    begin = time.perf_counter()
    result = prune(model, x, latency=share, threads=THREADS)
    seconds = time.perf_counter() - begin
    facts = result.report.latency
    assert facts.asked_ms is not None
    assert facts.predicted_ms is not None
    again = bench({"dense": model, "slim": result.module}, x, threads=THREADS)
    return {
        "network": name,
        "device": result.report.device,
        "asked_share": share,
        "dense_ms": facts.dense_ms,
        "asked_ms": facts.asked_ms,
        "predicted_ms": facts.predicted_ms,
        "measured_ms": facts.measured_ms,
        "measured_over_asked": facts.measured_ms / facts.asked_ms,
        "predicted_over_measured": facts.predicted_ms / facts.measured_ms,
        "remeasured_share": again[1].ratio,
        "remeasured_over_asked": again[1].ratio / share,
        "calibration": facts.calibration,
        "rounds": facts.rounds,
        "regions_measured": facts.regions_measured,
        "params_share": result.report.params.share,
        "macs_share": result.report.macs.share,
        "blocks_removed": len(result.recipe.removed_blocks),
        "gap": result.report.solver["gap"],
        "seconds": seconds,
        "parity_float64": parity(model, x, result.recipe, torch.float64),
        "parity_float32": parity(model, x, result.recipe, torch.float32),
    }


def command_line(folder: str) -> dict[str, Any]:
    """`mdp-fx prune torchvision:resnet50` from a cold and a warm table: wall seconds and peak memory."""
    found: dict[str, Any] = {}
    command = [sys.executable, "-m", "mdp_fx", "prune", "torchvision:resnet50", "--threads", str(THREADS)]
    command += ["--json", "--force", "-o", f"{folder}/slim.pt"]
    for state in ("cold", "warm"):
        begin = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[f"{state}_seconds"] = time.perf_counter() - begin
        found[f"{state}_regions_measured"] = json.loads(done.stdout)["latency"]["regions_measured"]
        found["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Extremes of the ratios, what missed the limits, and the worst parity."""
    found: dict[str, Any] = {
        name: [min(row[name] for row in rows), max(row[name] for row in rows)]
        for name in ("measured_over_asked", "predicted_over_measured", "remeasured_over_asked")
    }
    found["limits"] = MET
    found["missed"] = [
        (row["network"], row["asked_share"]) for row in rows if not MET[0] <= row["remeasured_over_asked"] <= MET[1]
    ]
    for name in ("parity_float64", "parity_float32"):
        found[f"worst_{name}"] = max(row[name] for row in rows)
    return found


def main() -> None:
    """Runs the named networks, all by default, and puts their rows into bench/results/speedup.json."""
    names = sys.argv[1:] or list(NETWORKS)
    before = load("speedup")
    rows = {(row["network"], row["asked_share"]): row for row in before.get("rows", ())}
    timed = before.get("prune_resnet50", {})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MDP_FX_CACHE"] = folder
        for name in names:
            if name == "resnet50":
                timed = command_line(folder)
                print(timed, flush=True)
            for share in BUDGETS:
                rows[name, share] = run(name, share)
                print(json.dumps(rows[name, share]), flush=True)
                ordered = [rows[key] for key in sorted(rows, key=lambda key: (NETWORKS.index(key[0]), -key[1]))]
                save(
                    "speedup",
                    {"threads": THREADS, "prune_resnet50": timed, "summary": summary(ordered), "rows": ordered},
                    quiet=True,
                )
    readme_tables.main()


if __name__ == "__main__":
    main()
