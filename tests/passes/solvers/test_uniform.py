"""One ratio everywhere, the largest that fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mdp_fx.errors import BudgetError
from mdp_fx.passes.minlp import solve
from mdp_fx.passes.search_space import CostModel, CostTerm, Dimension, SearchSpace
from mdp_fx.passes.solvers.uniform import at_ratio, solve_uniform
from tests.passes.spaces import axis, branch_space


def one_table(*costs: float) -> SearchSpace:
    sizes = tuple(range(1, len(costs) + 1))
    term = CostTerm("r", None, (axis("out", "d", points=sizes),), np.array(costs))
    return SearchSpace(
        (Dimension("d", sizes), Dimension("e", (3, 6, 9))), (), (), (), {"latency": CostModel("us", 0.0, (term,))}
    )


def test_every_dimension_at_the_ratio_or_its_smallest() -> None:
    space = one_table(1.0, 2.0, 3.0, 4.0)
    assert at_ratio(space, 0.7).sizes == {"d": 2, "e": 6}
    assert at_ratio(space, 0.1).sizes == {"d": 1, "e": 3}
    assert at_ratio(replace(space, fixed={"e": 9}), 0.1).sizes == {"d": 1, "e": 9}


def test_a_ratio_that_is_no_exact_fraction_reaches_its_size() -> None:
    space = one_table(*(float(i) for i in range(1, 50)))
    for size in range(1, 50):
        result = solve_uniform(space, {"latency": float(size)})
        assert result.selection is not None
        assert result.selection.sizes["d"] == size


def test_largest_ratio_of_a_table_that_is_not_monotone() -> None:
    # Size 3 is cheap although 2 is not: a bisection would have stopped at 1.
    result = solve_uniform(one_table(1.0, 8.0, 2.0, 9.0), {"latency": 3.0})
    assert result.selection is not None
    assert result.selection.sizes["d"] == 3


def test_no_branch_is_emptied() -> None:
    assert at_ratio(branch_space(), 0.0).sizes == {"a": 2, "b": 2}


def test_no_ratio_fits() -> None:
    result = solve_uniform(one_table(2.0, 3.0), {"latency": 1.0})
    assert (result.selection, result.smallest) == (None, {"latency": 2.0})
    with pytest.raises(BudgetError, match=r"smallest is 0.002 ms \(66.7% of dense\)"):
        solve(one_table(2.0, 3.0), {"latency": 1.0}, method="uniform")


def test_certificate_claims_no_bound() -> None:
    _, certificate = solve(one_table(1.0, 2.0), {"latency": 1.0}, method="uniform")
    assert (certificate.status, certificate.bound, certificate.gap) == ("no bound", None, None)
