"""The quick search: always inside the budgets, never above the optimum, and good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mdp_fx.passes.search_space import Block, CostModel, CostTerm, SearchSpace, evaluate, importance, violations
from mdp_fx.passes.solvers.local import filled, local_search
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import (
    MINLP_DATA,
    best_importance,
    chain_space,
    emptying_space,
    every_selection,
    random_space,
)


@given(
    make=st.sampled_from([random_space, emptying_space]),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.1, 0.9),
    two_budgets=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_stays_within_the_budgets(
    make: Callable[[int], SearchSpace], seed: int, share: float, two_budgets: bool
) -> None:
    space = make(seed)
    names = ["latency", "params"] if two_budgets else ["latency"]
    costs = [evaluate(space, s) for s in every_selection(space)]
    budgets = {n: min(c[n] for c in costs) * (1 - share) + share * max(c[n] for c in costs) for n in names}
    problem = compile_problem(space, names)
    selection = local_search(problem, budgets)
    if selection is None:
        return
    assert violations(space, selection) == []
    found = evaluate(space, selection)
    assert all(found[n] <= budgets[n] * (1 + 1e-9) for n in names)
    best = best_importance(space, budgets)
    assert best is not None
    assert importance(space, selection) <= best + 1e-9


def test_chain_by_hand() -> None:
    selection = local_search(compile_problem(chain_space(), ["latency"]), {"latency": 9.0})
    assert selection is not None
    assert (selection.sizes, selection.removed_blocks) == ({"a": 1, "b": 2}, ())


def test_removed_blocks_are_in_the_order_of_the_problem() -> None:
    blocks = tuple(Block(f"b{i}") for i in range(9))
    terms = tuple(CostTerm(b.name, b.name, (), np.array(5.0)) for b in blocks)
    space = replace(chain_space(), blocks=(Block("block"), *blocks), costs={"latency": CostModel("us", 1.0, terms)})
    selection = local_search(compile_problem(space, ["latency"]), {"latency": 1.0})
    assert selection is not None
    assert selection.removed_blocks == tuple(b.name for b in blocks)


def test_the_deadline_ends_the_search() -> None:
    assert local_search(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, deadline=0.0) is None


def test_out_of_reach() -> None:
    assert local_search(compile_problem(chain_space(), ["latency"]), {"latency": 1.0}) is None


@pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")
@pytest.mark.parametrize(("share", "optimum"), [(0.7, 6258308), (0.3, 4648466)])
def test_close_to_the_optimum_of_a_published_problem(share: float, optimum: float) -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json")
    budgets = {"latency": share * evaluate(space, space.dense())["latency"]}
    selection = local_search(compile_problem(space, budgets), budgets)
    assert selection is not None
    assert importance(space, selection) > 0.97 * optimum


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.1, 0.9))
@example(seed=232, share=0.5)
@settings(max_examples=60, deadline=None)
def test_what_a_budget_has_room_for_is_filled(seed: int, share: float) -> None:
    space = random_space(seed)
    options = list(every_selection(space))
    costs = [evaluate(space, each)["latency"] for each in options]
    budget = min(costs) * (1 - share) + share * max(costs)
    start = options[costs.index(min(costs))]
    problem = compile_problem(space, ["latency"])
    found = filled(problem, {"latency": budget}, start)
    assert violations(space, found) == []
    assert set(found.removed_blocks) == set(start.removed_blocks)
    assert evaluate(space, found)["latency"] <= budget * (1 + 1e-9)
    assert importance(space, found) >= importance(space, start)
    # No change of a single size improves it within the budget.
    for other in options:
        changed = [name for name, size in other.sizes.items() if size != found.sizes[name]]
        if len(changed) == 1 and set(other.removed_blocks) == set(found.removed_blocks):
            better = importance(space, other) > importance(space, found) + 1e-9
            assert not better or evaluate(space, other)["latency"] > budget * (1 - 1e-9)
