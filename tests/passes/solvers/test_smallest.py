"""The smallest cost, by elimination and by the exact model."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import pytest

from mdp_fx.passes.search_space import CostModel, violations
from mdp_fx.passes.solvers import Limits, elimination
from mdp_fx.passes.solvers.problem import REMOVED, compile_problem, count_removed
from mdp_fx.passes.solvers.smallest import smallest_cost
from tests.passes.spaces import chain_space, emptying_space, every_selection, random_space, true_costs

LIMITS = Limits(gap=0.1, deadline=math.inf, threads=1, seed=0)


@pytest.mark.parametrize("cells", [elimination.MOST_CELLS, 5])
@pytest.mark.parametrize("most", [None, 0, 1])
@pytest.mark.parametrize("seed", range(12))
def test_the_smallest_cost(seed: int, most: int | None, cells: int) -> None:
    space = (random_space if seed % 2 else emptying_space)(seed)
    members = [s for s in every_selection(space) if most is None or len(s.removed_blocks) <= most]
    problem = compile_problem(space, ["latency"])
    budgets = {} if most is None else {REMOVED: float(most)}
    with patch.object(elimination, "MOST_CELLS", cells):
        outcome = smallest_cost(problem if most is None else count_removed(problem), "latency", LIMITS, budgets)
    assert outcome.selection is not None
    assert len(outcome.selection.removed_blocks) <= (len(space.blocks) if most is None else most)
    smallest = min(true_costs(space, member)["latency"] for member in members)
    assert true_costs(space, outcome.selection)["latency"] == pytest.approx(smallest)
    assert outcome.bound == pytest.approx(outcome.objective)


@pytest.mark.parametrize("cells", [elimination.MOST_CELLS, 0])
def test_the_smallest_cost_of_what_costs_nothing(cells: int) -> None:
    free = replace(chain_space(), costs={"params": CostModel("params", 0.0, ())})
    with patch.object(elimination, "MOST_CELLS", cells):
        outcome = smallest_cost(compile_problem(free, ["params"]), "params", LIMITS, {})
    assert outcome.selection is not None
    assert violations(free, outcome.selection) == []
    assert outcome.bound == outcome.objective == 0.0
