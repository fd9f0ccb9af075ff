"""The exact model: what its variables say, and the proof by parts."""

from __future__ import annotations

import math
from unittest.mock import patch

import highspy
import numpy as np
import pyomo.environ as pyo
import pytest

from mdp_fx.passes.minlp import solve
from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate, importance
from mdp_fx.passes.solvers import Limits, exact
from mdp_fx.passes.solvers import problem as problems
from mdp_fx.passes.solvers.exact import ExactModel, improve, solve_exact
from mdp_fx.passes.solvers.highs import HighsModel
from mdp_fx.passes.solvers.local import local_search
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import (
    MINLP_DATA,
    best_importance,
    chain_space,
    emptying_space,
    every_selection,
    needs_minlp_data,
    random_space,
    sum_space,
)

LIMITS = Limits(gap=0.0, deadline=math.inf, threads=1, seed=0)


def test_chain_without_a_start() -> None:
    outcome = solve_exact(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS)
    assert outcome.selection == Selection({"a": 1, "b": 2}, ())
    assert (outcome.objective, outcome.bound) == pytest.approx((8.0, 8.0))


def test_a_start_is_never_given_up_for_less() -> None:
    space = emptying_space(738)
    budgets = {"latency": 89.21985681698962}
    problem = compile_problem(space, budgets)
    start = Selection({"d0": 4, "d1": 8, "d2": 1}, ())
    assert importance(space, start) == best_importance(space, budgets)
    with patch.object(problems, "MAX_COMBINATIONS", 1), patch.object(exact, "FIRST_REACH", 0.05):
        outcome = improve(compile_problem(space, budgets), budgets, LIMITS, start)
    assert outcome.selection is not None
    assert importance(space, outcome.selection) == problem.worth(start)


def test_after_the_deadline_the_first_selection_is_the_answer() -> None:
    best = Selection({"a": 1, "b": 2}, ())
    late = Limits(gap=0.0, deadline=0.0, threads=1, seed=0)
    with patch.object(exact, "ExactModel", side_effect=AssertionError("a model was built")):
        outcome = improve(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, late, best)
    assert (outcome.selection, outcome.objective, outcome.bound) == (best, 8.0, math.inf)


def test_infeasible() -> None:
    outcome = solve_exact(compile_problem(chain_space(), ["latency"]), {"latency": 2.9}, LIMITS)
    assert (outcome.selection, outcome.bound) == (None, -math.inf)


def test_a_start_that_is_already_best_is_kept() -> None:
    best = Selection({"a": 1, "b": 2}, ())
    outcome = improve(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS, best)
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
    outcome = solve_exact(compile_problem(space, budgets), budgets, LIMITS)
    assert outcome.selection is not None
    assert importance(space, outcome.selection) == pytest.approx(best)
    assert best * (1 - 1e-6) <= outcome.bound <= best * (1 + 1e-5) + 1e-9


def test_the_values_of_a_selection_are_its_blocks_and_sizes() -> None:
    model = ExactModel(compile_problem(chain_space(), ["latency"]))
    # The block, a=1, a=2, b=1, b=2; without the block b has no size.
    assert [*model.values(Selection({"a": 1, "b": 1}, ())).values()] == [1, 1, 0, 1, 0]
    assert [*model.values(Selection({"a": 1, "b": 2}, ("block",))).values()] == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("combinations", [1, 64])
def test_a_first_solution_is_one(combinations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to what HiGHS is given to start with, the model has the solution that is meant, whatever else is whole."""
    given: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(highspy.Highs, "setSolution", lambda _, __, *columns: given.append(columns))
    monkeypatch.setattr(problems, "MAX_COMBINATIONS", combinations)
    space = sum_space(layers=3, options=4)
    budgets = {"latency": 0.5 * evaluate(space, space.dense())["latency"]}
    problem = compile_problem(space, budgets)
    start = local_search(problem, budgets)
    assert start is not None
    exact = ExactModel(problem)
    exact.hold_to(budgets)
    exact.model.objective = pyo.Objective(expr=exact.importance, sense=pyo.maximize)
    compiled, known = HighsModel(exact.model, LIMITS), exact.values(start)
    nothing = np.zeros(len(compiled.columns), dtype=bool)
    compiled.solve(nothing, {i: known[id(v)] for i, v in enumerate(compiled.columns) if id(v) in known})
    ((indices, values),) = given
    for index, value in zip(indices, values, strict=True):
        compiled.columns[index].setlb(value)
        compiled.columns[index].setub(value)
    assert HighsModel(exact.model, LIMITS).solve(nothing).objective == pytest.approx(problem.worth(start))


@needs_minlp_data
@pytest.mark.parametrize(("share", "mindtpy"), [(0.7, 6258543), (None, 6864471)])
def test_as_good_as_mindtpy_within_the_gap(share: float | None, mindtpy: int) -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json")
    budgets = space.budgets if share is None else {"latency": share * evaluate(space, space.dense())["latency"]}
    _, certificate = solve(space, budgets, solver="exact", gap=1e-4, threads=1)
    assert certificate.objective >= mindtpy


@needs_minlp_data
def test_a_gap_is_enough() -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet101_titan_v.json")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    outcome = solve_exact(compile_problem(space, budgets), budgets, Limits(0.05, math.inf, 1, 0))
    assert outcome.bound >= 5246287 * (1 - 1e-9)
    assert outcome.bound <= 1.05 * outcome.objective
