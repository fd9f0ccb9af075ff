"""The smallest cost that a problem allows: what is said where a budget cannot be met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mdp_fx.passes.solvers import Limits, Outcome
from mdp_fx.passes.solvers.decisions import TooWideError
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.problem import Problem
from mdp_fx.passes.solvers.units import in_units


def smallest_cost(problem: Problem, cost: str, limits: Limits, budgets: Mapping[str, float]) -> Outcome:
    """Find the selection of the smallest cost within further budgets.

    One elimination finds it. Where that is too wide, or leads beyond a budget, the exact model looks for it within the
    limits. Objective and bound are costs, negated, in no particular unit; what is not proven has a gap between them.
    """
    names = (cost, *budgets)
    try:
        graph = DecisionGraph(replace(problem, importance={}, importance_held={}), names)
    except TooWideError:
        pass
    else:
        found = graph.best(graph.value(np.eye(len(names))[0]))
        if (found.costs[1:] <= list(budgets.values())).all():
            smallest = float(found.costs[0])
            return Outcome(graph.selection(found.options), -smallest, -smallest)
    # Pyomo takes long to import.
    from mdp_fx.passes.solvers.exact import cheapest

    return in_units(lambda *asked: cheapest(cost, *asked))(problem, budgets, replace(limits, gap=0.0))
