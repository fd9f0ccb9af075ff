"""The curve of importance against a cost: every point is the best within its cost, nothing lies above the curve."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest

from mdp_fx.errors import InputError, SolverError
from mdp_fx.passes.frontier import FrontierPoint, _knees, frontier
from mdp_fx.passes.search_space import Selection, evaluate, importance, violations
from mdp_fx.passes.solvers import elimination
from tests.passes.spaces import best_importance, chain_space, emptying_space, every_selection, random_space, scaled


@pytest.mark.parametrize("seed", range(30))
def test_every_point_is_the_best_within_its_cost(seed: int) -> None:
    space = (random_space if seed % 2 else emptying_space)(seed)
    points = frontier(space)
    for point in points:
        assert violations(space, point.selection) == []
        assert evaluate(space, point.selection)["latency"] == pytest.approx(point.cost)
        assert importance(space, point.selection) == pytest.approx(point.importance)
        best = best_importance(space, {"latency": point.cost})
        assert best == pytest.approx(point.importance)
    for low, high in itertools.pairwise(points):
        assert low.cost < high.cost
        assert low.importance < high.importance


@pytest.mark.parametrize("seed", range(30))
def test_nothing_lies_above_the_curve(seed: int) -> None:
    space = (random_space if seed % 2 else emptying_space)(seed)
    points = frontier(space)
    cost, kept = [p.cost for p in points], [p.importance for p in points]
    for selection in every_selection(space):
        at = evaluate(space, selection)["latency"]
        assert at >= cost[0] - 1e-9
        assert importance(space, selection) <= np.interp(at, cost, kept) + 1e-6 * max(kept[-1], 1.0)


def test_fewer_points_keep_the_ends() -> None:
    space = random_space(18)
    every, few = frontier(space), frontier(space, most=2)
    assert len(every) > 2
    assert [p.cost for p in few] == [every[0].cost, every[-1].cost]


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**30])
def test_the_curve_does_not_depend_on_what_importance_is_counted_in(factor: float) -> None:
    space = random_space(18)
    curves = [[(p.cost, p.selection, p.knee) for p in frontier(one)] for one in (space, scaled(space, factor))]
    assert curves[0] == curves[1]


def test_methods_have_their_own_costs() -> None:
    space = random_space(18)
    assert all(not p.selection.removed_blocks for p in frontier(space, method="mdlm"))


def test_knees_are_where_the_curve_bends() -> None:
    nothing = Selection({})
    line = [FrontierPoint(float(c), float(k), nothing) for c, k in [(0, 0), (1, 8), (5.5, 9), (10, 10)]]
    assert _knees(line) == {1}
    straight = [FrontierPoint(float(c), float(c), nothing) for c in range(5)]
    assert _knees(straight) == set()


def test_what_cannot_be_swept() -> None:
    with pytest.raises(InputError, match="no cost 'joules' to sweep; the search space has latency"):
        frontier(chain_space(), "joules")
    with pytest.raises(InputError, match="no curve for the method 'uniform'"):
        frontier(chain_space(), method="uniform")
    with pytest.raises(InputError, match="the number of points is 1; it must be an int of at least 2"):
        frontier(chain_space(), most=1)
    with (
        patch.object(elimination, "MOST_CELLS", 5),
        pytest.raises(SolverError, match="cannot be swept: eliminating"),
    ):
        frontier(chain_space())
