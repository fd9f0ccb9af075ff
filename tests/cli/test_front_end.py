"""The front end on the command line: the option, the line that tells which was taken, and the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mdp_fx
from mdp_fx.recipe import Recipe
from tests.cli.networks import SHAPE, TINY, TORCH
from tests.cli.running import Run

MAPPED = "tests.cli.networks:make_mapped"
DECIDING = "tests.cli.networks:make_deciding"
WHY = "symbolic tracing fails: its forward calls torch.vmap"


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        (TINY, (), "front end: symbolic (its forward can be traced)"),
        (TINY, ("--front-end", "symbolic"), "front end: symbolic (as asked)"),
        (TINY, ("--front-end", "export"), "front end: export (as asked)"),
        (MAPPED, (), f"front end: export ({WHY})"),
    ],
)
def test_inspect_tells_the_front_end(run: Run, model: str, options: tuple[str, ...], line: str) -> None:
    ran = run("inspect", model, *SHAPE, *options)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[1] == line


def test_inspect_tells_it_in_json(run: Run) -> None:
    found = run("inspect", MAPPED, *SHAPE, "--json").json
    assert (found["front_end"], found["front_end_why"]) == ("export", WHY)


def test_prune_and_apply_take_the_same_front_end(run: Run, folder: Path) -> None:
    pruning = ("--params", "60%", "--step", "16", "-o", "a.pt", "--recipe", "a.json", "--onnx", "a.onnx")
    ran = run("prune", MAPPED, *SHAPE, *TORCH, *pruning)
    assert ran.code == 0, ran.err
    assert f"front end  export ({WHY})" in ran.out
    assert Recipe.load(folder / "a.json").front_end == "export"
    assert mdp_fx.load("a.pt")(torch.randn(3, 3, 16, 16)).shape == (3, 4)
    assert run("apply", MAPPED, "--recipe", "a.json", "-o", "b.pt").code == 0
    states = [mdp_fx.load(name).state_dict().values() for name in ("a.pt", "b.pt")]
    assert all(map(torch.equal, *states))


def test_a_recipe_names_the_front_end_that_apply_uses(run: Run, folder: Path) -> None:
    pruning = ("--params", "60%", "--step", "16", "-o", "a.pt", "--recipe", "a.json")
    assert run("prune", TINY, *SHAPE, *TORCH, *pruning, "--front-end", "export").code == 0
    data = json.loads((folder / "a.json").read_text())
    assert data["front_end"] == "export"
    (folder / "a.json").write_text(json.dumps(data | {"front_end": "dynamo"}))
    ran = run("apply", TINY, "--recipe", "a.json", "-o", "b.pt")
    assert ran.code == 1
    assert "field 'front_end' has an unusable value 'dynamo'" in ran.err


@pytest.mark.parametrize("command", ["profile", "diff"])
def test_other_commands_take_the_option(run: Run, command: str) -> None:
    models = (MAPPED, MAPPED) if command == "diff" else (MAPPED,)
    ran = run(command, *models, *SHAPE, *TORCH, "--front-end", "symbolic")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].endswith("runs but cannot be traced: its forward calls torch.vmap")
    assert run(command, *models, *SHAPE, *TORCH).code == 0


def test_a_network_that_nothing_can_follow_is_one_line(run: Run) -> None:
    ran = run("inspect", DECIDING, *SHAPE)
    assert ran.code == 1
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert "its forward decides on the entries of a tensor, not on shapes (networks.py, line" in ran.err


def test_an_unknown_front_end_is_a_usage_error(run: Run) -> None:
    ran = run("inspect", TINY, "--front-end", "dynamo")
    assert ran.code == 2
    assert "'dynamo' is not one of 'auto', 'symbolic', 'export'" in ran.err
