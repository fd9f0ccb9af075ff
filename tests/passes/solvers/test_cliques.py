"""Cliques and dominated choices: nothing is lost, and the relaxation gets tighter."""

from __future__ import annotations

import math

import numpy as np
import pyomo.environ as pyo
import pytest

from mdp_fx.passes.search_space import CostModel, CostTerm, Dimension, ImportanceTerm, SearchSpace, evaluate
from mdp_fx.passes.solvers import Limits
from mdp_fx.passes.solvers.cliques import efficient, form_cliques
from mdp_fx.passes.solvers.exact import ExactModel, linear
from mdp_fx.passes.solvers.highs import HighsModel
from mdp_fx.passes.solvers.problem import DimAxis, Problem, compile_problem
from tests.passes.spaces import axis


def ring_space(*names: str) -> SearchSpace:
    """Dimensions in a ring, every neighbouring pair a table that is the product of its sizes."""
    sizes = (1, 2, 3)
    pairs = zip(names, (*names[1:], names[0]), strict=True)
    terms = tuple(
        CostTerm(
            a + b,
            None,
            (axis("out", b, points=sizes), axis("in", a, points=sizes)),
            np.outer(sizes, sizes).astype(float),
        )
        for a, b in pairs
    )
    return SearchSpace(
        dimensions=tuple(Dimension(n, sizes) for n in names),
        blocks=(),
        exclusive=(),
        importance=tuple(ImportanceTerm(n, n, None, (1.0, 2.0, 3.5)) for n in names),
        costs={"latency": CostModel("us", 0.0, terms)},
    )


def relaxed_bound(problem: Problem, budget: float) -> float:
    exact = ExactModel(problem)
    exact.model.budget = pyo.Constraint(expr=(None, linear(exact.costs["latency"]), budget))
    exact.model.objective = pyo.Objective(expr=exact.importance, sense=pyo.maximize)
    relaxed = HighsModel(exact.model, Limits(0.0, math.inf, 1, 0)).relax()
    assert relaxed is not None
    return relaxed.bound


def test_triangle_becomes_one_factor() -> None:
    problem = compile_problem(ring_space("a", "b", "c"), ["latency"])
    assert len(problem.factors) == 3
    (factor,) = form_cliques(problem).factors
    assert factor.axes == (DimAxis("a"), DimAxis("b"), DimAxis("c"))
    assert factor.ties == ()
    # Every cell holds the sum of the three tables.
    assert factor.tables["latency"][2, 0, 1] == 3 * 1 + 1 * 2 + 2 * 3
    # All dimensions are this factor's own, so of the 27 combinations only efficient ones stay, the dense one too.
    assert factor.support is not None
    assert factor.support[2, 2, 2]
    assert factor.support.sum() < 27


def test_square_becomes_two_triangles_that_share_a_pair() -> None:
    factors = form_cliques(compile_problem(ring_space("a", "b", "c", "d"), ["latency"])).factors
    assert [len(f.axes) for f in factors] == [3, 3]
    assert factors[0].ties == factors[1].ties
    (tie,) = factors[0].ties
    assert set(tie) == set(factors[0].axes) & set(factors[1].axes)
    total = sum(float(f.tables["latency"].max()) for f in factors)
    assert total == 4 * 9


def test_chain_stays_as_it_is() -> None:
    space = ring_space("a", "b", "c")
    model = space.costs["latency"]
    chain = SearchSpace(space.dimensions, (), (), space.importance, {"latency": CostModel("us", 0.0, model.terms[:2])})
    factors = form_cliques(compile_problem(chain, ["latency"])).factors
    assert sorted(len(f.axes) for f in factors) == [2, 2]


def test_large_cliques_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.passes.solvers.cliques.MAX_CELLS", 26)
    problem = compile_problem(ring_space("a", "b", "c"), ["latency"])
    assert len(form_cliques(problem).factors) == 3


@pytest.mark.parametrize("names", ["abc", "abcd", "abcde"])
def test_relaxation_is_never_looser(names: str) -> None:
    space = ring_space(*names)
    problem = compile_problem(space, ["latency"])
    for share in (0.2, 0.35, 0.5, 0.7):
        budget = share * evaluate(space, space.dense())["latency"]
        assert relaxed_bound(form_cliques(problem), budget) <= relaxed_bound(problem, budget) + 1e-6


def test_relaxation_of_a_triangle_is_tighter() -> None:
    space = ring_space("a", "b", "c")
    problem = compile_problem(space, ["latency"])
    budget = 0.5 * evaluate(space, space.dense())["latency"]
    assert relaxed_bound(form_cliques(problem), budget) < relaxed_bound(problem, budget) - 0.01


def test_efficient_points() -> None:
    rng = np.random.default_rng(0)
    for criteria in (2, 3):
        goods = rng.integers(0, 4, (criteria, 5, 12)).astype(float)
        mask = efficient(goods)
        for row in range(5):
            points = goods[:, row]
            for i in range(12):
                others = [j for j in range(12) if mask[row, j] and j != i]
                beaten = any((points[:, j] >= points[:, i]).all() for j in others)
                assert mask[row, i] != beaten
