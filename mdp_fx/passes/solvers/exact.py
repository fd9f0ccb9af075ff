"""The exact solver: every product of decisions linearised exactly and tightly, a Pyomo model solved by HiGHS.

With x a dimension's one-hot and y a block's binary:

- A dimension whose uses all lie in block b has sum x = y_b; one used elsewhere too gets a copy u for b with u <= x and
  sum u = y_b. So each one-hot below sums to its block's y, and gated terms need no product with y.
- A dimension that goes to 0 with a block has its x_0 tied to the blocks: it is 1 where such a block is removed and the
  one around it is not. The blocks that empty it are nested, so at most one of them is the outermost removed one.
- A table over several axes is a transport polytope: w >= 0 whose marginals are the axes' one-hots. It is the convex
  hull of the products; no big-M appears anywhere.
- A size made of several dimensions has its own weights over the table's positions (see SizeAxis): sums of the
  combinations' weights, indicators of the reachable sizes, or two neighbours' weights per segment (disaggregated, thus
  locally ideal) that average to the size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from mdp_fx.passes.search_space import Selection
from mdp_fx.passes.solvers import Limits, Outcome
from mdp_fx.passes.solvers.cliques import form_cliques
from mdp_fx.passes.solvers.decisions import TooWideError
from mdp_fx.passes.solvers.dual import minimise
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.highs import HighsModel
from mdp_fx.passes.solvers.local import local_search
from mdp_fx.passes.solvers.problem import DimAxis, Problem, SizeAxis, TableAxis, TableFactor
from mdp_fx.passes.solvers.tolerances import PROVEN, closed

# Pyomo's variables; object arrays let tables and variables share their shape.
Vars = npt.NDArray[np.object_]

# First guess of how far below the relaxation's bound the optimum lies, relative.
FIRST_REACH = 3e-4


class ExactModel:
    """The Pyomo model of a Problem, and the way back from its solution to a Selection."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = pyo.ConcreteModel()
        self.fractional: set[int] = set()
        self._count = 0
        self._rows = pyo.ConstraintList()
        self.model.rows = self._rows
        self._weights: dict[tuple[tuple[TableAxis, ...], str | None], Vars] = {}
        self._one = self._new("one", 1, lower=1.0)[0]
        self._alive: dict[str | None, Any] = {None: self._one}
        for block, parent in problem.parents.items():
            self._alive[block] = self._new(f"alive[{block}]", 1, binary=True)[0]
            # A block that nothing depends on is in no row of the compiled model: it stays.
            self._alive[block].set_value(1.0)
            if parent is not None:
                self._row([(1, self._alive[block]), (-1, self._alive[parent])], upper=0)
        for names, parent in problem.exclusive:
            self._row([(1, self._alive[b]) for b in names] + [(-1, self._alive[parent])], lower=0)
        self._options = {
            name: self._one_hot(f"keep[{name}]", len(sizes), problem.homes[name], binary=True)
            for name, sizes in problem.options.items()
        }
        for name, blocks in problem.emptied_by.items():
            removed = [(s, self._alive[b]) for block in blocks for s, b in ((1, block), (-1, problem.parents[block]))]
            self._row([(1, self._options[name][0]), *removed], lower=0, upper=0)
        self.importance = self._importance()
        self.costs = self._costs()

    def select(self) -> Selection:
        """The selection that the variables' values say, unused dimensions at their largest size."""
        sizes = dict(self.problem.held)
        for name, options in self.problem.options.items():
            values = [pyo.value(x) for x in self._options[name]]
            sizes[name] = options[int(np.argmax(values))] if max(values) > 0.5 else options[-1]
        removed = (b for b in self.problem.parents if pyo.value(self._alive[b]) < 0.5)
        return Selection(sizes, tuple(removed))

    def values(self, selection: Selection) -> dict[int, float]:
        """The values of the decision variables in a selection, by their ids: all others follow from them."""
        gone = set(selection.removed_blocks)
        values = {id(self._alive[block]): float(block not in gone) for block in self.problem.parents}
        for name, sizes in self.problem.options.items():
            for variable, size in zip(self._options[name], sizes, strict=True):
                kept = self.problem.homes[name] not in gone and size == selection.sizes[name]
                values[id(variable)] = float(kept)
        return values

    def hold_to(self, budgets: Mapping[str, float]) -> None:
        """Add one row for each budget."""
        for cost, budget in budgets.items():
            row = (None, linear(self.costs[cost]), budget)
            self.model.add_component(f"budget[{cost}]", pyo.Constraint(expr=row))

    def _new(self, name: str, count: int, *, binary: bool = False, lower: float = 0.0, whole: bool = True) -> Vars:
        """New variables within [lower, 1]; `whole` says that no integer solution gives them a fraction."""
        domain = pyo.Binary if binary else pyo.NonNegativeReals
        variables = pyo.Var(range(count), domain=domain, bounds=(lower, 1.0))
        self._count += 1
        self.model.add_component(f"{name}#{self._count}", variables)
        if not whole:
            self.fractional.update(id(v) for v in variables.values())
        return np.array(list(variables.values()), dtype=object)

    def _row(
        self, terms: Iterable[tuple[float, Any]], *, lower: float | None = None, upper: float | None = None
    ) -> None:
        self._rows.add((lower, linear(terms), upper))

    def _equal(self, variables: Iterable[Any], *others: tuple[float, Any]) -> None:
        """sum of variables + sum of factor * other = 0."""
        self._row([*((1, v) for v in variables), *others], lower=0, upper=0)

    def _one_hot(self, name: str, count: int, block: str | None, *, binary: bool = False) -> Vars:
        variables = self._new(name, count, binary=binary)
        self._equal(variables, (-1, self._alive[block]))
        return variables

    def weights(self, axes: tuple[TableAxis, ...], block: str | None, factor: TableFactor | None = None) -> Vars:
        """Variables [positions of each axis] that sum to the block's y: 1 where the axes stand, 0 elsewhere.

        None stands for a cell that the factor which asked first does not need.
        """
        key = (axes, block)
        ties, support = (factor.ties, factor.support) if factor else ((), None)
        if key not in self._weights:
            self._weights[key] = (
                self._transport(axes, block, ties, support) if len(axes) != 1 else self._single(axes[0], block)
            )
        # Whoever asks later has the cells it needs. Other ties would only be tighter: the axes say which cell is 1.
        found = self._weights[key]
        assert all(cell is not None for cell in (found if support is None else found[support]).flat), key
        return found

    def _transport(
        self,
        axes: tuple[TableAxis, ...],
        block: str | None,
        ties: tuple[tuple[TableAxis, ...], ...],
        support: npt.NDArray[np.bool_] | None,
    ) -> Vars:
        if not axes:
            return np.array(self._alive[block], dtype=object)
        shape = tuple(self.problem.positions(axis) for axis in axes)
        needed = np.ones(shape, dtype=bool) if support is None else support
        cells = np.full(shape, None, dtype=object)
        whole = not any(isinstance(axis, SizeAxis) and axis.kind == "between" for axis in axes)
        cells[needed] = self._new("cells", int(needed.sum()), whole=whole)
        for tie in (*((axis,) for axis in axes if not any(axis in t for t in ties)), *ties):
            marginal = self.weights(tie, block)
            others = tuple(i for i, axis in enumerate(axes) if axis not in tie)
            rows = cells.transpose(*(axes.index(axis) for axis in tie), *others).reshape(marginal.size, -1)
            for row, position in zip(rows, marginal.ravel(), strict=True):
                self._equal((cell for cell in row if cell is not None), (-1, position))
        return cells

    def _single(self, axis: TableAxis, block: str | None) -> Vars:
        if isinstance(axis, DimAxis):
            return self._gated(axis, block)
        if axis.kind == "joint":
            return self._joint(axis, block)
        if axis.kind == "exact":
            weights = self._one_hot("size", len(axis.positions), block, binary=True)
        else:
            weights = self._segments(axis, block)
        self._row([*zip(axis.positions, weights, strict=True), *self._negated_size(axis, block)], lower=0, upper=0)
        return weights

    def _gated(self, axis: DimAxis, block: str | None) -> Vars:
        if block == self.problem.homes[axis.dim]:
            return self._options[axis.dim]
        around = self.weights((axis,), None if block is None else self.problem.parents[block])
        copy = self._one_hot(f"keep[{axis.dim}]@{block}", len(around), block)
        for inner, outer in zip(copy, around, strict=True):
            self._row([(1, inner), (-1, outer)], upper=0)
        if self.problem.never_zero(axis.dim, block):
            copy[0].setub(0.0)
        return copy

    def _joint(self, axis: SizeAxis, block: str | None) -> Vars:
        cells = self.weights(tuple(DimAxis(d) for d in axis.dims), block)
        weights = self._new("size", len(axis.positions))
        held: dict[int, list[Any]] = {size: [] for size in axis.positions}
        for index, cell in np.ndenumerate(cells):
            chosen = {d: self.problem.options[d][i] for d, i in zip(axis.dims, index, strict=True)}
            held[axis.size(chosen)].append(cell)
        for weight, size in zip(weights, axis.positions, strict=True):
            self._equal(held[size], (-1, weight))
        return weights

    def _segments(self, axis: SizeAxis, block: str | None) -> Vars:
        count = len(axis.positions)
        weights = self._new("size", count, whole=False)
        segments = self._one_hot("segment", count - 1, block, binary=True)
        low = self._new("low", count - 1, whole=False)
        high = self._new("high", count - 1, whole=False)
        for parts in zip(low, high, segments, strict=True):
            self._equal(parts[:2], (-1, parts[2]))
        for i, weight in enumerate(weights):
            self._equal([*low[i : i + 1], *high[max(i - 1, 0) : i]], (-1, weight))
        return weights

    def _negated_size(self, axis: SizeAxis, block: str | None) -> Iterator[tuple[float, Any]]:
        yield -axis.constant, self._alive[block]
        for coefficient, dims in axis.terms:
            names = tuple(dict.fromkeys(dims))
            for index, cell in np.ndenumerate(self.weights(tuple(DimAxis(d) for d in names), block)):
                chosen = {d: self.problem.options[d][i] for d, i in zip(names, index, strict=True)}
                yield -coefficient * math.prod(chosen[d] for d in dims), cell

    def _importance(self) -> Any:
        terms = [(0.0, self._one)]
        terms += ((value, self._alive[block]) for block, value in self.problem.importance_held.items())
        for (dim, block), values in self.problem.importance.items():
            terms += zip(values.tolist(), self.weights((DimAxis(dim),), block), strict=True)
        return linear(terms)

    def _costs(self) -> dict[str, list[tuple[float, Any]]]:
        costs: dict[str, list[tuple[float, Any]]] = {
            name: [(constant, self._one)] for name, constant in self.problem.constants.items()
        }
        for factor in self.problem.factors:
            cells = self.weights(factor.axes, factor.block, factor)
            for name, table in factor.tables.items():
                costs[name] += (
                    (c, v) for c, v in zip(table.ravel().tolist(), cells.ravel(), strict=True) if v is not None
                )
        return costs


def linear(terms: Iterable[tuple[float, Any]]) -> LinearExpression:
    """sum of coefficient * variable, built at once: adding Pyomo terms one by one is far slower."""
    coefficients, variables = zip(*terms, strict=True)
    return LinearExpression(constant=0.0, linear_coefs=list(coefficients), linear_vars=list(variables))


def solve_exact(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """Find the selection of most importance within the budgets, from the best that prices find or a quick search."""
    return improve(problem, budgets, limits, _first(problem, budgets, limits))


def _first(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Selection | None:
    try:
        graph = DecisionGraph(problem, tuple(budgets))
    except TooWideError:
        return local_search(problem, budgets, limits.deadline)
    best = minimise(graph, budgets, limits).best
    return None if best is None else graph.selection(best.options)


def improve(problem: Problem, budgets: Mapping[str, float], limits: Limits, start: Selection | None) -> Outcome:
    """Find the selection of most importance within the budgets.

    The linear relaxation gives a bound and, for every variable, a penalty: what the bound loses when that variable is
    one. Only variables whose penalty is within reach of the bound are kept in the mixed-integer model; what was left
    out is bounded by bound - reach, so the proof covers it, and the reach grows until the gap is closed.

    Args:
        problem: What is to be decided.
        budgets: Per cost.
        limits: When to stop.
        start: A selection within the budgets to improve on, if one is known.
    """
    if not limits.seconds_left():
        return Outcome(start, -math.inf if start is None else problem.worth(start), math.inf)
    exact = ExactModel(form_cliques(problem))
    exact.hold_to(budgets)
    exact.model.objective = pyo.Objective(expr=exact.importance, sense=pyo.maximize)
    return _optimise(exact, limits, start)


def cheapest(cost: str, problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """Find the selection of the smallest cost within budgets; objective and bound are that cost, negated."""
    exact = ExactModel(form_cliques(problem))
    exact.hold_to(budgets)
    exact.model.objective = pyo.Objective(expr=linear((-c, v) for c, v in exact.costs[cost]), sense=pyo.maximize)
    return _optimise(exact, limits, None)


def _optimise(exact: ExactModel, limits: Limits, start: Selection | None) -> Outcome:
    compiled = HighsModel(exact.model, limits)
    best, objective, values = start, -math.inf, None
    if start is not None:
        # HiGHS's presolve has cut optima off (its issues 3073 and 3094): what is known to be there stays.
        objective, values = exact.problem.worth(start), exact.values(start)
    droppable = np.array([id(v) not in exact.fractional and v.lb == 0 for v in compiled.columns], dtype=bool)
    relaxed = compiled.relax()
    if relaxed is None:
        top, penalties, reach = math.inf, np.zeros(len(droppable)), math.inf
    else:
        top, penalties = relaxed.bound, relaxed.penalties
        # The penalties count where the bound is zero: a reach of nothing would never grow.
        reach = max(FIRST_REACH, limits.gap) * max(abs(top), float(penalties.max(initial=0.0)))
    bound = top
    while True:
        dropped = droppable & (penalties > reach)
        known = values and {i: values[id(v)] for i, v in enumerate(compiled.columns) if id(v) in values}
        answer = compiled.solve(dropped, known)
        if answer.objective is not None and answer.objective > objective:
            best, objective = exact.select(), answer.objective
            values = exact.values(best)
        if not dropped.any():
            if answer.proven_infeasible and best is None:
                return Outcome(None, -math.inf, -math.inf)
            return Outcome(best, objective, max(min(bound, answer.bound), objective))
        inside = -math.inf if answer.proven_infeasible else answer.bound
        bound = min(bound, max(inside, top - reach, objective))
        found = math.isfinite(objective)
        if (found and closed(objective, bound, limits.gap)) or not limits.seconds_left():
            return Outcome(best, objective, bound)
        reach = max(2 * reach, (1 + PROVEN) * (top - objective)) if found else 8 * reach
