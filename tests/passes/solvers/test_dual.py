"""The dual bound: never below the optimum, as low as convexity allows, negative where nothing is within the budgets."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest

from mdp_fx.passes.search_space import SearchSpace, evaluate
from mdp_fx.passes.solvers import Limits, elimination
from mdp_fx.passes.solvers.dual import lagrangian_bound, minimise
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import MINLP_DATA, best_importance, chain_space, emptying_space, random_space

LIMITS = Limits(gap=0.0, deadline=math.inf, threads=1, seed=0)


@pytest.mark.parametrize("costs", [("latency",), ("latency", "params")])
@pytest.mark.parametrize("seed", range(40))
def test_the_bound_is_never_below_the_optimum(seed: int, costs: tuple[str, ...]) -> None:
    space = (random_space if seed % 2 else emptying_space)(seed)
    dense = evaluate(space, space.dense())
    budgets = {name: (0.2 + 0.02 * seed) * dense[name] for name in costs}
    best = best_importance(space, budgets)
    bound = lagrangian_bound(compile_problem(space, budgets), budgets, LIMITS)
    assert bound >= (0.0 if best is None else best) - 1e-9 * max(best or 0.0, 1.0) or best is None


def test_out_of_reach_is_a_negative_bound() -> None:
    assert lagrangian_bound(compile_problem(chain_space(), ["latency"]), {"latency": 2.9}, LIMITS) < 0


def test_the_bound_of_a_chain() -> None:
    # By hand: lines of the selections around a budget of 9 cross at the bound.
    bound = lagrangian_bound(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS)
    assert 8.0 <= bound < 10.0


def test_too_wide_has_no_bound() -> None:
    with patch.object(elimination, "MOST_CELLS", 5):
        assert lagrangian_bound(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS) == math.inf


@pytest.mark.skipif(not MINLP_DATA.exists(), reason="needs the MINLPs recorded with MDP")
def test_a_real_bound_lies_close_above_the_optimum() -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    graph = DecisionGraph(compile_problem(space, budgets), ["latency"])
    dual = minimise(graph, budgets, LIMITS)
    assert 4648466 <= dual.bound <= 4648466 * 1.005
    assert dual.best is not None
    assert dual.best.costs[0] <= budgets["latency"] * (1 + 1e-9)
