"""Training runs: what they learn, that they go on exactly, and what they refuse."""

from __future__ import annotations

import json
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
from torch import Tensor, nn

import mdp_fx
from mdp_fx import training, training_folder
from mdp_fx.errors import DataError, InputError, MdpFxError, OutputError, TrainingError
from mdp_fx.report.training import TrainReport
from mdp_fx.train.config_file import read_config
from mdp_fx.train.run_state import FILE
from tests.train.small_runs import CLASSES, image_folder, slim_file

ROOT = Path(__file__).parent.parent
SMALL = ("data.batch=8", "data.workers=0", "tune.epochs=2", "tune.rate=0.02", "log.every=1", "log.tensorboard=false")
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


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images of four classes."""
    return image_folder(tmp_path_factory.mktemp("images") / "train")


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slim network for four classes."""
    return slim_file(tmp_path_factory.mktemp("slim") / "slim.pt")


class Files:
    """Where a test's runs find and leave their files."""

    def __init__(self, slim: Path, images: Path, folder: Path) -> None:
        self.slim, self.images, self.folder = slim, images, folder

    def keys(self, name: str, **further: Any) -> dict[str, Any]:
        spec = f"imagefolder:{self.images}"
        plain = {"model": str(self.slim), "output": str(self.folder / f"{name}.pt"), "device": "cpu"}
        return {**plain, "data.train": spec, "data.val": spec, **further}

    def tune(self, name: str, *overrides: str, resume: bool = False, force: bool = False, **keys: Any) -> TrainReport:
        """Fine-tunes the slim network."""
        config = read_config(None, [*SMALL, *overrides], self.keys(name, **keys))
        return training.run(config, prune=False, resume=resume, force=force)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Of the network that a run wrote."""
        return mdp_fx.load(self.folder / f"{name}.pt").state_dict()

    def log(self, name: str, kind: str = "train") -> list[dict[str, Any]]:
        """Lines of a run's log."""
        lines = (self.folder / f"{name}-run" / "log.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["kind"] == kind]


@pytest.fixture
def files(slim: Path, images: Path, tmp_path: Path) -> Files:
    return Files(slim, images, tmp_path)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


class Killed(BaseException):
    """Stands for a kill: nothing in the program may catch it."""


def kill_at(step: int, files: Files, monkeypatch: pytest.MonkeyPatch, *overrides: str, **keys: Any) -> None:
    """Runs `killed` until its checkpoint at a step."""
    save = training.save_run

    def save_and_die(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if state["trainer"]["step"] == step:
            raise Killed

    monkeypatch.setattr(training, "save_run", save_and_die)
    with pytest.raises(Killed):
        files.tune("killed", *overrides, **keys)
    monkeypatch.setattr(training, "save_run", save)
    torch.rand(7)  # The state of the process that goes on is another one.


@pytest.mark.parametrize(("step", "every"), [(1, 1), (3, 1), (4, 3), (6, 1), (8, 1)])
def test_a_run_that_is_taken_up_ends_with_the_same_weights(
    files: Files, monkeypatch: pytest.MonkeyPatch, step: int, every: int
) -> None:
    options = (*RICH, "log.checkpoint=1", f"log.every={every}")
    files.tune("whole", *options)
    kill_at(step, files, monkeypatch, *options)
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
        kill_at(8, files, patch)
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


def test_a_run_that_goes_on_replaces_its_own_output_only(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.tune("out")
    other = files.folder / "other.pt"
    other.write_bytes(b"something")
    with pytest.raises(OutputError, match=r"other\.pt exists; pass --force"):
        files.tune("other", resume=True, folder=str(files.folder / "out-run"))
    assert other.read_bytes() == b"something"
    other.unlink()
    files.tune("other", resume=True, folder=str(files.folder / "out-run"))
    monkeypatch.chdir(files.folder)
    files.tune("out", resume=True, output="out.pt", folder="out-run")
    (files.folder / "below").mkdir()
    (files.folder / "below" / "out.pt").write_bytes(b"something")
    monkeypatch.chdir(files.folder / "below")
    with pytest.raises(OutputError, match=r"out\.pt exists; pass --force"):
        files.tune("out", resume=True, output="out.pt", folder="../out-run")


def test_nothing_is_overwritten_silently(files: Files) -> None:
    files.tune("out")
    with pytest.raises(OutputError, match=r"out\.pt exists; pass --force"):
        files.tune("out")
    (files.folder / "out.pt").unlink()
    with pytest.raises(TrainingError, match=r"out-run holds a run already: go on with it \(--resume\)"):
        files.tune("out")
    files.tune("out", force=True)


def test_resuming_with_other_settings_is_refused(files: Files) -> None:
    files.tune("out")
    with pytest.raises(TrainingError, match=r"was begun with tune\.rate 0\.02, not 0\.5"):
        files.tune("out", "tune.rate=0.5", resume=True)
    with pytest.raises(TrainingError, match=r"begun with data\.batch 8, not 4, and it cannot change on the way"):
        files.tune("out", "data.batch=4", resume=True, force=True)
    files.tune("out", "log.every=3", resume=True)


def test_a_run_goes_on_with_other_settings_where_that_is_said(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"data.train": "tests.test_training:make_poisoned", "data.val": None}
    with pytest.raises(TrainingError, match=r"loss is nan at step 3.*go on with --resume --force"):
        files.tune("out", "log.checkpoint=1", **keys)
    monkeypatch.setattr("tests.test_training.make_poisoned", make_plain)
    changed = ("log.checkpoint=1", "tune.rate=0.01", "tune.weight_decay=0.5", "tune.epochs=1")
    with pytest.raises(TrainingError, match=r"was begun with tune\.epochs 2, not 1: set it back, or go on"):
        files.tune("out", *changed, resume=True, **keys)
    report = files.tune("out", *changed, resume=True, force=True, **keys)
    assert (report.resumed, report.steps) == (2, 4)
    (told,) = files.log("out", "settings")
    assert told["tune.rate"] == [0.02, 0.01]
    saved = torch.load(files.folder / "out-run" / FILE, weights_only=True)
    assert saved["trainer"]["optimizer"]["param_groups"][0]["weight_decay"] == 0.5


@pytest.mark.parametrize("average", ["0", "0.5"])
def test_what_a_stopped_run_kept_can_be_used(files: Files, average: str) -> None:
    keys = {"data.train": "tests.test_training:make_poisoned", "data.val": None}
    with pytest.raises(TrainingError, match="loss is nan"):
        files.tune("out", "log.checkpoint=1", f"tune.ema={average}", **keys)
    kept = files.folder / "out-run" / FILE
    saved = torch.load(kept, weights_only=True)["trainer"]
    found = mdp_fx.load(kept).state_dict()
    wanted = saved["module"] if average == "0" else saved["average"]
    assert all(
        torch.equal(value, wanted[name if average == "0" else f"module.{name}"]) for name, value in found.items()
    )
    files.tune("further", "tune.rate=0.001", model=str(kept))
    assert kept.exists()
    with pytest.raises(OutputError, match=r"is what is read, and the run in .*out-run would replace it"):
        files.tune("out", model=str(kept), force=True)


def test_nothing_that_is_read_is_overwritten(files: Files) -> None:
    before = files.slim.read_bytes()
    with pytest.raises(OutputError, match=r"slim\.pt is what is read; name another output file"):
        files.tune("out", resume=True, force=True, output=str(files.slim))
    assert files.slim.read_bytes() == before
    other = files.folder / "other.pt"
    other.write_bytes(b"something")
    with pytest.raises(OutputError, match=r"other\.pt exists; pass --force"):
        files.tune("other", resume=True)
    assert other.read_bytes() == b"something"
    (files.folder / "run").mkdir()
    with pytest.raises(OutputError, match="is a file of the run itself"):
        files.tune("out", output=str(files.folder / "run" / "log.jsonl"), folder=str(files.folder / "run"))


def test_a_config_kept_in_the_folder_stays(files: Files) -> None:
    own = files.folder / "out-run" / "config.yaml"
    own.parent.mkdir()
    own.write_text("# mine\n")
    files.tune("out")
    assert own.read_text() == "# mine\n"
    assert "rate: 0.02" in (files.folder / "out-run" / "settings.yaml").read_text()


def test_a_new_run_is_not_taken_for_the_old_one(files: Files) -> None:
    files.tune("out")
    keys = {"data.train": "tests.test_training:make_poisoned", "data.val": None}
    with pytest.raises(TrainingError, match="loss is nan"):
        files.tune("out", force=True, **keys)
    assert not (files.folder / "out-run" / FILE).exists()
    assert files.tune("out", "tune.rate=0.01", resume=True, force=True).resumed == 0


def test_a_folder_that_cannot_be_one_is_told_first(files: Files) -> None:
    with pytest.raises(OutputError, match=r"cannot write into .*slim.pt/run, the folder of the run: not a directory"):
        files.tune("out", folder=str(files.slim / "run"), model="nowhere.pt")
    with pytest.raises(InputError, match="is a file, not the folder of a run"):
        files.tune("out", folder=str(files.slim))
    for output in (".", ""):
        with pytest.raises(OutputError, match="is a folder; name a file in it"):
            files.tune("out", output=output)
    with pytest.raises(MdpFxError, match="cannot read nowhere"):
        files.tune("out", model="nowhere.pt")
    assert not (files.folder / "out-run").exists()


def test_two_runs_do_not_share_a_folder(files: Files) -> None:
    files.tune("out")
    with (
        training_folder.held(files.folder / "out-run"),
        pytest.raises(TrainingError, match=r"another run is at work in .*out-run"),
    ):
        files.tune("out", resume=True)
    assert files.tune("out", resume=True).resumed == 8


def test_resuming_with_another_network_is_refused(files: Files, tmp_path: Path) -> None:
    copy = slim_file(tmp_path / "copy.pt")
    files.tune("out", model=str(copy))
    other = mdp_fx.load(copy)
    with torch.no_grad():
        other.get_submodule("head").weight.add_(1)
    read = mdp_fx.load_slim(copy)
    mdp_fx.checkpoint.save_slim(copy, other, read.recipe, {})
    with pytest.raises(TrainingError, match="had other weights: bring those back"):
        files.tune("out", resume=True, model=str(copy))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "delete"),
        ({"format": "mdp-fx training run", "version": 99}, "has format version 99, this mdp-fx reads 2"),
        ({"format": "something"}, "is no checkpoint of a training run"),
    ],
)
def test_damaged_checkpoints_are_told(files: Files, content: Any, message: str) -> None:
    files.tune("out")
    path = files.folder / "out-run" / FILE
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(TrainingError, match=message):
        files.tune("out", resume=True)


def test_a_loss_that_is_no_number_stops_the_run(files: Files) -> None:
    keys = {"data.train": "tests.test_training:make_poisoned", "data.val": None}
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3.*the last checkpoint is kept"):
        files.tune("out", "log.checkpoint=1", **keys)
    assert not (files.folder / "out.pt").exists()
    saved = torch.load(files.folder / "out-run" / FILE, weights_only=True)
    assert saved["trainer"]["step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in saved["trainer"]["module"].values())


def test_data_that_are_no_numbers_are_told_as_such(files: Files) -> None:
    keys = {"data.train": "tests.test_training:make_not_finite", "data.val": None}
    with pytest.raises(TrainingError, match=r"^the data of step 3 holds values that are not finite: .* mend data"):
        files.tune("out", "log.checkpoint=1", **keys)


def batches(
    count: int, shape: tuple[int, ...] = (3, 16, 16), low: int = 0, high: int = 4
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, *shape, generator=generator) for _ in range(count)]
    return [(x, torch.randint(low, high, (4,), generator=generator)) for x in images]


def make_poisoned() -> list[tuple[Tensor, Tensor]]:
    """The third batch is finite, and a convolution of it is not."""
    found = batches(4)
    found[2][0].sign_().mul_(torch.finfo(torch.float32).max)
    return found


def make_not_finite() -> list[tuple[Tensor, Tensor]]:
    """The third batch has a number missing."""
    found = batches(4)
    found[2][0][0, 0, 0, 0] = float("nan")
    return found


def make_plain() -> list[tuple[Tensor, Tensor]]:
    return batches(4)


def make_narrow() -> list[tuple[Tensor, Tensor]]:
    return batches(4, (3, 8, 16))


def make_out_of_range() -> list[tuple[Tensor, Tensor]]:
    return batches(4, low=4, high=9)


def make_bytes() -> list[tuple[Tensor, Tensor]]:
    return [(images.byte(), labels) for images, labels in batches(4)]


def make_empty() -> list[tuple[Tensor, Tensor]]:
    return []


class Detector(nn.Module):
    """Gives what torchvision's detectors give."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": image.new_zeros(1, 4)} for image in images]


def make_detector() -> nn.Module:
    return Detector()


class Regression(nn.Module):
    """One number for each image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).mean((1, 2, 3))


def make_numbers() -> list[tuple[Tensor, Tensor]]:
    return [(images, labels.float()) for images, labels in batches(4)]


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def make_iterator() -> Iterator[tuple[Tensor, Tensor]]:
    return iter(batches(2))


def make_ten_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.train=tests.test_training:make_narrow"], DataError, "has shape 4x3x8x16, the network takes Nx3x16x16"),
        (["data.train=tests.test_training:make_bytes"], DataError, "has uint8 inputs, which .* rejects: give it float"),
        (["data.train=tests.test_training:make_out_of_range"], DataError, "lie outside of the network's 4 classes"),
        (["data.val=tests.test_training:make_out_of_range"], DataError, "lie outside of the network's 4 classes"),
        (["data.val=tests.test_training:make_empty"], DataError, "the validation data has no batches"),
        (["model=tests.test_training:make_detector"], InputError, "is a detector, and this trains classifiers"),
        (["data.train=tests.test_training:make_iterator"], DataError, "an iterator, which ends after one epoch"),
        (["data.train=nothing"], DataError, "cannot read the data spec"),
        (["data.train=imagefolder:nowhere"], DataError, "no image folder nowhere"),
        (["data.batch=64"], DataError, "fewer than a batch of 64"),
        (["data.input=3x16"], InputError, "rejects an input of shape 2x3x16"),
        (["data.input=huge"], InputError, "is not a shape such as"),
        (["model=tests.cli.tiny:make_network"], InputError, "is no slim network: prune it first"),
        (["distill.logits=0.5"], InputError, "needs the dense network: name it with --teacher"),
        (
            ["distill.logits=0.5", "distill.teacher=tests.test_training:make_ten_classes"],
            InputError,
            "the teacher has 10 outputs, the network has 4",
        ),
        (["precision=float16"], InputError, "float16 training needs a GPU"),
        (["tune.accumulate=100"], InputError, r"batches an epoch, and a step takes 100 \(tune.accumulate\)"),
        (["tune.loss=tests.nowhere:loss"], DataError, "cannot be imported"),
    ],
)
def test_bad_input_is_one_clear_line(files: Files, overrides: list[str], error: type[MdpFxError], message: str) -> None:
    keys = {name: text for name, _, text in (part.partition("=") for part in overrides)}
    config = read_config(None, [*SMALL, *(f"{name}={text}" for name, text in keys.items())], {
        name: value for name, value in files.keys("out").items() if name not in keys
    })  # fmt: skip
    with pytest.raises(error, match=message) as told:
        training.run(config, prune=False)
    assert "\n" not in str(told.value)
    assert not (files.folder / "out.pt").exists()
    assert not (files.folder / "out-run").exists()


def test_a_network_that_is_no_classifier_is_trained_by_a_loss_of_ones_own(files: Files, tmp_path: Path) -> None:
    model = str(slim_file(tmp_path / "regression.pt", Regression()))
    keys = {"data.train": "tests.test_training:make_numbers", "data.val": "tests.test_training:make_numbers"}
    report = files.tune("out", "tune.loss=tests.test_training:squares", "tune.epochs=5", model=model, **keys)
    assert report.final is None
    losses = [line["loss"] for line in files.log("out")]
    assert sum(losses[-4:]) < sum(losses[:4])
    with pytest.raises(DataError, match=r"no classes: name a tune.loss of your own"):
        files.tune("other", model=model, **keys)


def make_no_inputs() -> list[tuple[list[Tensor], Tensor]]:
    return [([], labels) for _, labels in batches(4)]


def test_batches_without_inputs_are_told_with_a_loss_of_ones_own_too(files: Files) -> None:
    keys = {"data.train": "tests.test_training:make_no_inputs", "data.val": None}
    with pytest.raises(TrainingError, match="step 1 failed on inputs of shape"):
        files.tune("out", "tune.loss=tests.test_training:squares", **keys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(files: Files) -> None:
    with pytest.raises(InputError, match="device cuda was asked for, but"):
        files.tune("out", device="cuda")


def test_folders_with_other_classes_are_refused(files: Files, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "other", 2, ("ant", "bee", "cat", "emu"))
    with pytest.raises(DataError, match="hold other classes: dog is in one of them only"):
        files.tune("out", **{"data.val": f"imagefolder:{other}"})
    more = image_folder(tmp_path / "more", 2, (*CLASSES, "emu"))
    with pytest.raises(InputError, match=r"has 5 classes, .* has 4 outputs"):
        files.tune("out", **{"data.train": f"imagefolder:{more}", "data.val": None})


def test_a_loader_of_ones_own_is_taken_up_exactly(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"data.train": "tests.test_training:make_plain", "data.val": "tests.test_training:make_plain"}
    files.tune("whole", "log.checkpoint=1", "tune.mixup=0.5", **keys)
    kill_at(6, files, monkeypatch, "log.checkpoint=1", "tune.mixup=0.5", **keys)
    files.tune("killed", "log.checkpoint=1", "tune.mixup=0.5", resume=True, **keys)
    assert same(files.weights("killed"), files.weights("whole"))


def test_bfloat16_and_accumulation_train(files: Files) -> None:
    report = files.tune("out", "precision=bfloat16", "tune.accumulate=2", "tune.clip=1", "tune.optimizer=adamw")
    assert report.precision == "bfloat16"
    assert report.steps == 4
    assert all(value.dtype != torch.bfloat16 for value in files.weights("out").values())
