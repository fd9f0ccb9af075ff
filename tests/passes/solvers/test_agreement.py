"""Every solver of the registry against exhaustion, on random spaces with every feature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mdp_fx.errors import BudgetError, SolverError
from mdp_fx.passes.minlp import solve
from mdp_fx.passes.search_space import SearchSpace, evaluate, normalise, violations
from mdp_fx.passes.solvers import SOLVERS, cliques, exact, labels, problem
from tests.passes.solvers.test_mindtpy import needs_nlp_solver
from tests.passes.spaces import (
    MINLP_DATA,
    best_importance,
    emptying_space,
    members_of,
    needs_minlp_data,
    random_space,
    scaled,
    true_costs,
    true_worth,
)

# What ends with a proof, if there is time.
PROVING = sorted(SOLVERS.keys() - {"mindtpy"})

MAKERS: list[Callable[[int], SearchSpace]] = [random_space, emptying_space]

spaces = {
    "make": st.sampled_from(MAKERS),
    "seed": st.integers(0, 2**32 - 1),
    # A budget that is nearer to an attainable cost than a solver's tolerance has no clear optimum.
    "percent": st.integers(0, 100),
    # 1: sizes of several dimensions are interpolated, 64: their combinations are listed.
    "combinations": st.sampled_from([1, 64]),
}


def budgets_of(space: SearchSpace, percent: int, names: tuple[str, ...], method: str = "mdp") -> dict[str, float]:
    """Budgets between the smallest and the largest cost of any selection."""
    costs = [true_costs(space, selection, method) for selection in members_of(space, method)]
    ends = {name: (min(c[name] for c in costs), max(c[name] for c in costs)) for name in names}
    return {name: low + percent / 100 * (high - low) for name, (low, high) in ends.items()}


def check(
    space: SearchSpace,
    budgets: dict[str, float],
    solver: str,
    gap: float = 0.0,
    method: str = "mdp",
    most: int | None = None,
) -> None:
    """Solves and holds the answer against the optimum by exhaustion."""
    best = best_importance(space, budgets, method, most)
    if best is None:
        with pytest.raises(BudgetError, match="cannot be met") as caught:
            solve(space, budgets, solver=solver, gap=gap, threads=1, method=method, max_removed=most)
        every = [true_costs(space, selection, method) for selection in members_of(space, method, most)]
        for name in budgets:
            assert caught.value.smallest[name] == pytest.approx(min(costs[name] for costs in every))
        return
    selection, certificate = solve(space, budgets, solver=solver, gap=gap, threads=1, method=method, max_removed=most)
    assert violations(space, selection) == []
    assert normalise(space, selection) == selection
    assert most is None or len(selection.removed_blocks) <= most
    assert certificate.costs == pytest.approx(true_costs(space, selection), rel=1e-12)
    assert certificate.objective == pytest.approx(true_worth(space, selection), rel=1e-12)
    for name, budget in budgets.items():
        assert certificate.modelled_costs[name] <= budget * (1 + 1e-9)
    assert certificate.objective <= best * (1 + 1e-9)
    assert certificate.bound is not None
    assert certificate.bound >= best * (1 - 1e-9)
    if solver in PROVING:
        assert certificate.objective >= best * (1 - gap - 1e-9)
        assert certificate.status in ("optimal", "gap reached")


@pytest.mark.parametrize("solver", PROVING)
@pytest.mark.parametrize("names", [("latency",), ("latency", "params")])
@example(make=emptying_space, seed=738, percent=60, combinations=1, method="mdp", tight=False, most=None)
@example(make=random_space, seed=8409, percent=0, combinations=1, method="mdp", tight=True, most=None)
@example(make=random_space, seed=9654, percent=12, combinations=1, method="mdp", tight=True, most=None)
@given(
    **spaces,
    method=st.sampled_from(["mdp", "mdp", "mgp", "mdlm", "halp"]),
    # Whether what the solvers may list, merge or look at first is next to nothing.
    tight=st.booleans(),
    most=st.sampled_from([None, None, 0, 1, 2]),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_optimum(
    solver: str,
    names: tuple[str, ...],
    make: Callable[[int], SearchSpace],
    seed: int,
    percent: int,
    combinations: int,
    method: str,
    tight: bool,
    most: int | None,
) -> None:
    space = make(seed)
    with contextlib.ExitStack() as changed:
        changed.enter_context(patch.object(problem, "MAX_COMBINATIONS", combinations))
        if tight:
            changed.enter_context(patch.object(cliques, "MAX_CELLS", 1))
            changed.enter_context(patch.object(labels, "MOST_LABELS", 4))
            changed.enter_context(patch.object(exact, "FIRST_REACH", 0.05))
        check(space, budgets_of(space, percent, names, method), solver, method=method, most=most)


@pytest.mark.parametrize("solver", PROVING)
@given(**spaces, gap=st.sampled_from([0.01, 0.1, 0.5]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_gap_is_a_promise(
    solver: str, make: Callable[[int], SearchSpace], seed: int, percent: int, combinations: int, gap: float
) -> None:
    space = make(seed)
    with patch.object(problem, "MAX_COMBINATIONS", combinations):
        check(space, budgets_of(space, percent, ("latency",)), solver, gap)


@needs_nlp_solver
@given(**spaces)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_mindtpy_is_never_better_than_the_optimum(
    make: Callable[[int], SearchSpace], seed: int, percent: int, combinations: int
) -> None:
    space = make(seed)
    budgets = budgets_of(space, percent, ("latency", "params"))
    with patch.object(problem, "MAX_COMBINATIONS", combinations):
        try:
            check(space, budgets, "mindtpy", gap=1e-3)
        except SolverError as error:
            # It is free to find nothing; what it must not do is to answer wrongly.
            assume("found no selection" not in str(error))
            raise


@pytest.mark.parametrize("solver", PROVING)
@pytest.mark.parametrize("factor", [1e-15, 1e-7, 1e9])
@pytest.mark.parametrize("seed", [10, 11, 12, 13])
def test_a_proof_holds_whatever_importance_is_counted_in(solver: str, factor: float, seed: int) -> None:
    space = scaled(random_space(seed), factor)
    budgets = budgets_of(space, 50, ("latency",))
    check(space, budgets, solver)


@needs_minlp_data
def test_a_proof_about_a_network_of_little_importance() -> None:
    space = scaled(SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json"), 1e-12)
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    _, certificate = solve(space, budgets, solver="exact", gap=1e-4, threads=1)
    assert certificate.objective >= 4648466e-12 * (1 - 1e-4)
    assert certificate.bound is not None
    assert certificate.bound >= 4648466e-12 * (1 - 1e-9)


def test_the_spaces_have_every_feature() -> None:
    seen = [feature for seed in range(40) for make in MAKERS for feature in features(make(seed))]
    assert {name for name in seen if seen.count(name) >= 4} == {
        "nested blocks",
        "exclusive blocks",
        "emptied dimension",
        "sum of dimensions",
        "product of dimensions",
        "dimension in two places",
    }


def features(space: SearchSpace) -> set[str]:
    """What makes a space hard."""
    axes = [a for model in space.costs.values() for region in model.terms for a in region.axes]
    places = {(term.dim, term.block) for term in space.importance}
    found = {
        "nested blocks": any(b.parent is not None for b in space.blocks),
        "exclusive blocks": bool(space.exclusive),
        "emptied dimension": any(b.empties for b in space.blocks),
        "sum of dimensions": any(len({t.dims for t in a.terms}) > 1 for a in axes),
        "product of dimensions": any(len(t.dims) > 1 for a in axes for t in a.terms),
        "dimension in two places": len({dim for dim, _ in places}) < len(places),
    }
    return {name for name, there in found.items() if there}
