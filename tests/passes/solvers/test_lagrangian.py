"""The Lagrangian solver: the optimum with proof, and the exact model where it cannot go on alone."""

from __future__ import annotations

import logging
import math
from unittest.mock import patch

import pytest

from mdp_fx.passes.search_space import SearchSpace, evaluate, importance
from mdp_fx.passes.solvers import Limits, elimination, labels, lagrangian
from mdp_fx.passes.solvers.exact import solve_exact
from mdp_fx.passes.solvers.lagrangian import solve_auto, solve_lagrangian
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import (
    MINLP_DATA,
    best_importance,
    chain_space,
    emptying_space,
    needs_minlp_data,
    random_space,
    wide_space,
)

LIMITS = Limits(gap=0.0, deadline=math.inf, threads=1, seed=0)


def test_what_is_too_much_to_list_is_for_the_exact_model(caplog: pytest.LogCaptureFixture) -> None:
    space = emptying_space(4)
    budgets = {"latency": 0.38 * evaluate(space, space.dense())["latency"]}
    with patch.object(labels, "MOST_LABELS", 0), caplog.at_level(logging.INFO):
        outcome = solve_lagrangian(compile_problem(space, budgets), budgets, LIMITS)
    assert "too many selections to list" in caplog.text
    assert outcome.objective == pytest.approx(best_importance(space, budgets))


def test_a_budget_that_is_met_exactly() -> None:
    outcome = solve_lagrangian(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS)
    assert outcome.objective == outcome.bound == 8.0


def test_too_wide_falls_back_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    problem = compile_problem(chain_space(), ["latency"])
    with patch.object(elimination, "MOST_CELLS", 5), caplog.at_level(logging.WARNING):
        outcome = solve_lagrangian(problem, {"latency": 9.0}, LIMITS)
    assert (outcome.objective, outcome.solver) == (pytest.approx(8.0), "exact")
    assert "exact decided" in caplog.text


@needs_minlp_data
def test_the_answer_at_the_time_limit_is_a_good_one() -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    late = Limits(gap=0.0, deadline=0.0, threads=1, seed=0)
    outcome = solve_lagrangian(compile_problem(space, budgets), budgets, late)
    assert outcome.selection is not None
    assert outcome.objective == importance(space, outcome.selection) > 0.95 * 4648466
    assert outcome.bound >= 4648466


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_width_that_all_share_is_decided_first(share: float) -> None:
    space = wide_space(8)
    budgets = {"latency": share * evaluate(space, space.dense())["latency"]}
    problem = compile_problem(space, budgets)
    # Far fewer than the whole would take (at a tenth and three tenths of the cost).
    with patch.object(labels, "MOST_LABELS", 20_000), patch.object(lagrangian, "_exact_on_the_rest", None):
        outcome = solve_lagrangian(problem, budgets, LIMITS)
    optimum = solve_exact(problem, budgets, LIMITS).objective
    assert (outcome.objective, outcome.bound) == pytest.approx((optimum, optimum))


@pytest.mark.parametrize("checks", [0, 20, 30, 40])
def test_of_a_width_that_is_not_decided_in_time_the_best_known_counts(checks: int) -> None:
    space = wide_space(8)
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    problem = compile_problem(space, budgets)
    best = solve_lagrangian(problem, budgets, LIMITS).objective
    left = iter([1.0] * checks)  # The clock is looked at so often before the time is over.
    with patch.object(Limits, "seconds_left", lambda _: next(left, 0.0)):
        outcome = solve_lagrangian(problem, budgets, LIMITS)
    assert outcome.selection is not None
    assert 0.9 * best < outcome.objective <= best <= outcome.bound + 1e-9


def test_auto_says_who_decided() -> None:
    problem = compile_problem(chain_space(), ["latency"])
    assert solve_auto(problem, {"latency": 9.0}, LIMITS).solver == "lagrangian"
    with patch.object(elimination, "MOST_CELLS", 5):
        assert solve_auto(problem, {"latency": 9.0}, LIMITS).solver == "exact"


@needs_minlp_data
@pytest.mark.parametrize(
    ("network", "share", "optimum"),
    [("resnet50", 0.7, 6258543), ("resnet50", 0.15, 3427480), ("resnet101", 0.3, 5246287), ("resnet101", 0.1, 3350920)],
)
def test_real_instances(network: str, share: float, optimum: int) -> None:
    space = SearchSpace.load(MINLP_DATA / f"{network}_titan_v.json")
    budgets = {"latency": share * evaluate(space, space.dense())["latency"]}
    outcome = solve_lagrangian(compile_problem(space, budgets), budgets, LIMITS)
    assert (outcome.objective, outcome.bound) == pytest.approx((optimum, optimum), rel=1e-6)


def test_the_gap_that_is_enough() -> None:
    space = random_space(11)
    budgets = {"latency": 0.6 * evaluate(space, space.dense())["latency"]}
    loose = Limits(gap=0.2, deadline=math.inf, threads=1, seed=0)
    outcome = solve_lagrangian(compile_problem(space, budgets), budgets, loose)
    best = best_importance(space, budgets)
    assert best is not None
    assert outcome.objective <= best + 1e-9 <= outcome.bound + 2e-9
    assert outcome.bound <= outcome.objective * 1.2 + 1e-9
