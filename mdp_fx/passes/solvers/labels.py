"""All selections that may be worth a threshold, so that the best one within the budgets is among them.

Elimination with whole lists instead of single best values: a label is a choice below a clique, with its importance and
costs. At the prices p of the dual, what keeps W within the budgets is worth at least W - p * budgets, and the beliefs
say how far each cell may fall short of its best before that. Labels that fall further are dropped at once, and so are
those that another label of the same state beats in importance and in cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import FloatArray
from mdp_fx.passes.solvers.decisions import IntArray
from mdp_fx.passes.solvers.elimination import Assignment, DecisionGraph, Valuation

MOST_LABELS = 4_000_000
"""More labels than this, of all cliques together, are left to the exact model."""

PIVOTS = 4
"""Labels of a state at most that all others of it are held against, where there are several costs."""


class TooManyLabelsError(Exception):
    """The threshold is so low that the lists would not fit into memory."""


class OutOfTimeError(Exception):
    """The deadline came before the lists were complete."""


@dataclass(frozen=True)
class _Labels:
    """Choices below a clique, sorted by its state and then by loss.

    Attributes:
        state: index of the clique's state.
        loss: what the choice is worth less than the best one of the same state at the prices.
        worth: importance.
        costs: [budgets, labels].
        cell: index of the clique's cell.
        parts: for every child clique, which of its labels it is made of.
    """

    state: IntArray
    loss: FloatArray
    worth: FloatArray
    costs: FloatArray
    cell: IntArray
    parts: list[IntArray]

    def take(self, kept: IntArray | npt.NDArray[np.bool_]) -> _Labels:
        """Some of the labels."""
        parts = [part[kept] for part in self.parts]
        return _Labels(self.state[kept], self.loss[kept], self.worth[kept], self.costs[:, kept], self.cell[kept], parts)


def best_above(
    graph: DecisionGraph,
    valuation: Valuation,
    beliefs: Sequence[FloatArray],
    budgets: FloatArray,
    threshold: float,
    deadline: float = math.inf,
) -> Assignment | None:
    """The assignment of most importance within the budgets, if that is the threshold or more.

    Args:
        graph: the decisions.
        valuation: at the dual's best prices: the lower its bound, the shorter the lists.
        beliefs: of the valuation.
        budgets: per cost.
        threshold: an importance.
        deadline: on the clock of `time.monotonic`.

    Returns:
        The best assignment, or None: then nothing within the budgets keeps as much as the threshold.

    Raises:
        TooManyLabelsError: there are too many to list.
        OutOfTimeError: the deadline has come.
    """
    floor = graph.floor(valuation.prices, budgets, threshold)
    lists: list[_Labels] = []
    for i in range(len(graph.cliques)):
        if time.monotonic() > deadline:
            raise OutOfTimeError
        most = MOST_LABELS - sum(len(labels.state) for labels in lists)
        lists.append(_join(graph, valuation, beliefs[i], lists, i, floor, most))
        if not len(lists[-1].state):
            return None
    last = lists[-1]
    over = last.costs + graph.constants[:, None] > budgets[:, None]
    worth = np.where(over.any(axis=0), -np.inf, last.worth)
    label = int(worth.argmax())
    if worth[label] < threshold:
        return None
    return graph.assignment(_trace(graph, lists, label))


def _join(
    graph: DecisionGraph,
    valuation: Valuation,
    belief: FloatArray,
    lists: Sequence[_Labels],
    i: int,
    floor: float,
    most: int,
) -> _Labels:
    """The labels of a clique, made of those of its children: `most` at most."""
    clique = graph.cliques[i]
    cell = np.flatnonzero(belief >= floor)
    if not len(cell):
        return _Labels(cell, belief[:0], belief[:0], np.empty((len(clique.costs), 0)), cell, [])
    slack = belief[cell] - floor
    # While the children are joined, a label's state is the row of its cell.
    labels = _Labels(np.arange(len(cell)), np.zeros(len(cell)), clique.worth[cell], clique.costs[:, cell], cell, [])
    for child, state in clique.children:
        labels = _undominated(_times(labels, lists[child], state[cell], slack, most))
    state = clique.state_at(labels.cell)
    loss = labels.loss + valuation.messages[i][state] - valuation.tables[i][labels.cell]
    return _undominated(_Labels(state, loss, labels.worth, labels.costs, labels.cell, labels.parts))


def _times(labels: _Labels, below: _Labels, state: IntArray, slack: FloatArray, most: int) -> _Labels:
    """Every label with every label of a child that fits to its cell, where both lose no more than the slack.

    Args:
        labels: the state of each is its row in `slack`.
        below: the child's.
        state: of the child, per row.
        slack: per row.
        most: labels at most.
    """
    wanted = state[labels.state]
    first, last = np.searchsorted(below.state, wanted), np.searchsorted(below.state, wanted, side="right")
    # Labels of a state lie by their loss: only a first part of them is within the slack.
    room = np.maximum(slack[labels.state] - labels.loss, 0.0)
    widest = max(float(below.loss.max(initial=0.0)), float(room.max(initial=0.0)), 1e-300) * 1.0001
    keys = below.state + below.loss / widest
    # Rounding may let one in that is not: all are looked at again.
    count = np.minimum(np.searchsorted(keys, wanted + room / widest + 1e-6), last) - first
    total = int(count.sum())
    if total > most:
        raise TooManyLabelsError
    row = np.repeat(np.arange(len(wanted)), count)
    part = np.arange(total) - np.repeat(np.cumsum(count) - count, count) + first[row]
    keep = labels.loss[row] + below.loss[part] <= slack[labels.state[row]]
    row, part = row[keep], part[keep]
    joined = labels.take(row)
    return _Labels(
        joined.state,
        joined.loss + below.loss[part],
        joined.worth + below.worth[part],
        joined.costs + below.costs[:, part],
        joined.cell,
        [*joined.parts, part],
    )


def _undominated(labels: _Labels) -> _Labels:
    """Labels in order, without those that another one of the state equals or beats (one of equals stays).

    With several costs some of these stay: a label is held against the best few at the prices.
    """
    if len(labels.costs) == 1:
        labels = labels.take(_pareto(labels))
    labels = labels.take(np.lexsort((labels.loss, labels.state)))
    return labels if len(labels.costs) == 1 else labels.take(_unbeaten(labels))


def _pareto(labels: _Labels) -> IntArray:
    """Which labels no other one of the state equals or beats in importance and the one cost."""
    order = np.lexsort((-labels.worth, labels.costs[0], labels.state))
    state = labels.state[order]
    # A running maximum per state: every state is lifted above the one before. Ranks, as sums would be rounded.
    values, rank = np.unique(labels.worth[order], return_inverse=True)
    height = rank + state * len(values)
    best = np.maximum.accumulate(height)
    kept: IntArray = order[np.r_[True, height[1:] > best[:-1]][: len(order)]]
    return kept


def _unbeaten(labels: _Labels) -> IntArray:
    """Which labels are equalled or beaten by none of the first PIVOTS that stay of their state."""
    left = np.arange(len(labels.state))
    for pivot in range(PIVOTS):
        state = labels.state[left]
        first = np.flatnonzero(np.diff(state, prepend=-1))
        count = np.diff(first, append=len(left))
        if (count <= pivot + 1).all():
            break
        against = np.repeat(first + np.minimum(pivot, count - 1), count)
        beaten = np.arange(len(left)) > against
        for goods in (labels.worth, *-labels.costs):
            mine = goods[left]
            beaten &= mine <= mine[against]
        left = left[~beaten]
    return left


def _trace(graph: DecisionGraph, lists: Sequence[_Labels], label: int) -> IntArray:
    """The decisions that a label of the last clique is made of."""
    options = np.zeros(len(graph.cliques), dtype=np.intp)
    pending = [(len(lists) - 1, label)]
    while pending:
        i, at = pending.pop()
        clique, labels = graph.cliques[i], lists[i]
        options[clique.variables[-1]] = clique.cells[labels.cell[at]] % clique.counts[-1]
        pending += [(child, int(part[at])) for (child, _), part in zip(clique.children, labels.parts, strict=True)]
    return options
