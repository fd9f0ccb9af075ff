"""Scores as a file: round trip, reuse, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mdp_fx
from mdp_fx.errors import InputError
from mdp_fx.scores import Scores
from tests.cli.tiny import make_loader, make_network

INPUTS = torch.randn(1, 3, 16, 16)


def scored(**options: Any) -> Scores:
    return mdp_fx.score(make_network(), INPUTS, **options)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    scores = scored(importance="taylor", data=make_loader())
    scores.save(tmp_path / "scores.json")
    again = Scores.load(tmp_path / "scores.json")
    assert (again.importance, again.fingerprint, again.batches) == ("taylor", scores.fingerprint, 2)
    assert again.versions == scores.versions
    assert [(each.layer, each.group) for each in again.layers] == [(each.layer, each.group) for each in scores.layers]
    assert all(np.array_equal(a.values, b.values) for a, b in zip(again.layers, scores.layers, strict=True))


def test_a_search_space_of_scores_is_that_of_scoring() -> None:
    model = make_network()
    scores = mdp_fx.score(model, INPUTS, importance="fisher", data=make_loader())
    by_scores = mdp_fx.search_space(model, INPUTS, target=None, scores=scores)
    assert by_scores == mdp_fx.search_space(model, INPUTS, target=None, importance="fisher", data=list(make_loader()))
    assert by_scores != mdp_fx.search_space(model, INPUTS, target=None)


def test_defaults_are_those_of_prune() -> None:
    assert scored().importance == "l2"
    assert scored(data=make_loader()).importance == "taylor"


def test_scores_of_another_model_are_refused() -> None:
    other = make_network()
    with torch.no_grad():
        other.head.bias.add_(1e-3)  # type: ignore[operator, union-attr]
    with pytest.raises(InputError, match=r"^the scores belong to another model: "):
        mdp_fx.search_space(other, INPUTS, target=None, scores=scored())


def test_scores_and_what_they_are_made_of_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"^scores take the place of scoring"):
        mdp_fx.search_space(make_network(), INPUTS, target=None, scores=scored(), importance="l2")


def damaged(**changes: Any) -> dict[str, Any]:
    return {**scored().to_json(), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "x holds no mdp-fx scores: make them with mdp-fx score"),
        ({"format": "mdp-fx recipe"}, "x holds no mdp-fx scores: "),
        (damaged(version=9), "x has format version 9, this mdp-fx reads 1; "),
        (damaged(scores=[{"layer": "stem.0"}]), "x: the scores are damaged, make them again (KeyError('group'))"),
        (damaged(scores=3), "x: the scores are damaged, make them again (TypeError"),
        (
            damaged(scores=[{"layer": "stem.0", "group": "stem.0", "values": [-1.0]}]),
            "x: scores of layer 'stem.0' are not numbers of at least 0",
        ),
    ],
)
def test_what_is_no_scores_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Scores.from_json(data, "x")
    assert str(caught.value).startswith(message)


def test_scores_of_another_graph_are_refused() -> None:
    rows = [{"layer": "stem_7", "group": "stem.0", "values": [1.0] * 32}]
    with pytest.raises(InputError, match=r"^the scores were made from another graph of this model \(layer 'stem_7'"):
        mdp_fx.search_space(make_network(), INPUTS, target=None, scores=Scores.from_json(damaged(scores=rows)))


@pytest.mark.parametrize("left", [0, 1])
def test_scores_with_rows_missing_are_refused(left: int) -> None:
    """What is left out would be worth nothing, and go first."""
    rows = scored().to_json()["scores"]
    assert len(rows) > 1
    with pytest.raises(
        InputError, match=rf"^the scores miss a row \(layer '{rows[left]['layer']}', .*: score it again$"
    ):
        mdp_fx.search_space(make_network(), INPUTS, target=None, scores=Scores.from_json(damaged(scores=rows[:left])))


def test_no_file_and_no_json_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read .*: no such file or directory$"):
        Scores.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text(json.dumps({})[:-1])
    with pytest.raises(InputError, match=r"bad.json holds no mdp-fx scores"):
        Scores.load(tmp_path / "bad.json")
