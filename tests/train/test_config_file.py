"""Reading, checking and showing settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mdp_fx.errors import InputError
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.config_file import differing, from_data, read_config, to_data, to_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


def test_what_is_shown_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(to_yaml(TrainConfig()))
    assert read_config(path) == TrainConfig()
    changed = read_config(path, ["tune.points=[[0, 0.5], [3, 1]]", "prune.keep=[conv1, fc]", "data.train='a: b'"])
    assert changed.prune.keep == ("conv1", "fc")
    path.write_text(to_yaml(changed))
    assert read_config(path) == changed
    assert from_data(to_data(changed), "checkpoint") == changed
    assert [name for name, _, _ in differing(TrainConfig(), changed)] == ["data.train", "prune.keep", "tune.points"]


def test_every_key_is_documented() -> None:
    shown = to_yaml(TrainConfig())
    for section in (TrainConfig(), *(getattr(TrainConfig(), name) for name in ("data", "prune", "tune", "log"))):
        for entry in dataclasses.fields(section):
            assert len(entry.metadata["doc"]) > 4
            assert entry.metadata["doc"] in shown


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.epoch=3", "unknown key tune.epoch; did you mean 'epochs'?"),
        ("epochs=3", "unknown key epochs; did you mean 'tune.epochs'?"),
        ("prun.latency=3", "unknown key prun; did you mean 'prune'?"),
        ("tune.epochs=three", "tune.epochs: should be a whole number, found 'three'"),
        ("tune.epochs=true", "tune.epochs: should be a whole number, found True"),
        ("tune.rate=-1", "tune.rate: -1 is out of range; it must be at least 0"),
        ("tune.rate=.nan", "tune.rate: should be a finite number"),
        ("distill.logits=2", "distill.logits: 2 is out of range; it must be from 0 to 1"),
        ("tune.schedule=cosin", "'cosin' is unknown; did you mean 'cosine'?"),
        ("tune.nesterov=1", "tune.nesterov: should be true or false, found 1"),
        ("prune=3", "prune should hold key: value lines, found 3"),
        ("tune.points=[[0, 1], [2]]", "tune.points: should be a list, found [2]"),
        ("tune.rate.high=3", "rate is no section"),
        ("tune.rate=[", "not YAML"),
        ("tune.rate=" + 400 * "9", "tune.rate: should be a finite number, found inf"),
        ("tune.clip=0", "tune.clip: 0 is out of range; it must be at least 1e-06"),
        (
            "output=2024-31-12",
            "--set output=2024-31-12: a value cannot be read: month must be in 1..12; write words in",
        ),
        ("prune.keep=" + 5000 * "[", "its brackets are too deep"),
        ("tune={rate: 1, rate: 2}", "rate is given twice, in lines 1 and 1: leave one of them out"),
        ("data.train={{ DATA }}", "the key in line 1 is no word; is a {{...}} left to fill in?"),
        ("tune.rate", "--set tune.rate is not of the form key=value"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("tune:\n  rate: 0.1\n")
    with pytest.raises(InputError) as told:
        read_config(path, [override])
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_files_that_are_no_configs_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.yaml: no such file"):
        read_config(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    for content, message in (
        (b"tune: [1", "not YAML in line 1"),
        (b"- 1\n", "should hold key: value lines, not a list"),
        (b"\xff\xfe", "it is not text"),
        (
            b"tune: {rate: 1}\nseed: 1\ntune: {epochs: 3}\n",
            r"bad.yaml: tune is given twice, in lines 1 and 3: leave one",
        ),
        (b"data:\n  batch: 1\n  batch: 2\n", "batch is given twice, in lines 2 and 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_config(path)


def test_exponents_without_a_point_are_numbers() -> None:
    assert read_config(None, ["tune.rate=1e-3"]).tune.rate == 1e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "the key model is missing"),
        (["model=m"], "the key output is missing"),
        (["model=m", "output=o"], "the key data.train is missing"),
        (["data.val=v", "data.val_share=0.1"], "two ways to say the same"),
        (["tune.schedule=points"], "needs tune.points with ascending epochs"),
        (["tune.schedule=points", "tune.points=[[3, 1], [1, 1]]"], "ascending epochs"),
        (["tune.schedule=points", "tune.points=[[0, 1], [2, -1]]"], "has a share below 0"),
        (["tune.points=[[0, 1]]"], "is for tune.schedule points, not cosine"),
        (["tune.warmup=20"], "longer than tune.epochs 10"),
        (["tune.ema=1"], "must be below 1"),
        (
            ["tune.schedule=points", "tune.points=[[0, 1]]", "tune.warmup=1"],
            "tune.warmup is not for tune.schedule points",
        ),
        (["tune.schedule=points", "tune.points=[[0, 1]]", "tune.final_rate=1"], "tune.final_rate is not for"),
        (["tune.nesterov=true", "tune.momentum=0"], "needs tune.optimizer sgd with tune.momentum above 0"),
        (["tune.nesterov=true", "tune.optimizer=adamw"], "needs tune.optimizer sgd"),
        (["distill.teacher_arch=a"], "is the network of distill.teacher, which is not set"),
        (["tune.loss=a:b", "tune.mixup=1"], "are for tune.loss cross-entropy"),
        (["distill.teacher=m"], "teaches nothing"),
        (["prune.every=3", "prune.gather=4"], "gather over at most as many"),
    ],
)
def test_contradictions_are_told(overrides: list[str], message: str) -> None:
    needed = ["model=m", "output=o", "data.train=t"] if "missing" not in message else []
    with pytest.raises(InputError, match=message):
        read_config(None, [*needed, *overrides]).check()


def test_the_published_experiments_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert {f"resnet50-{m}-{cut}" for m in ("mdp", "mgp", "mdlm", "halp") for cut in (70, 80, 85)} <= names
    assert "ssd512-resnet50-mdp" in names


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_committed_configs_are_valid(path: Path) -> None:
    config = read_config(path)
    config.check()
    if path.stem.startswith("resnet50-"):
        _, method, cut = path.stem.split("-")
        assert config.prune.method == method
        assert config.prune.latency == f"{100 - int(cut)}%"
        assert config.output == f"{path.stem}.pt"
        assert config.prune.schedule.iterations == 1200
