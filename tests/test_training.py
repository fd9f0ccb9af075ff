"""Training runs: what they learn, and that they go on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mdp_fx
from mdp_fx import training
from mdp_fx.errors import DataError, TrainingError
from mdp_fx.train.run_state import FILE
from tests.train.small_runs import slim_file
from tests.training_runs import SMALL, Files, Flat, Regression, kill_at, same

ROOT = Path(__file__).parent.parent
RICH = (
    "data.workers=1",
    "tune.ema=0.8",
    "tune.mixup=0.2",
    "tune.cutmix=1",
    "tune.label_smoothing=0.1",
    "tune.warmup=1",
    "distill.teacher=tests.cli.tiny:make_network",
    "distill.logits=0.5",
    "distill.features=0.1",
)
"""Everything that draws random numbers or has a state."""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_fine_tuning_learns_and_writes_a_slim_network(files: Files) -> None:
    report = files.tune("out", "tune.epochs=6", "data.augment=none")
    assert report.final is not None
    assert report.final.top1 >= 0.75
    assert report.final.examples == 32
    read = mdp_fx.load_slim(files.folder / "out.pt")
    assert read.recipe.kept == mdp_fx.load_slim(files.slim).recipe.kept
    assert read.report["training"]["final"]["top1"] == report.final.top1
    losses = [line["loss"] for line in files.log("out")]
    assert len(losses) == report.steps == 24
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert [line["step"] for line in files.log("out", "evaluate")] == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize(("step", "every"), [(1, 1), (3, 1), (4, 3), (6, 1), (8, 1)])
def test_a_run_that_is_taken_up_ends_with_the_same_weights(files: Files, step: int, every: int) -> None:
    options = (*RICH, "log.checkpoint=1", f"log.every={every}")
    files.tune("whole", *options)
    kill_at(step, files, *options)
    assert not (files.folder / "killed.pt").exists()
    report = files.tune("killed", *options, resume=True)
    assert report.resumed == step
    assert same(files.weights("killed"), files.weights("whole"))
    assert [line["loss"] for line in files.log("killed")] == [line["loss"] for line in files.log("whole")]


def test_a_killed_process_is_taken_up_exactly(files: Files) -> None:
    options = (*SMALL, *RICH, "data.workers=0", "tune.epochs=40", "log.checkpoint=1")
    settings = [word for text in options for word in ("--set", text)]
    spec = f"imagefolder:{files.images}"
    command = [sys.executable, "-m", "mdp_fx", "finetune", str(files.slim), "--data", spec, "--val", spec]
    command += ["--device", "cpu", "-o", str(files.folder / "killed.pt"), *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    victim = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    checkpoint, deadline = files.folder / "killed-run" / FILE, time.monotonic() + 200
    while not checkpoint.exists() and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not (files.folder / "killed.pt").exists()
    report = files.tune("killed", *options, resume=True)
    assert 0 < report.resumed < report.steps
    files.tune("whole", *options)
    assert same(files.weights("killed"), files.weights("whole"))
    assert not list((files.folder / "killed-run").glob(".*.tmp"))


def test_resuming_a_finished_run_changes_nothing(files: Files) -> None:
    files.tune("out")
    before = files.weights("out")
    for _ in range(2):
        report = files.tune("out", resume=True)
        assert report.resumed == report.steps
        assert same(files.weights("out"), before)
        assert [line["step"] for line in files.log("out", "evaluate")] == [4, 8]


def test_a_checkpoint_comes_before_the_validation(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(training.Checks, "accuracy", fail)
        with pytest.raises(DataError, match="broken"):
            files.tune("out")
    with monkeypatch.context() as patch:
        patch.setattr(training.Checks, "collapse", lambda *_: "a layer has collapsed")
        kill_at(8, files)
    report = files.tune("out", resume=True)
    assert report.resumed == 4
    assert [line["step"] for line in files.log("out", "evaluate")] == [4, 8]
    report = files.tune("killed", resume=True)
    assert report.warnings == ("a layer has collapsed",)
    assert [line["step"] for line in files.log("killed", "evaluate")] == [4, 8]


def test_a_precision_of_the_launcher_is_part_of_the_run(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        assert files.tune("out", "tune.epochs=1").precision == "bfloat16"
    with pytest.raises(TrainingError, match="was begun in bfloat16, not float32: set precision to that"):
        files.tune("out", "tune.epochs=1", resume=True)


def test_an_interruption_says_what_becomes_of_the_run(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = training.Trainer.train_step

    def stop(trainer: training.Trainer, batches: Iterator[Any]) -> float:
        if trainer.step == 2:
            raise KeyboardInterrupt
        return train_step(trainer, batches)

    monkeypatch.setattr(training.Trainer, "train_step", stop)
    with pytest.raises(KeyboardInterrupt, match="no checkpoint was due yet"):
        files.tune("out")
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"):
        files.tune("out", "log.checkpoint=1", force=True)


def test_a_run_without_a_checkpoint_begins(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    assert files.tune("out", resume=True).resumed == 0
    assert "out-run holds no run to go on with: a new one begins" in caplog.text


def test_a_loss_that_is_no_number_stops_the_run(files: Files) -> None:
    keys = {"data.train": "tests.training_runs:make_poisoned", "data.val": None}
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3.*the last checkpoint is kept"):
        files.tune("out", "log.checkpoint=1", **keys)
    assert not (files.folder / "out.pt").exists()
    saved = torch.load(files.folder / "out-run" / FILE, weights_only=True)
    assert saved["trainer"]["step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in saved["trainer"]["module"].values())


def test_data_that_are_no_numbers_are_told_as_such(files: Files) -> None:
    keys = {"data.train": "tests.training_runs:make_not_finite", "data.val": None}
    with pytest.raises(TrainingError, match=r"^the data of step 3 holds values that are not finite: .* mend data"):
        files.tune("out", "log.checkpoint=1", **keys)


def test_statistics_that_are_no_numbers_are_not_written(files: Files) -> None:
    keys = {"data.train": "tests.training_runs:make_huge", "data.val": None}
    with pytest.raises(TrainingError, match=r"stem\.1\.running_var is not finite after step"):
        files.tune("out", "tune.epochs=1", **keys)
    assert not (files.folder / "out.pt").exists()


def test_a_network_that_is_no_classifier_is_trained_by_a_loss_of_ones_own(files: Files, tmp_path: Path) -> None:
    model = str(slim_file(tmp_path / "regression.pt", Regression()))
    keys = {"data.train": "tests.training_runs:make_numbers", "data.val": "tests.training_runs:make_numbers"}
    report = files.tune("out", "tune.loss=tests.training_runs:squares", "tune.epochs=5", model=model, **keys)
    assert report.final is None
    losses = [line["loss"] for line in files.log("out")]
    assert sum(losses[-4:]) < sum(losses[:4])
    with pytest.raises(DataError, match=r"no classes: name a tune.loss of your own"):
        files.tune("other", model=model, **keys)


def test_a_teacher_that_writes_its_batch_teaches_features(files: Files, tmp_path: Path) -> None:
    model = str(slim_file(tmp_path / "flat.pt", Flat()))
    teacher = ("distill.teacher=tests.training_runs:make_flat", "distill.features=1")
    assert files.tune("out", *teacher, model=model).steps == 8


def test_labels_of_any_whole_number_are_mixed(files: Files) -> None:
    keys = {"data.train": "tests.training_runs:make_short_labels", "data.val": "tests.training_runs:make_short_labels"}
    assert files.tune("out", "tune.mixup=0.5", "tune.cutmix=0.5", **keys).final is not None


def test_batches_without_inputs_are_told_with_a_loss_of_ones_own_too(files: Files) -> None:
    keys = {"data.train": "tests.training_runs:make_no_inputs", "data.val": None}
    with pytest.raises(TrainingError, match="step 1 failed on inputs of shape"):
        files.tune("out", "tune.loss=tests.training_runs:squares", **keys)


def test_a_loader_of_ones_own_is_taken_up_exactly(files: Files) -> None:
    keys = {"data.train": "tests.training_runs:make_plain", "data.val": "tests.training_runs:make_plain"}
    files.tune("whole", "log.checkpoint=1", "tune.mixup=0.5", **keys)
    kill_at(6, files, "log.checkpoint=1", "tune.mixup=0.5", **keys)
    files.tune("killed", "log.checkpoint=1", "tune.mixup=0.5", resume=True, **keys)
    assert same(files.weights("killed"), files.weights("whole"))


def test_bfloat16_and_accumulation_train(files: Files) -> None:
    report = files.tune("out", "precision=bfloat16", "tune.accumulate=2", "tune.clip=1", "tune.optimizer=adamw")
    assert report.precision == "bfloat16"
    assert report.steps == 4
    assert all(value.dtype != torch.bfloat16 for value in files.weights("out").values())
