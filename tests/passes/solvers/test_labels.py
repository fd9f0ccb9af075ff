"""Lists of selections: the best one above a threshold, or the proof that there is none."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest

from mdp_fx.passes.search_space import evaluate
from mdp_fx.passes.solvers import Limits, labels
from mdp_fx.passes.solvers.dual import minimise
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.labels import OutOfTimeError, TooManyLabelsError, _Labels, _undominated, best_above
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import best_importance, emptying_space, random_space

LIMITS = Limits(gap=0.0, deadline=math.inf, threads=1, seed=0)


@pytest.mark.parametrize("costs", [("latency",), ("latency", "params")])
@pytest.mark.parametrize("seed", range(40))
def test_the_best_above_a_threshold(seed: int, costs: tuple[str, ...]) -> None:
    space = (random_space if seed % 2 else emptying_space)(seed)
    dense = evaluate(space, space.dense())
    budgets = {name: 0.6 * dense[name] for name in costs}
    best = best_importance(space, budgets)
    graph = DecisionGraph(compile_problem(space, budgets), costs)
    dual = minimise(graph, budgets, LIMITS)
    beliefs = graph.beliefs(dual.valuation)
    for threshold in (0.0, *(() if best is None else (0.5 * best, best))):
        found = best_above(graph, dual.valuation, beliefs, dual.budgets, threshold)
        assert (None if found is None else found.worth) == (None if best is None else pytest.approx(best))
    above = 1.0 if best is None else best + 1e-6 * max(best, 1.0)
    assert best_above(graph, dual.valuation, beliefs, dual.budgets, above) is None


@pytest.mark.parametrize("unit", [1.0, 1e-17])
def test_the_better_of_two_labels_stays(unit: float) -> None:
    """In each of many states: one label, one that costs more and is worth more, one that costs more and is not."""
    states = 100_000
    state = np.repeat(np.arange(states), 3)
    worth = np.tile([7.0, 7.0 + 1e-9, 7.0], states) * unit
    costs = np.tile([1.0, 2.0, 3.0], states)[None]
    kept = _undominated(_Labels(state, np.zeros(len(state)), worth, costs, state, []))
    assert kept.state.tolist() == np.repeat(np.arange(states), 2).tolist()
    assert sorted(set(kept.costs[0].tolist())) == [1.0, 2.0]


def test_with_two_costs_the_best_few_beat_others() -> None:
    rng = np.random.default_rng(0)
    state, worth = np.repeat([0, 1, 5], 200), rng.integers(0, 9, 600).astype(float)
    costs = rng.integers(0, 9, (2, 600)).astype(float)
    kept = _undominated(_Labels(state, 20 + costs.sum(axis=0) - worth, worth, costs, np.arange(600), []))
    for one in (0, 1, 5):
        every = {(w, *-c) for w, c in zip(worth[state == one], costs.T[state == one], strict=True)}
        best = {a for a in every if not any(a != b and all(x <= y for x, y in zip(a, b, strict=True)) for b in every)}
        found = [(w, *-c) for s, w, c in zip(kept.state, kept.worth, kept.costs.T, strict=True) if s == one]
        assert best <= set(found)
        assert len(found) < 100
    assert (np.diff(kept.state) >= 0).all()


def test_the_deadline_ends_the_listing() -> None:
    space = random_space(18)
    budgets = {"latency": 0.6 * evaluate(space, space.dense())["latency"]}
    graph = DecisionGraph(compile_problem(space, budgets), ["latency"])
    dual = minimise(graph, budgets, LIMITS)
    with pytest.raises(OutOfTimeError):
        best_above(graph, dual.valuation, graph.beliefs(dual.valuation), dual.budgets, 0.0, deadline=0.0)


def test_too_many_are_not_listed() -> None:
    space = random_space(18)
    budgets = {"latency": 0.6 * evaluate(space, space.dense())["latency"]}
    graph = DecisionGraph(compile_problem(space, budgets), ["latency"])
    dual = minimise(graph, budgets, LIMITS)
    with patch.object(labels, "MOST_LABELS", 1), pytest.raises(TooManyLabelsError):
        best_above(graph, dual.valuation, graph.beliefs(dual.valuation), dual.budgets, 0.0)
