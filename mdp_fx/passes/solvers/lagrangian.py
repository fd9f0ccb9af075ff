"""The Lagrangian solver: the dual's bound, and a proof by listing what its prices leave open.

What is left between the dual's bound (dual.py) and the best selection is the duality gap, usually below one percent. A
selection within the budgets that keeps W is worth at least W at the dual's prices, so all cells whose belief falls
below W are fixed away, and the selections that are left are listed (labels.py), for W from just below the bound
downwards, until one lies within the budgets: it is the best. Where the lists would be too long, the exact model decides
on the options that are left; where the decisions are too entangled for elimination, it decides on all.

A dimension that most regions share, such as the width of a transformer, makes the gap wide: at the prices one size of
it is as good as another far away, and none between them. It is decided first, each of its sizes with a dual of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import FloatArray, Selection
from mdp_fx.passes.solvers import Limits, Outcome
from mdp_fx.passes.solvers.decisions import TooWideError
from mdp_fx.passes.solvers.dual import Dual, minimise
from mdp_fx.passes.solvers.elimination import DecisionGraph
from mdp_fx.passes.solvers.labels import OutOfTimeError, TooManyLabelsError, best_above
from mdp_fx.passes.solvers.local import filled, local_search
from mdp_fx.passes.solvers.problem import Problem
from mdp_fx.passes.solvers.tolerances import closed

logger = logging.getLogger(__name__)

FIRST_REACH = 1e-4
"""First guess of how far below the bound the best selection lies, relative."""

REACH_GROWTH = 3.0

MOSTLY = 0.5
"""Share of the cost factors from which on a dimension is shared by most."""

OVERTIME = 5.0
"""Seconds past the time limit at most that the quick search may take: it needs some tenths of one."""


def solve_auto(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """The fastest solver that proves the gap: the Lagrangian one where the decisions can be eliminated, else exact."""
    try:
        graph = DecisionGraph(problem, tuple(budgets))
    except TooWideError as wide:
        logger.info("auto: %s; the exact model decides", wide)
        start = local_search(problem, budgets, limits.deadline)
        return replace(_improve(problem, budgets, limits, start), solver="exact")
    return replace(_solve(graph, budgets, limits), solver="lagrangian")


def _improve(problem: Problem, budgets: Mapping[str, float], limits: Limits, start: Selection | None) -> Outcome:
    # Pyomo takes longer to import than most problems take to solve.
    from mdp_fx.passes.solvers.exact import improve

    return improve(problem, budgets, limits, start)


def solve_lagrangian(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """Find the selection of most importance within the budgets.

    Falls back to the exact model, with a word in the log, where the decisions are too entangled for elimination.
    """
    outcome = solve_auto(problem, budgets, limits)
    if outcome.solver != "lagrangian":
        logger.warning("the lagrangian solver cannot take this search space apart: %s decided", outcome.solver)
    return outcome


def _solve(graph: DecisionGraph, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    dual, shared = minimise(graph, budgets, limits), _shared_by_most(graph.problem)
    if shared is None or dual.closed(limits.gap) or dual.bound < 0 or not limits.seconds_left():
        return _proven(dual, budgets, limits)
    return _size_by_size(shared, dual, budgets, limits)


def _proven(dual: Dual, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """The best selection, by listing what the dual leaves open."""
    graph = dual.graph
    beliefs: list[FloatArray] = []
    top = dual.bound
    reach = max(FIRST_REACH, limits.gap) * abs(top)
    # Importance is never negative: a bound below nothing says that nothing is within the budgets.
    while not dual.closed(limits.gap) and dual.bound >= 0 and limits.seconds_left():
        beliefs = beliefs or graph.beliefs(dual.valuation)
        known = 0.0 if dual.best is None else dual.best.worth * (1 + limits.gap)
        threshold = max(top - reach, known)
        try:
            found = best_above(graph, dual.valuation, beliefs, dual.budgets, threshold, limits.deadline)
        except OutOfTimeError:
            break
        except TooManyLabelsError:
            return _exact_on_the_rest(dual, beliefs, budgets, limits)
        if found is not None:
            dual.best, dual.bound = found, found.worth
        elif threshold > 0:
            dual.bound = min(dual.bound, threshold)
        else:
            dual.bound = -math.inf
        reach *= REACH_GROWTH
    if dual.best is None:
        return Outcome(None, -math.inf, dual.bound if dual.bound >= 0 else -math.inf)
    selection = graph.selection(dual.best.options) if dual.closed(limits.gap) else _best_known(dual, budgets)
    assert selection is not None
    return Outcome(selection, graph.problem.worth(selection), dual.bound)


def _best_known(dual: Dual, budgets: Mapping[str, float]) -> Selection | None:
    """The best selection that the prices met or a quick search finds.

    Prices jump from one selection to another far from it, and may leave most of the budgets unspent between the two.
    """
    problem = dual.graph.problem
    return _better(problem, local_search(problem, budgets, time.monotonic() + OVERTIME), _met(dual, budgets))


def _shared_by_most(problem: Problem) -> str | None:
    """The dimension that takes part in most cost factors, where that is most of them and it has a choice."""
    counts = Counter(dim for factor in problem.factors for dim in {d for axis in factor.axes for d in axis.dims})
    open_to = {dim: count for dim, count in counts.items() if sum(size > 0 for size in problem.options[dim]) > 1}
    most = max(open_to, key=open_to.__getitem__, default=None)
    return most if most is not None and open_to[most] >= MOSTLY * len(problem.factors) else None


def _size_by_size(dim: str, dual: Dual, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """The best selection over the sizes of one dimension: the duals of all of them first, then the most promising."""
    problem, beliefs = dual.graph.problem, dual.graph.beliefs(dual.valuation)
    logger.info("lagrangian: %s is shared by most regions; its sizes are decided one by one", dim)
    best = _met(dual, budgets)
    allowed = _allowed(dual, beliefs, best)
    parts: list[Dual] = []
    left = -math.inf
    for option in np.flatnonzero(allowed[dim]):
        if not limits.seconds_left():
            left = dual.bound
            break
        only = np.arange(len(allowed[dim])) == option
        part = DecisionGraph(problem.restricted({**allowed, dim: only}), tuple(budgets))
        parts.append(minimise(part, budgets, limits))
        best = _better(problem, best, _met(parts[-1], budgets))
    for each in sorted(parts, key=lambda each: each.bound, reverse=True):
        if not limits.seconds_left() or (best is not None and closed(problem.worth(best), each.bound, limits.gap)):
            left = max(left, each.bound)
            break
        outcome = _proven(each, budgets, limits)
        left = max(left, outcome.bound)
        best = _better(problem, best, outcome.selection)
    best = best or _best_known(dual, budgets)
    if best is None:
        return Outcome(None, -math.inf, left)
    return Outcome(best, problem.worth(best), max(problem.worth(best), min(left, dual.bound)))


def _allowed(dual: Dual, beliefs: list[FloatArray], known: Selection | None) -> dict[str, npt.NDArray[np.bool_]]:
    """The options that a selection better than the one known may have."""
    worth = 0.0 if known is None else dual.graph.problem.worth(known)
    return dual.graph.allowed(beliefs, dual.graph.floor(dual.valuation.prices, dual.budgets, worth))


def _better(problem: Problem, *found: Selection | None) -> Selection | None:
    return max(filter(None, found), key=problem.worth, default=None)


def _met(dual: Dual, budgets: Mapping[str, float]) -> Selection | None:
    """The best selection that the prices met, with what the budgets still have room for."""
    if dual.best is None:
        return None
    deadline = time.monotonic() + OVERTIME
    return filled(dual.graph.problem, budgets, dual.graph.selection(dual.best.options), deadline)


def _exact_on_the_rest(dual: Dual, beliefs: list[FloatArray], budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """The exact model on the options that a selection better than the best one known may have."""
    graph = dual.graph
    start = _best_known(dual, budgets)
    allowed = _allowed(dual, beliefs, start)
    if not all(mask.any() for mask in allowed.values()):
        # Nothing better is left.
        objective = -math.inf if start is None else graph.problem.worth(start)
        return Outcome(start, objective, objective)
    logger.info("lagrangian: too many selections to list; the exact model decides on what is left")
    inside = _improve(graph.problem.restricted(allowed), budgets, limits, start)
    if inside.selection is None:
        return inside
    return Outcome(inside.selection, inside.objective, max(min(dual.bound, inside.bound), inside.objective))
