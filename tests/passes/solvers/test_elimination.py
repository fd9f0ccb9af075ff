"""Elimination: the best assignment at any prices, what each cell can be worth, and tables of allowed cells only."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from mdp_fx.passes.search_space import SearchSpace, evaluate, importance
from mdp_fx.passes.solvers import decisions, elimination
from mdp_fx.passes.solvers.decisions import TooWideError
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import chain_space, emptying_space, every_selection, random_space, sum_space

COSTS = ("latency", "params")


def worth(space: SearchSpace, prices: np.ndarray) -> list[float]:
    """Importance less the price of the costs, of every selection."""
    found = []
    for selection in every_selection(space):
        costs = evaluate(space, selection)
        found.append(importance(space, selection) - float(prices @ [costs[name] for name in COSTS]))
    return found


@pytest.mark.parametrize("few", [0, 1, 2])
@pytest.mark.parametrize("make", [random_space, emptying_space])
@pytest.mark.parametrize("seed", range(15))
def test_the_best_at_any_prices(make: type[SearchSpace], seed: int, few: int) -> None:
    space = make(seed)
    with patch.object(decisions, "FEW_DIMS", few):
        graph = DecisionGraph(compile_problem(space, COSTS), COSTS)
    for prices in np.random.default_rng(seed).uniform(0, 3, (3, 2)):
        every = worth(space, prices)
        valuation = graph.value(prices)
        assert valuation.value == pytest.approx(max(every))
        best = graph.best(valuation)
        assert best.worth - prices @ best.costs == pytest.approx(max(every))
        selection = graph.selection(best.options)
        assert importance(space, selection) == pytest.approx(best.worth)
        assert [evaluate(space, selection)[name] for name in COSTS] == pytest.approx(best.costs.tolist())


@pytest.mark.parametrize("seed", range(15))
def test_beliefs_are_the_best_with_a_cell(seed: int) -> None:
    space = emptying_space(seed)
    graph = DecisionGraph(compile_problem(space, COSTS), COSTS)
    prices = np.array([0.7, 0.1])
    valuation = graph.value(prices)
    top = valuation.value + float(prices @ graph.constants)
    for clique, belief in zip(graph.cliques, graph.beliefs(valuation), strict=True):
        assert belief.shape == clique.cells.shape
        assert belief.max() == pytest.approx(top)


@pytest.mark.parametrize("seed", range(15))
def test_allowed_options_are_those_of_good_selections(seed: int) -> None:
    space = random_space(seed)
    problem = compile_problem(space, COSTS)
    graph, prices = DecisionGraph(problem, COSTS), np.array([0.5, 0.2])
    valuation = graph.value(prices)
    every = sorted(worth(space, prices))
    middle = every[len(every) // 2] + float(prices @ graph.constants)
    allowed = graph.allowed(graph.beliefs(valuation), middle - 1e-9)
    wanted = {dim: np.zeros(len(sizes), dtype=bool) for dim, sizes in problem.options.items()}
    for selection, value in zip(every_selection(space), worth(space, prices), strict=True):
        if value + float(prices @ graph.constants) >= middle - 1e-9:
            for dim, sizes in problem.options.items():
                wanted[dim][sizes.index(selection.sizes[dim])] = True
    for dim, mask in wanted.items():
        # The same selection may have another idle option, so more may be allowed than is wanted.
        assert (allowed[dim] | ~mask).all()


def test_a_long_sum_takes_few_cells() -> None:
    space = sum_space(layers=12, options=4)
    graph = DecisionGraph(compile_problem(space, ["latency"]), ["latency"])
    assert sum(len(clique.cells) for clique in graph.cliques) < 12 * 4 * 50


def test_too_wide_is_said() -> None:
    with patch.object(elimination, "MOST_CELLS", 5), pytest.raises(TooWideError, match="tables of more than 5 cells"):
        DecisionGraph(compile_problem(chain_space(), ["latency"]), ["latency"])
    with patch.object(decisions, "MOST_ENTRIES", 2), pytest.raises(TooWideError, match="decisions has 4 entries"):
        DecisionGraph(compile_problem(chain_space(), ["latency"]), ["latency"])
