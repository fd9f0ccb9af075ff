"""Placing networks: what the launcher and the machine say, and what does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mdp_fx.errors import InputError
from mdp_fx.train import trainer
from mdp_fx.train.config import TuneConfig
from mdp_fx.train.trainer import Trainer, make_accelerator, precision_of

ROOT = Path(__file__).parent.parent.parent


def launched(device: str) -> subprocess.CompletedProcess[str]:
    """Two processes that say how many they are."""
    code = f"from mdp_fx.train.trainer import make_accelerator as m; print(m({device!r}, None).num_processes)"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "--no-python", sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_processes_without_a_gpu_work_together() -> None:
    done = launched("auto")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "".join(done.stdout.split()) == "22", "both processes say two, maybe at the same time"


def test_processes_that_do_not_work_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        num_processes = 1

    monkeypatch.setattr(trainer, "Accelerator", lambda **_: Alone())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started, and 1 work together"):
        make_accelerator("cpu", None)


def test_what_the_launcher_asks_for_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_of(make_accelerator("cpu", None)) == "float32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert precision_of(make_accelerator("cpu", None)) == "bfloat16"
    assert precision_of(make_accelerator("cpu", "float32")) == "float32"
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(InputError, match=r"gradients are accumulated by tune\.accumulate"):
        make_accelerator("cpu", None)


def make(config: TuneConfig, **further: Any) -> Trainer:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    more: dict[str, Any] = {"epoch_steps": 4, "shape": (3,), "classes": 2}
    return Trainer(make_accelerator("cpu", None), network, config, **more | further)


def test_a_trainer_goes_on_with_its_own_settings() -> None:
    batches = [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))] * 2
    before = make(TuneConfig(rate=0.1, weight_decay=0.1))
    before.train_step(iter(batches))
    state = before.state_dict()
    after = make(TuneConfig(rate=0.1, weight_decay=0.0, momentum=0.5))
    after.load_state_dict(state)
    group = after.state_dict()["optimizer"]["param_groups"][0]
    assert (after.step, group["weight_decay"], group["momentum"]) == (1, 0.0, 0.5)
    assert after.train_step(iter(batches)) > 0


def test_mixing_alone_needs_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    make(TuneConfig())
    with pytest.raises(ImportError):
        make(TuneConfig(mixup=0.2))
