"""The full recipe: importance gathered while training, pruning, fine-tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx import training
from mdp_fx.errors import BudgetError, InputError, ModelError, TrainingError
from mdp_fx.report.training import TrainReport
from mdp_fx.train.config_file import read_config
from tests.cli.tiny import make_network
from tests.train.small_runs import image_folder
from tests.training_runs import killed_at, log, same

ROOT = Path(__file__).parent.parent
SMALL = (
    "data.batch=8",
    "data.workers=0",
    "data.augment=none",
    "data.input=3x16x16",
    "tune.epochs=4",
    "tune.rate=0.02",
    "prune.params=50%",
    "prune.target=torch:cpu",
    "prune.threads=1",
    "prune.gather=3",
    "log.every=1",
    "log.tensorboard=false",
    "log.checkpoint=1",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images of four classes."""
    return image_folder(tmp_path_factory.mktemp("images") / "train")


@pytest.fixture(autouse=True)
def _own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))


def train(
    folder: Path, images: Path, name: str, *overrides: str, resume: bool = False, force: bool = False
) -> TrainReport:
    spec = f"imagefolder:{images}"
    keys = {"model": "tests.cli.tiny:make_network", "data.train": spec, "data.val": spec, "device": "cpu"}
    config = read_config(None, [*SMALL, *overrides], keys | {"output": str(folder / f"{name}.pt")})
    return training.run(config, prune=True, resume=resume, force=force)


def test_one_shot(images: Path, tmp_path: Path) -> None:
    report = train(tmp_path, images, "out", "prune.recalibrate=2", "tune.epochs=8", "tune.ema=0.5")
    assert report.final is not None
    assert report.dense is not None
    assert report.pruned is not None
    assert report.final.top1 >= 0.75 > report.dense.top1
    slim = mdp_fx.load_slim(tmp_path / "out.pt")
    dense = sum(p.numel() for p in make_network().parameters())
    assert sum(p.numel() for p in slim.module.parameters()) <= 0.5 * dense
    (step,) = log(tmp_path, "out", "prune")
    assert step["step"] == 3
    assert step["number"] == step["steps"] == 1
    assert [line["step"] for kind in ("dense", "pruned") for line in log(tmp_path, "out", kind)] == [0, 3]


@pytest.mark.parametrize("masks", ["hard", "soft"])
def test_a_schedule_with_a_teacher(images: Path, tmp_path: Path, masks: str) -> None:
    more = ("prune.steps=3", "prune.curve=linear", f"prune.masks={masks}", "distill.logits=0.5", "distill.features=0.1")
    report = train(tmp_path, images, "out", *more)
    assert report.steps == 16
    assert [step["step"] for step in log(tmp_path, "out", "prune")] == [3, 6, 9]
    assert [len(log(tmp_path, "out", kind)) for kind in ("pruned", "evaluate", "train")] == [3, 4, 16]


@pytest.mark.parametrize("step", [2, 4, 6, 7])
def test_a_killed_schedule_is_taken_up_exactly(images: Path, tmp_path: Path, step: int) -> None:
    more = ("prune.steps=2", "prune.masks=soft", "tune.mixup=0.2", "tune.ema=0.9", "distill.logits=0.5")
    train(tmp_path, images, "whole", *more)
    with killed_at(step):
        train(tmp_path, images, "killed", *more)
    report = train(tmp_path, images, "killed", *more, resume=True)
    assert report.resumed == step
    a, b = (mdp_fx.load(tmp_path / f"{name}.pt").state_dict() for name in ("whole", "killed"))
    assert same(a, b)
    assert report.dense is not None


class Other(nn.Module):
    """Another build of a network for the same classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().mean((2, 3)))


def make_other() -> nn.Module:
    return Other()


def test_a_teacher_that_does_not_fit_is_told_before_training(images: Path, tmp_path: Path) -> None:
    more = ("distill.features=0.1", "distill.teacher=tests.test_training_pruning:make_other")
    with pytest.raises(
        InputError, match=r"the teacher has a channel group .* that the slim network was not pruned from"
    ):
        train(tmp_path, images, "out", *more)
    assert not (tmp_path / "out-run").exists()


def test_budgets_change_while_pruning_only(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_run: Any, taken: Any, _log: Any) -> bool:
        raise BudgetError(f"step {taken.number} of {taken.steps} cannot be taken")

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_pruned", stop)
        with pytest.raises(BudgetError, match="step 1 of 1"):
            train(tmp_path, images, "out")
    with pytest.raises(
        ModelError, match="is of a run that was stopped while pruning: go on with mdp-fx train --resume"
    ):
        mdp_fx.load(tmp_path / "out-run" / "checkpoint.pt")
    report = train(tmp_path, images, "out", "prune.params=70%", resume=True, force=True)
    assert report.resumed == 2
    dense = sum(p.numel() for p in make_network().parameters())
    kept = sum(p.numel() for p in mdp_fx.load(tmp_path / "out.pt").parameters()) / dense
    assert 0.5 < kept <= 0.7
    with pytest.raises(TrainingError, match=r"was begun with prune\.params 70%, not 60%, and it cannot change"):
        train(tmp_path, images, "out", "prune.params=60%", resume=True, force=True)


def test_pruning_that_does_not_fit_is_told_before_training(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="after 99 iterations, and training has 16"):
        train(tmp_path, images, "out", "prune.gather=99")
    with pytest.raises(BudgetError, match="cannot be met: the smallest is"):
        train(tmp_path, images, "out", "prune.params=0.1%")
    assert not (tmp_path / "out.pt").exists()


def test_two_processes_train_one_network(images: Path, tmp_path: Path) -> None:
    spec = f"imagefolder:{images}"
    settings = [*SMALL, f"data.train={spec}", f"data.val={spec}", "model=tests.cli.tiny:make_network", "data.batch=4"]
    config = tmp_path / "config.yaml"
    config.write_text("")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "mdp_fx", "train", str(config)]
    launch += ["--device", "cpu"] if torch.cuda.is_available() else []
    launch += ["--json", "-o", str(tmp_path / "two.pt")]
    launch += [word for text in settings for word in ("--set", text)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["processes"] == 2
    one = train(tmp_path, images, "one")
    assert report["steps"] == one.steps
    kept = [mdp_fx.load_slim(tmp_path / f"{name}.pt").recipe.kept for name in ("one", "two")]
    assert kept[0].keys() == kept[1].keys()
    first = [log(tmp_path, name, "train")[0]["loss"] for name in ("one", "two")]
    assert first[1] == pytest.approx(first[0], rel=0.3)
    assert report["final"]["examples"] == 32
