"""Sizes between the positions of a table: no better selection exists than the exact one, whatever the table says."""

from __future__ import annotations

import numpy as np
import pytest

from mdp_fx.errors import BudgetError
from mdp_fx.passes.minlp import solve
from mdp_fx.passes.search_space import CostAxis, CostModel, CostTerm, Dimension, ImportanceTerm, SearchSpace, SizeTerm
from mdp_fx.passes.search_space import evaluate as costs_of
from mdp_fx.passes.solvers import problem
from tests.passes.spaces import best_importance


def layer_that_reads_a_sum(seed: int) -> SearchSpace:
    """One table over a dimension and the sum of two others, with times that follow nothing."""
    rng = np.random.default_rng(seed)
    dims = tuple(
        Dimension(f"d{i}", tuple(8 * int(size) for size in sorted(rng.choice(range(1, 9), 3, replace=False))))
        for i in range(3)
    )
    importance = tuple(
        ImportanceTerm(f"l{i}", dim.name, None, tuple(np.cumsum(rng.random(3)).tolist())) for i, dim in enumerate(dims)
    )
    one, *two = rng.permutation(3)
    low, high = (sum(dims[i].sizes[end] for i in two) for end in (0, -1))
    points = tuple(sorted({low, high, *(int(point) for point in np.linspace(low, high, 4))}))
    axes = (
        CostAxis("in", 0, (SizeTerm(1, (dims[one].name,)),), dims[one].sizes),
        CostAxis("out", 0, tuple(SizeTerm(1, (dims[i].name,)) for i in two), points),
    )
    table = 10 * rng.random([len(axis.points) for axis in axes])
    terms = (CostTerm("r", None, axes, table),)
    return SearchSpace(dims, (), (), importance, {"latency": CostModel("us", 0.5, terms)}, {})


@pytest.mark.parametrize("seed", range(60))
def test_the_optimum_is_found_and_nothing_reachable_is_called_unreachable(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "MAX_COMBINATIONS", 1)
    space = layer_that_reads_a_sum(seed)
    share = np.random.default_rng(seed + 1000).uniform(0.3, 0.9)
    budgets = {"latency": share * costs_of(space, space.dense())["latency"]}
    best = best_importance(space, budgets)
    if best is None:
        with pytest.raises(BudgetError):
            solve(space, budgets, gap=1e-6, threads=1)
        return
    _, certificate = solve(space, budgets, gap=1e-6, threads=1)
    assert certificate.objective == pytest.approx(best)
    assert certificate.bound is not None
    assert certificate.bound >= best - 1e-9
