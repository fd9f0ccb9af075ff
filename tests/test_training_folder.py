"""The folder of a run: nothing in it is lost, and nothing is taken for what it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mdp_fx
from mdp_fx import training_folder
from mdp_fx.errors import InputError, MdpFxError, OutputError, TrainingError
from mdp_fx.train.run_state import FILE
from tests.train.small_runs import slim_file
from tests.training_runs import Files, make_plain


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


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
    keys = {"data.train": "tests.training_runs:make_poisoned", "data.val": None}
    with pytest.raises(TrainingError, match=r"loss is nan at step 3.*go on with --resume --force"):
        files.tune("out", "log.checkpoint=1", **keys)
    monkeypatch.setattr("tests.training_runs.make_poisoned", make_plain)
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
    keys = {"data.train": "tests.training_runs:make_poisoned", "data.val": None}
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
    keys = {"data.train": "tests.training_runs:make_poisoned", "data.val": None}
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
