"""Trace, types, blocks and rewrite beside Torch-Pruning's build and step. `python bench/graph_speed.py`

Both halve every channel group of the same network with random weights, in turn in one process.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch_pruning
import torchvision
from torch import nn

from bench.common import save
from mdp_fx.passes.base import Compilation, run_passes
from mdp_fx.passes.channel_groups import FindChannelGroups
from mdp_fx.passes.residual_blocks import FindResidualBlocks
from mdp_fx.pipeline import FRONT_END, REWRITES

NETWORKS = {"resnet50": 5, "densenet121": 3, "densenet201": 1}


def ours(model: nn.Module, x: torch.Tensor) -> tuple[float, int]:
    """Seconds of trace, types, groups, blocks and rewrite; parameters left."""
    begin = time.perf_counter()
    state = run_passes((*FRONT_END, FindChannelGroups(), FindResidualBlocks()), Compilation(model, (x,)))
    assert state.groups is not None
    kept = {group.name: list(range(max(1, group.size // 2))) for group in state.groups}
    slim = run_passes(REWRITES, replace(state, kept=kept, removed_blocks=())).slim
    assert slim is not None
    seconds = time.perf_counter() - begin
    return seconds, sum(parameter.numel() for parameter in slim.parameters())


def theirs(model: nn.Module, x: torch.Tensor) -> tuple[float, int]:
    """Seconds of Torch-Pruning's build and step; parameters left."""
    model = copy.deepcopy(model)
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            x,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=classifier,
        )
        pruner.step()
    seconds = time.perf_counter() - begin
    return seconds, sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Runs everything and writes bench/results/graph_speed.json."""
    rows: list[dict[str, Any]] = []
    for name, repeats in NETWORKS.items():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        x = torch.randn(1, 3, 224, 224)
        model(x)
        mine, other = [], []
        for _ in range(repeats):
            mine.append(ours(model, x))
            other.append(theirs(model, x))
        row = {
            "network": name,
            "repeats": repeats,
            "mdp_fx_seconds": median(seconds for seconds, _ in mine),
            "torch_pruning_seconds": median(seconds for seconds, _ in other),
            "mdp_fx_params": mine[0][1],
            "torch_pruning_params": other[0][1],
        }
        row["times_faster"] = row["torch_pruning_seconds"] / row["mdp_fx_seconds"]
        rows.append(row)
        print(row, flush=True)
    save("graph_speed", {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
