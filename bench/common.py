"""What the benchmarks share: where results go, and what machine they were made on."""

from __future__ import annotations

import json
import os
import platform
from itertools import product
from pathlib import Path
from typing import Any

import torch

from mdp_fx.files import atomic_write
from mdp_fx.latency.cpu import cpu_model
from mdp_fx.passes.build_space import reachable_sizes, thinned
from mdp_fx.passes.choices import Analysis, Choices
from mdp_fx.run_report import versions

RESULTS = Path(__file__).parent / "results"
TORCHVISION = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "regnet_y_400mf",
    "vgg16_bn",
    "densenet121",
    "vit_b_16",
    "swin_t",
)
"""Networks that latency is judged by."""
MET = (0.95, 1.02)
"""Measured over asked latency that counts as met."""
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def full_grid(analysis: Analysis, choices: Choices) -> int:
    """How many points there are of all regions: equal ones once, at the sizes that a search reads."""
    grids = {(region.key, thinned(reachable_sizes(analysis, choices, region))) for region in analysis.regions}
    return len({(key, point) for key, axes in grids for point in product(*axes)})


def machine() -> dict[str, Any]:
    """The machine and the library versions."""
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions()}


def training_precision(device: str = "auto") -> str:
    """bfloat16, or float32 on a processor that lacks instructions for it: it trains ten times slower in the other."""
    if device != "cpu" and torch.cuda.is_available():
        return "bfloat16"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"


def write(file_name: str, text: str) -> None:
    """Writes a file in bench/results, as a whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    atomic_write(RESULTS / file_name, lambda file: file.write(text.encode()))


def save(name: str, data: dict[str, Any], *, quiet: bool = False) -> None:
    """Writes bench/results/NAME.json."""
    write(f"{name}.json", json.dumps({"machine": machine()} | data, indent=1) + "\n")
    if not quiet:
        print(f"wrote {RESULTS / f'{name}.json'}")


def load(name: str) -> dict[str, Any]:
    """What bench/results/NAME.json holds; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
