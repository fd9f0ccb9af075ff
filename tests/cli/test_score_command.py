"""`mdp-fx score`: what is written and said, and that prune and frontier take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdp_fx.cli.score_options import IMPORTANCE
from mdp_fx.passes.importance import KINDS
from mdp_fx.scores import Scores
from tests.cli.networks import SHAPE, TINY, TORCH
from tests.cli.running import Run

DATA = ("--data", "tests.cli.tiny:make_loader")


def test_the_choices_are_the_kinds() -> None:
    assert IMPORTANCE == KINDS


def test_scores_are_written_and_shown(run: Run, folder: Path) -> None:
    ran = run("score", TINY, *SHAPE, *DATA, "--importance", "fisher", "--batches", "1", "-o", "scores.json")
    assert ran.code == 0
    assert ran.out.startswith("make_network: fisher importance of 1 batch\n")
    assert "wrote  scores.json" in ran.out
    scores = Scores.load(folder / "scores.json")
    assert (scores.importance, scores.batches) == ("fisher", 1)


def test_json_says_what_each_group_is_worth(run: Run) -> None:
    facts = run("score", TINY, *SHAPE, "-o", "scores.json", "--json").json
    assert facts["importance"] == "l2"
    assert facts["batches"] == 0
    assert [row["group"] for row in facts["groups"]] == ["stem.0", "block.0"]
    assert sum(row["share"] for row in facts["groups"]) == pytest.approx(1.0)
    assert facts["written"] == {"scores": "scores.json"}


def test_prune_and_frontier_take_scores(run: Run) -> None:
    assert run("score", TINY, *SHAPE, *DATA, "-o", "scores.json").code == 0
    asked = (*SHAPE, *TORCH, "--scores", "scores.json")
    pruned = run("prune", TINY, *asked, "--params", "60%", "-o", "slim.pt", "--json")
    assert pruned.json["importance"] == "taylor"
    assert not any("accuracy is unknown" in text for text in pruned.json["warnings"])
    swept = run("frontier", TINY, *asked, "--cost", "params")
    assert "taylor importance" in swept.out


def test_prune_takes_steps_with_data_alone(run: Run) -> None:
    asked = (*SHAPE, *TORCH, "--params", "60%", "--steps", "2", "-o", "slim.pt")
    done = run("prune", TINY, *asked, *DATA, "--json")
    assert done.code == 0, done.err
    assert done.json["importance"] == "taylor"
    assert done.json["params"]["slim"] <= 0.6 * done.json["params"]["dense"]
    for wrong in ((), (*DATA, "--scores", "scores.json")):
        assert run("prune", TINY, *asked, *wrong, "--force").err == (
            "mdp-fx: error: --steps gathers importance anew after each step: give it --data, and no --scores\n"
        )


def test_scores_of_another_model_are_one_line(run: Run) -> None:
    assert run("score", TINY, *SHAPE, "-o", "scores.json").code == 0
    ran = run("prune", "torchvision:resnet18", *SHAPE, *TORCH, "--scores", "scores.json", "-o", "slim.pt")
    assert ran.code == 1
    assert ran.err.startswith("mdp-fx: error: the scores belong to another model: ")


def test_an_output_that_exists_needs_force(run: Run, folder: Path) -> None:
    (folder / "scores.json").write_text("mine")
    ran = run("score", TINY, *SHAPE, "-o", "scores.json")
    assert (ran.code, (folder / "scores.json").read_text()) == (1, "mine")
    assert "--force" in ran.err
    assert run("prune", TINY, *SHAPE, "--scores", "scores.json", "-o", "scores.json", "--force").code == 1
    assert (folder / "scores.json").read_text() == "mine"


def test_importance_with_scores_is_refused(run: Run) -> None:
    assert run("score", TINY, *SHAPE, "-o", "scores.json").code == 0
    ran = run("prune", TINY, *SHAPE, *TORCH, "--scores", "scores.json", "--importance", "l1", "-o", "slim.pt")
    assert ran.err == "mdp-fx: error: scores take the place of scoring: leave out importance and data, or the scores\n"
