"""Units in which the tolerances of solvers mean the same for every problem.

HiGHS, GLPK and MindtPy compare to within 1e-6 or 1e-7, whatever the numbers: of importances that small each one equals
the other, and any selection is "optimal". So solvers are asked in units in which all importance and every budget are
about a thousand, and what they say is put back into those of the problem. Units are powers of two: nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mdp_fx.passes.solvers import Limits, Outcome, Solver
from mdp_fx.passes.solvers.problem import Problem

SCALE = 2.0**10
"""All importance, and a budget, in their units: at least half of it, and less than all."""


@dataclass(frozen=True)
class Units:
    """What one unit of importance and of every cost is in the problem's own."""

    importance: float
    costs: dict[str, float]

    def of(self, problem: Problem) -> Problem:
        """The problem in these units."""
        return replace(
            problem,
            importance={key: values / self.importance for key, values in problem.importance.items()},
            importance_held={block: value / self.importance for block, value in problem.importance_held.items()},
            factors=tuple(
                replace(f, tables={name: table / self.costs[name] for name, table in f.tables.items()})
                for f in problem.factors
            ),
            constants={name: value / self.costs[name] for name, value in problem.constants.items()},
        )


def units_for(problem: Problem, budgets: Mapping[str, float]) -> Units:
    """Units for a problem under budgets."""
    top = math.fsum(problem.importance_held.values())
    top += math.fsum(float(values.max()) for values in problem.importance.values())
    costs = {}
    for name in problem.constants:
        largest = max((float(np.abs(f.tables[name]).max()) for f in problem.factors if name in f.tables), default=0.0)
        # A budget of nearly nothing must not blow up the numbers.
        costs[name] = _unit(max(budgets.get(name, 0.0), 1e-3 * max(largest, problem.constants[name])))
    return Units(_unit(top), costs)


def in_units(solver: Solver) -> Solver:
    """The solver, asked in its units and answering in those of the problem."""

    def solve(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Outcome:
        units = units_for(problem, budgets)
        asked = {name: budget / units.costs[name] for name, budget in budgets.items()}
        outcome = solver(units.of(problem), asked, limits)
        objective, bound = outcome.objective * units.importance, outcome.bound * units.importance
        return replace(outcome, objective=objective, bound=bound)

    return solve


def _unit(whole: float) -> float:
    """The power of two of which `whole` has about SCALE."""
    return math.ldexp(1 / SCALE, math.frexp(whole)[1]) if whole > 0 else 1.0
