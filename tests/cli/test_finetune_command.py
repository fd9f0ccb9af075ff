"""`mdp-fx finetune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mdp_fx
from tests.cli.running import Run
from tests.train.small_runs import image_folder, slim_file

COMMON = (
    "--set",
    "data.workers=0",
    "--set",
    "log.tensorboard=false",
    "--batch",
    "8",
    "--epochs",
    "1",
    "--rate",
    "0.01",
)
DATA = ("--data", "imagefolder:images", "--val", "imagefolder:images", "--device", "cpu")


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    image_folder(folder / "images")
    slim_file(folder / "slim.pt")
    (folder / "other.pt").touch()


def test_a_slim_network_is_tuned(run: Run) -> None:
    before = Path("slim.pt").read_bytes()
    ran = run("finetune", "slim.pt", *DATA, *COMMON, "--seed", "3")
    assert ran.code == 0, ran.err
    assert "fine-tuned" in ran.out
    assert "wrote    slim-tuned.pt" in ran.out
    assert Path("slim.pt").read_bytes() == before
    tuned = mdp_fx.load("slim-tuned.pt")
    assert not torch.equal(tuned.get_submodule("head").weight, mdp_fx.load("slim.pt").get_submodule("head").weight)
    assert json.loads(Path("slim-tuned-run/log.jsonl").read_text().splitlines()[-1])["kind"] == "evaluate"


def test_a_teacher_alone_teaches_by_half(run: Run) -> None:
    ran = run("finetune", "slim.pt", *DATA, *COMMON, "--teacher", "tests.cli.tiny:make_network", "--json")
    assert ran.code == 0, ran.err
    assert "logits: 0.5" in Path("slim-tuned-run/settings.yaml").read_text()
    assert ran.json["final"]["examples"] == 32


def test_a_teacher_that_is_told_to_teach_nothing_is_refused(run: Run) -> None:
    teacher = ("--teacher", "tests.cli.tiny:make_network", "--set", "distill.logits=0")
    ran = run("finetune", "slim.pt", *DATA, *COMMON, *teacher)
    assert (ran.code, ran.out) == (1, "")
    assert "distill.teacher teaches nothing: set distill.logits or distill.features" in ran.err


def test_options_come_before_the_file(run: Run) -> None:
    Path("config.yaml").write_text("tune: {epochs: 7, momentum: 0.5}\noutput: other.pt\n")
    ran = run("finetune", "slim.pt", *DATA, *COMMON, "--config", "config.yaml", "--json", "--force")
    assert ran.code == 0, ran.err
    assert ran.json["epochs"] == 1
    assert ran.json["output"] == "other.pt"
    assert "momentum: 0.5" in Path("other-run/settings.yaml").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "the key data.train is missing"),
        (("--data", "imagefolder:nowhere"), "no image folder nowhere"),
        (("--data", "imagefolder:images", "--teacher", "nowhere.pt"), "nowhere.pt"),
        (("--data", "imagefolder:images", "--set", "tune.rat=1"), "unknown key tune.rat; did you mean 'rate'?"),
        (("--data", "imagefolder:images", "-o", "slim.pt", "--force"), "the output slim.pt is what is read"),
        (("--data", "imagefolder:images", "-o", "other.pt"), "other.pt exists; pass --force"),
    ],
)
def test_mistakes_are_one_line(run: Run, args: tuple[str, ...], message: str) -> None:
    ran = run("finetune", "slim.pt", "--device", "cpu", *args)
    assert ran.code == 1
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not Path("slim-tuned.pt").exists()
