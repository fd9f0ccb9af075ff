"""Trace, types, blocks and rewrite beside Torch-Pruning's build and step. `python bench/graph_speed.py`

Both halve every channel group of the same network with random weights, in turn in one process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision

from bench.common import save
from bench.peers import ours, theirs

NETWORKS = {"resnet50": 5, "densenet121": 3, "densenet201": 1}


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
            mine.append(ours(model, (x,)))
            other.append(theirs(model, (x,)))
        row: dict[str, Any] = {
            "network": name,
            "repeats": repeats,
            "mdp_fx_seconds": median(run.seconds for run in mine),
            "torch_pruning_seconds": median(run.seconds for run in other),
            "mdp_fx_params": mine[0].parameters,
            "torch_pruning_params": other[0].parameters,
        }
        row["times_faster"] = row["torch_pruning_seconds"] / row["mdp_fx_seconds"]
        rows.append(row)
        print(row, flush=True)
    save("graph_speed", {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
