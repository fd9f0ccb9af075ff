"""Lists of selections: the best one above a threshold, or the proof that there is none."""

from __future__ import annotations

import time
from unittest.mock import patch

import pytest

from mdp_fx.passes.search_space import evaluate
from mdp_fx.passes.solvers import labels
from mdp_fx.passes.solvers.dual import minimise
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.labels import TooManyLabelsError, best_above
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import best_importance, emptying_space, random_space


@pytest.mark.parametrize("costs", [("latency",), ("latency", "params")])
@pytest.mark.parametrize("seed", range(40))
def test_the_best_above_a_threshold(seed: int, costs: tuple[str, ...]) -> None:
    space = (random_space if seed % 2 else emptying_space)(seed)
    dense = evaluate(space, space.dense())
    budgets = {name: 0.6 * dense[name] for name in costs}
    best = best_importance(space, budgets)
    graph = DecisionGraph(compile_problem(space, budgets), costs)
    dual = minimise(graph, budgets, 0.0, time.monotonic() + 60)
    beliefs = graph.beliefs(dual.valuation)
    for threshold in (0.0, *(() if best is None else (0.5 * best, best))):
        found = best_above(graph, dual.valuation, beliefs, dual.budgets, threshold)
        assert (None if found is None else found.worth) == (None if best is None else pytest.approx(best))
    above = 1.0 if best is None else best + 1e-6 * max(best, 1.0)
    assert best_above(graph, dual.valuation, beliefs, dual.budgets, above) is None


def test_too_many_are_not_listed() -> None:
    space = random_space(18)
    budgets = {"latency": 0.6 * evaluate(space, space.dense())["latency"]}
    graph = DecisionGraph(compile_problem(space, budgets), ["latency"])
    dual = minimise(graph, budgets, 0.0, time.monotonic() + 60)
    with patch.object(labels, "MOST_LABELS", 1), pytest.raises(TooManyLabelsError):
        best_above(graph, dual.valuation, graph.beliefs(dual.valuation), dual.budgets, 0.0)
