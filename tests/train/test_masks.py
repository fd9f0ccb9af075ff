"""Masks in force: what each kind leaves to a solver, and what it does to scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdp_fx.errors import InputError
from mdp_fx.passes.importance import LayerImportance, score
from mdp_fx.pipeline import analyse
from mdp_fx.train.masks import RETURNING, Masks, check_masks, check_trained
from tests.train.networks import small


def masked(kind: str) -> tuple[Masks, tuple[LayerImportance, ...]]:
    analysis = analyse(small(), (torch.randn(2, 3, 8, 8),))
    masks = Masks(analysis, kind)
    kept = masks.kept | {"stem.0": list(range(8)), "one.first.0": [3, 1]}
    assert masks.choose(kept, ["two"]) == 0
    return masks, score(analysis.graph, analysis.groups, "l2")


def test_hard_masks_give_nothing_back() -> None:
    masks, scores = masked("hard")
    assert masks.at_most() == {"stem.0": 8, "one.first.0": 2, "two.first.0": 24}
    assert masks.gone() == ("two",)
    (first,) = (each.values for each in masks.standing(scores, "l2") if each.layer == "one_first_0")
    assert np.flatnonzero(first).tolist() == [1, 3]


def test_a_kept_unit_comes_before_a_masked_one_whatever_it_is_worth() -> None:
    masks, _ = masked("hard")
    (found,) = masks.standing([LayerImportance("one_first_0", "one.first.0", np.zeros(24))], "taylor")
    assert np.flatnonzero(found.values).tolist() == [1, 3]
    assert found.values.max() < 1e-9


def test_soft_masks_leave_all_to_choose() -> None:
    masks, scores = masked("soft")
    assert masks.at_most() == {}
    assert masks.gone() == ()
    assert masks.standing(scores, "l2") == scores
    back = masks.choose({name: list(range(size)) for name, size in (("stem.0", 16), ("one.first.0", 24))}, [])
    assert back == 8 + 22


def test_gradients_of_softly_masked_units_are_discounted() -> None:
    masks, scores = masked("soft")
    found = {each.group: each.values for each in masks.standing(scores, "taylor-input")}
    before = {each.group: each.values for each in scores}
    assert np.allclose(found["one.first.0"][[1, 3]], before["one.first.0"][[1, 3]])
    assert np.allclose(found["one.first.0"][4:], RETURNING * before["one.first.0"][4:])
    assert np.allclose(found["two.first.0"], RETURNING * before["two.first.0"]), "those of a removed block are masked"


def test_units_of_a_removed_block_do_not_come_back() -> None:
    masks, _ = masked("soft")
    dense = {"one.first.0": list(range(24))}
    assert masks.choose(dense, ["one", "two"], {"one.first.0", "two.first.0"}) == 0


def test_hard_masks_zero_the_weights_and_soft_ones_do_not() -> None:
    for kind in ("hard", "soft"):
        masks, _ = masked(kind)
        assert bool(masks.network.tensor("one.first.0.weight")[5].any()) == (kind == "soft")


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_slim_network_follows_the_trained_weights_and_statistics(kind: str) -> None:
    masks, _ = masked(kind)
    with torch.no_grad():
        masks.network.tensor("stem.0.weight").add_(0.1)
        masks.network.tensor("stem.1.running_mean").add_(0.3)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(masks.slim()(x), masks.module.eval()(x), atol=1e-5)


def test_filters_that_batch_norms_hide_are_not_asked() -> None:
    check_trained("taylor", small())
    check_trained("taylor-filter", torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(
        InputError, match=r"^taylor-filter importance says nothing while batch norms train: .*; take taylor"
    ):
        check_trained("taylor-filter", small())


def test_what_cannot_be_asked() -> None:
    check_masks("soft", "taylor", 1)
    check_masks("hard", "taylor", 9)
    with pytest.raises(InputError, match="fisher importance says nothing of softly masked channels"):
        check_masks("soft", "fisher", 2)
    with pytest.raises(InputError, match="unknown masks 'firm'; there are hard, soft"):
        check_masks("firm", "l2", 1)
