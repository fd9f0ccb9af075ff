"""What counts as the same: relative differences, each wider than the one it has to cover."""

from __future__ import annotations

ROUNDING = 1e-11
"""Sums of the same numbers in another order differ by less."""

DUAL_SLACK = 1e-10
"""The dual lets budgets be exceeded by this: rounding must not lose it what costs exactly as much as allowed."""

BUDGET_SLACK = 1e-9
"""A selection may exceed a budget by this: what the dual allows, and HiGHS (1e-6 of about 1e3, see units.py)."""

CONVERGED = 1e-8
"""The dual's bound is found when its lines come this close to it."""

PROVEN = 1e-6
"""A gap below this is a rounding error of a solver: HiGHS's tolerances, added up over a few hundred decisions."""

CLAIM = 1e-5
"""Beyond this a solver's claim and the re-evaluation are no longer the same thing: some decision was not whole."""


def closed(objective: float, bound: float, gap: float) -> bool:
    """Whether a relative gap is proven; a bound of just objective * (1 + gap) is rounded."""
    return bound - objective <= gap * (1 + PROVEN) * abs(objective)
