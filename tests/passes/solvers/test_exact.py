"""The exact model: what its variables say, and the proof by parts."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest

from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate, importance
from mdp_fx.passes.solvers import Limits, exact
from mdp_fx.passes.solvers import problem as problems
from mdp_fx.passes.solvers.exact import ExactModel, solve_exact
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import (
    MINLP_DATA,
    best_importance,
    chain_space,
    emptying_space,
    every_selection,
    random_space,
)

LIMITS = Limits(gap=0.0, time_limit=60.0, threads=1, seed=0)


def test_chain_without_a_start() -> None:
    outcome = solve_exact(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS, None)
    assert outcome.selection == Selection({"a": 1, "b": 2}, ())
    assert (outcome.objective, outcome.bound) == pytest.approx((8.0, 8.0))


def test_a_start_is_never_given_up_for_less() -> None:
    space = emptying_space(738)
    budgets = {"latency": 89.21985681698962}
    problem = compile_problem(space, budgets)
    start = Selection({"d0": 4, "d1": 8, "d2": 1}, ())
    assert importance(space, start) == best_importance(space, budgets)
    with patch.object(problems, "MAX_COMBINATIONS", 1), patch.object(exact, "FIRST_REACH", 0.05):
        outcome = solve_exact(compile_problem(space, budgets), budgets, LIMITS, start)
    assert outcome.selection is not None
    assert importance(space, outcome.selection) == problem.worth(start)


def test_infeasible() -> None:
    outcome = solve_exact(compile_problem(chain_space(), ["latency"]), {"latency": 2.9}, LIMITS, None)
    assert (outcome.selection, outcome.bound) == (None, -math.inf)


def test_a_start_that_is_already_best_is_kept() -> None:
    best = Selection({"a": 1, "b": 2}, ())
    outcome = solve_exact(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS, best)
    assert outcome.selection == best
    assert outcome.bound == pytest.approx(8.0)


@pytest.mark.parametrize("reach", [1e-6, 1e-3, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_the_proof_holds_whatever_the_first_reach(reach: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "FIRST_REACH", reach)
    space = random_space(seed)
    costs = [evaluate(space, s)["latency"] for s in every_selection(space)]
    budgets = {"latency": 0.6 * min(costs) + 0.4 * max(costs)}
    best = best_importance(space, budgets)
    assert best is not None
    outcome = solve_exact(compile_problem(space, budgets), budgets, LIMITS, None)
    assert outcome.selection is not None
    assert importance(space, outcome.selection) == pytest.approx(best)
    assert best * (1 - 1e-6) <= outcome.bound <= best * (1 + 1e-5) + 1e-9


def test_the_ones_of_a_selection_are_its_blocks_and_sizes() -> None:
    model = ExactModel(compile_problem(chain_space(), ["latency"]))
    kept = model.ones(Selection({"a": 1, "b": 1}, ()))
    removed = model.ones(Selection({"a": 1, "b": 2}, ("block",)))
    # The block, one size of a and one of b; without the block b has no size.
    assert (len(kept), len(removed)) == (3, 1)
    assert removed < kept
    assert len(model.ones(Selection({"a": 2, "b": 1}, ())) & kept) == 2


@pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")
def test_a_gap_is_enough() -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet101_titan_v.json")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    outcome = solve_exact(compile_problem(space, budgets), budgets, Limits(0.05, 60.0, 1, 0), None)
    assert outcome.bound >= 5246287 * (1 - 1e-9)
    assert outcome.bound <= 1.05 * outcome.objective
