"""The Lagrangian dual: prices on the costs instead of budgets, as low as they bound the importance.

The bound is min over prices p >= 0 of max over selections of importance - p * (costs - budgets). The inner maximum is
found exactly by elimination (elimination.py), the outer minimum by cutting planes: every selection found is a line in
p, and the next prices are where the highest of these lines is lowest (Kelley 1960).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import highspy
import numpy as np

from mdp_fx.passes.search_space import FloatArray
from mdp_fx.passes.solvers import Limits
from mdp_fx.passes.solvers.decisions import TooWideError
from mdp_fx.passes.solvers.elimination import Assignment, DecisionGraph, Valuation
from mdp_fx.passes.solvers.problem import Problem
from mdp_fx.passes.solvers.tolerances import CONVERGED, DUAL_SLACK, closed

MOST_CUTS = 300
"""Cutting planes at most; the bound is right wherever they end."""

DEAREST = 1e6
"""Highest price of a whole budget, in units of all importance: what is not within the budget then never is."""


@dataclass
class Dual:
    """The dual of a problem, as far as it is known.

    Attributes:
        graph: its decisions.
        budgets: per cost.
        valuation: at the prices of the bound; there once some prices were visited.
        bound: nothing within the budgets keeps more.
        best: the best assignment within the budgets that was met, None for none.
    """

    graph: DecisionGraph
    budgets: FloatArray
    valuation: Valuation = field(init=False)
    bound: float = math.inf
    best: Assignment | None = None

    def visit(self, prices: FloatArray) -> Assignment:
        """The assignment that is best at some prices, and with it perhaps a lower bound."""
        valuation = self.graph.value(prices)
        bound = valuation.value + float(prices @ self.budgets)
        if bound < self.bound:
            self.bound, self.valuation = bound, valuation
        found = self.graph.best(valuation)
        if (found.costs <= self.budgets).all() and (self.best is None or found.worth > self.best.worth):
            self.best = found
        return found

    def closed(self, gap: float) -> bool:
        """Whether the best assignment met is as near to the bound as asked."""
        return self.best is not None and closed(self.best.worth, self.bound, gap)


def lagrangian_bound(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> float:
    """A bound that no selection within the budgets exceeds; infinite where the decisions are too entangled."""
    try:
        graph = DecisionGraph(problem, tuple(budgets))
    except TooWideError:
        return math.inf
    return minimise(graph, budgets, replace(limits, gap=0.0)).bound


def minimise(graph: DecisionGraph, budgets: Mapping[str, float], limits: Limits) -> Dual:
    """Brings the dual's bound down until it is lowest, the gap is closed, or time is over."""
    dual = Dual(graph, np.array(list(budgets.values())) * (1 + DUAL_SLACK))
    first = dual.visit(np.zeros(len(budgets)))
    if dual.best is not None:
        return dual
    lines = _Lines(dual.budgets, first)
    for _ in range(MOST_CUTS):
        prices, low = lines.lowest()
        if dual.bound - low <= CONVERGED * max(abs(dual.bound), 1e-12):
            break
        # An assignment that is a line already proves that the lines are as low as they get.
        if not lines.add(dual.visit(prices)) or dual.closed(limits.gap) or dual.bound < 0:
            break
        if not limits.seconds_left():
            break
    return dual


class _Lines:
    """The lines that assignments are over the prices, and where the highest of them is lowest: a small linear program.

    Prices are counted per whole budget and importance in units of the first assignment's.
    """

    def __init__(self, budgets: FloatArray, first: Assignment) -> None:
        # A budget of nothing still has a size: that of what is to be paid.
        self._units = np.where(budgets > 1e-9 * first.costs, budgets, np.maximum(first.costs, 1e-12))
        self._budgets = budgets
        self._scale = max(abs(first.worth), 1e-12)
        self._known: set[tuple[float, ...]] = set()
        self._highs = highspy.Highs()
        self._highs.setOptionValue("output_flag", False)
        self._highs.addVar(-highspy.kHighsInf, highspy.kHighsInf)
        self._highs.changeColCost(0, 1.0)
        for _ in budgets:
            self._highs.addVar(0.0, DEAREST)
        self.add(first)

    def add(self, assignment: Assignment) -> bool:
        """One more line; False where it is there already."""
        line = (assignment.worth, *assignment.costs.tolist())
        if line in self._known:
            return False
        self._known.add(line)
        slope = (assignment.costs - self._budgets) / self._units
        columns = np.arange(len(slope) + 1, dtype=np.int32)
        worth = assignment.worth / self._scale
        self._highs.addRow(worth, highspy.kHighsInf, len(columns), columns, np.r_[1.0, slope])
        return True

    def lowest(self) -> tuple[FloatArray, float]:
        """Prices, and how high the highest line is there."""
        self._highs.run()
        height, *prices = self._highs.getSolution().col_value
        return np.array(prices) * self._scale / self._units, height * self._scale
