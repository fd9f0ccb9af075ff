"""The whole curve of importance against a cost, from one sweep of the Lagrangian dual over the price of that cost.

Every point is the best selection at some price, and so the best one of all that cost as much as it does or less: no
structure lies above the curve. Between two points may lie selections that no price finds; `solve` does.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import cast

import numpy as np

from mdp_fx.errors import InputError, SolverError, one_of
from mdp_fx.passes.arguments import check_is_space, check_whole
from mdp_fx.passes.minlp import METHODS
from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate, importance, normalise, violations
from mdp_fx.passes.solvers.decisions import TooWideError
from mdp_fx.passes.solvers.dual import DEAREST
from mdp_fx.passes.solvers.elimination import Assignment, DecisionGraph
from mdp_fx.passes.solvers.problem import Method, compile_problem, modelled_space

CHEAPEST = 1e-9
"""Price of everything, in units of all importance: of selections that keep all of it the cheapest is wanted."""

STRAIGHT = 1e-9
"""A new point this little above the line between its neighbours, in units of all importance, is none."""

KNEES = 3
SLIGHT = 0.01
"""A knee stands out by this part of the curve's extent, or is none."""


@dataclass(frozen=True)
class FrontierPoint:
    """A point of the curve.

    Attributes:
        cost: in the unit of the cost.
        importance: what is kept.
        selection: how.
        knee: whether the curve bends here so much that it is well described by its ends and its knees.
    """

    cost: float
    importance: float
    selection: Selection
    knee: bool = False


def frontier(
    space: SearchSpace, cost: str = "latency", *, method: str = "mdp", most: int = 100
) -> tuple[FrontierPoint, ...]:
    """The curve from the smallest cost to the dense network's, ascending.

    Args:
        space: what may be chosen.
        cost: the cost.
        method: "mdp", "mgp", "mdlm" or "halp": costs are as the method models them.
        most: points at most; where there are more, those between distant ones come first.

    Raises:
        InputError: there is no such cost or method, or `most` is less than two.
        SolverError: the decisions are too entangled for a sweep.
    """
    check_is_space(space)
    if cost not in space.costs:
        raise InputError(f"no cost {cost!r} to sweep{one_of(cost, space.costs)}")
    if method not in METHODS or method == "uniform":
        raise InputError(f"no curve for the method {method!r}; methods are {', '.join(METHODS[:-1])}")
    check_whole("the number of points", most, 2)
    model = modelled_space(space, cast(Method, method))
    try:
        graph = DecisionGraph(compile_problem(model, [cost]), [cost])
    except TooWideError as wide:
        msg = f"the curve cannot be swept: {wide}; solve it budget by budget, or with a larger step"
        raise SolverError(msg) from wide
    points = []
    for found in _sweep(graph, most):
        selection = normalise(model, graph.selection(found.options))
        point = FrontierPoint(evaluate(model, selection)[cost], importance(model, selection), selection)
        if violations(model, selection) or abs(point.importance - found.worth) > 1e-6 * max(
            found.worth, point.importance
        ):
            raise SolverError(f"the sweep made an unusable selection at {cost} {point.cost:g}")
        points.append(point)
    knees = _knees(points)
    return tuple(FrontierPoint(p.cost, p.importance, p.selection, i in knees) for i, p in enumerate(points))


def _sweep(graph: DecisionGraph, most: int) -> list[Assignment]:
    """Corners of the upper hull of (cost, importance), by ascending cost."""
    top = graph.best(graph.value(np.zeros(1)))
    unit = (top.worth or 1.0) / (float(top.costs[0]) or 1.0)
    dense = graph.best(graph.value(np.array([CHEAPEST * unit])))
    least = graph.best(graph.value(np.array([DEAREST * unit])))
    found = {float(a.costs[0]): a for a in (least, dense)}
    # Edges that may hide a corner, those that could hide most first.
    order = itertools.count()
    edges: list[tuple[float, int, Assignment, Assignment]] = []

    def push(low: Assignment, high: Assignment) -> None:
        width, height = float(high.costs[0] - low.costs[0]), high.worth - low.worth
        if width > 0 and height > STRAIGHT * top.worth:
            heapq.heappush(edges, (-width * height, next(order), low, high))

    push(least, dense)
    while edges and len(found) < most:
        _, _, low, high = heapq.heappop(edges)
        price = (high.worth - low.worth) / float(high.costs[0] - low.costs[0])
        middle = graph.best(graph.value(np.array([price])))
        above = middle.worth - price * float(middle.costs[0]) - (low.worth - price * float(low.costs[0]))
        if above > STRAIGHT * top.worth:
            found[float(middle.costs[0])] = middle
            push(low, middle)
            push(middle, high)
    return [found[cost] for cost in sorted(found)]


def _knees(points: list[FrontierPoint]) -> set[int]:
    """Up to KNEES corners that stand out most, one after the other, from the lines between the ends and those before.

    This is the choice of Ramer (1972) and of Douglas and Peucker (1973), on a curve scaled to a unit square.
    """
    cost, kept = np.array([p.cost for p in points]), np.array([p.importance for p in points])
    if len(points) < 3 or cost[-1] == cost[0] or kept[-1] == kept[0]:
        return set()
    x, y = (cost - cost[0]) / (cost[-1] - cost[0]), (kept - kept[0]) / (kept[-1] - kept[0])
    chosen = [0, len(points) - 1]
    for _ in range(KNEES):
        line = np.interp(x, x[chosen], y[chosen])
        far = int((y - line).argmax())
        if y[far] - line[far] < SLIGHT:
            break
        chosen = sorted({*chosen, far})
    return set(chosen[1:-1])
