"""The published experiments run for some iterations, on generated images in the layout of ImageNet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mdp_fx
from mdp_fx import training
from mdp_fx.train.config_file import read_config
from tests.train.small_runs import image_folder

ROOT = Path(__file__).parent.parent
NAMES = [f"resnet50-{method}-{cut}" for method in ("mdp", "mgp", "mdlm", "halp") for cut in (70, 80, 85)]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and val, each with a sub-folder per class."""
    folder = tmp_path_factory.mktemp("imagenet")
    for part, images in (("train", 3), ("val", 1)):
        image_folder(folder / part, images, ("n01440764", "n01443537"), size=48)
    return folder


def overrides(name: str, imagenet: Path, folder: Path) -> list[str]:
    """Random weights, few images and iterations; the rest is as it is committed."""
    found = [
        "model=torchvision:resnet50",
        "arch=null",
        "device=cpu",
        "precision=null",
        f"output={folder / name}.pt",
        f"data.train=imagefolder:{imagenet / 'train'}",
        f"data.val=imagefolder:{imagenet / 'val'}",
        "data.batch=1" if name == "two" else "data.batch=2",
        "data.workers=0",
        "tune.epochs=1",
        "tune.warmup=0",
        "prune.gather=1",
        "log.every=1",
        "log.tensorboard=false",
    ]
    if "-mdp-" not in name and name != "two":
        found += ["prune.steps=2", "prune.every=1"]
    if "-halp-" in name:
        found.append("prune.latency=40%")  # Two steps by tables of one dimension do not get as far as thirty.
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_published_experiment_runs(name: str, imagenet: Path, tmp_path: Path) -> None:
    config = read_config(ROOT / "configs" / "imagenet" / f"{name}.yaml", overrides(name, imagenet, tmp_path))
    report = training.run(config, prune=True)
    assert report.steps == 3
    slim = mdp_fx.load_slim(tmp_path / f"{name}.pt")
    assert slim.recipe.method == config.prune.method == name.split("-")[1]
    assert slim.recipe.target.startswith("titan-v")
    assert report.latency is not None
    assert report.latency["predicted_ms"] <= report.latency["asked_ms"] < 0.41 * report.latency["dense_ms"]
    assert bool(slim.recipe.removed_blocks) <= (config.prune.method in ("mdp", "mgp"))


def test_a_published_experiment_runs_in_two_processes(imagenet: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "mdp_fx", "train"]
    command += [str(ROOT / "configs" / "imagenet" / "resnet50-mdp-70.yaml"), "--json"]
    command += [word for text in overrides("two", imagenet, tmp_path) for word in ("--set", text)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert (report["processes"], report["steps"]) == (2, 3)
    assert mdp_fx.load_slim(tmp_path / "two.pt").recipe.method == "mdp"
