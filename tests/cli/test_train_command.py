"""`mdp-fx train`."""

from __future__ import annotations

from pathlib import Path

import yaml

import mdp_fx
from mdp_fx.train.config import TrainConfig
from mdp_fx.train.config_file import from_data
from tests.cli.running import Run
from tests.train.small_runs import image_folder

SETTINGS = """
model: tests.cli.tiny:make_network
output: slim.pt
data: {train: "imagefolder:images", val: "imagefolder:images", input: 3x16x16, batch: 8, workers: 0}
prune: {params: 50%, target: "torch:cpu", threads: 1, gather: 2}
tune: {epochs: 1, rate: 0.01}
log: {tensorboard: false}
"""


def test_the_full_recipe(run: Run, folder: Path) -> None:
    image_folder(folder / "images")
    Path("config.yaml").write_text(SETTINGS)
    ran = run("train", "config.yaml", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps"] == 4
    assert ran.json["dense"]["examples"] == ran.json["pruned"]["examples"] == ran.json["final"]["examples"] == 32
    assert ran.json["latency"]["measured_ms"] > 0
    assert mdp_fx.load_slim("slim.pt").recipe.importance == "taylor"
    assert yaml.safe_load(Path("slim-run/settings.yaml").read_text())["tune"]["epochs"] == 1
    again = run("train", "config.yaml", "--device", "cpu")
    assert again.code == 1
    assert "slim.pt exists; pass --force" in again.err
    resumed = run("train", "config.yaml", "--device", "cpu", "--resume")
    assert resumed.code == 0
    assert "taken up at step 4" in resumed.out


def test_show_config_is_a_config(run: Run) -> None:
    shown = run("train", "--show-config")
    assert shown.code == 0
    assert from_data(yaml.safe_load(shown.out), "shown") == TrainConfig()


def test_mistakes_are_one_line(run: Run) -> None:
    Path("config.yaml").write_text(SETTINGS.replace("epochs", "epoch"))
    ran = run("train", "config.yaml")
    assert ran.code == 1
    assert ran.err == "mdp-fx: error: config.yaml: unknown key tune.epoch; did you mean 'epochs'?\n"
    assert run("train", "nowhere.yaml").err == "mdp-fx: error: cannot read nowhere.yaml: no such file or directory\n"
    Path("config.yaml").write_text(SETTINGS)
    ran = run("train", "config.yaml", "-o", "config.yaml", "--force")
    assert ran.err == "mdp-fx: error: the output config.yaml is what is read; name another output file\n"
    assert run("train").code == 2
