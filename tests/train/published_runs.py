"""Runs published experiments for some iterations: `torchrun -m tests.train.published_runs IMAGENET FOLDER NAME ...`.

One start for all of them, in as many processes as torchrun makes; each leaves FOLDER/NAME.json and FOLDER/NAME.pt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from mdp_fx import training
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.config_file import read_config

CONFIGS = Path(__file__).parents[2] / "configs" / "imagenet"
WHOLE = "resnet50-mdp-70"
"""The one that is run with ResNet-50 itself."""


def resnet26() -> nn.Module:
    """ResNet-50 with two blocks in each stage: all of its geometries, a fraction of its time."""
    return ResNet(Bottleneck, [2, 2, 2, 2], num_classes=1000)


def settings(name: str, imagenet: Path, folder: Path) -> TrainConfig:
    """An experiment with random weights, few images and iterations; the rest is as it is committed."""
    model = "torchvision:resnet50" if name == WHOLE else "tests.train.published_runs:resnet26"
    overrides = [
        *(f"model={model}", "arch=null", f"output={folder / name}.pt", "device=cpu", "precision=null"),
        *(f"data.train=imagefolder:{imagenet / 'train'}", f"data.val=imagefolder:{imagenet / 'val'}"),
        *("data.batch=2", "data.workers=0", "tune.epochs=1", "tune.warmup=0"),
        *("prune.gather=1", "log.every=1", "log.tensorboard=false"),
    ]
    if name != WHOLE:
        # Small images are quick; for them the Titan V's table is scaled, and what is never pruned weighs more.
        overrides += ["data.input=3x32x32", "prune.fill=analytic", "prune.latency=60%"]
    if "-mdp-" not in name:
        overrides += ["prune.steps=2", "prune.every=1"]
    return read_config(CONFIGS / f"{name}.yaml", overrides)


def main() -> None:
    """Runs them one after the other."""
    imagenet, folder = map(Path, sys.argv[1:3])
    for name in sys.argv[3:]:
        report = training.run(settings(name, imagenet, folder), prune=True)
        if os.environ.get("RANK", "0") == "0":
            (folder / f"{name}.json").write_text(json.dumps(report.to_json()))


if __name__ == "__main__":
    main()
