"""A problem as a graph of decisions, and its best assignment at given prices by eliminating one decision at a time.

At a price per unit of every cost, a selection is worth its importance less the price of its costs. That is a sum of
tables over few decisions each: options of dimensions, blocks, and partial sums where a size adds up several dimensions.
Maximising over one decision after the other (max-plus elimination) gives the best selection exactly; passing messages
back gives, for every cell of every table, the best that a selection with that cell can be worth. Tables hold allowed
cells only: where partial sums follow from other decisions these are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import FloatArray, Selection
from mdp_fx.passes.solvers.decisions import Decisions, IntArray, Potential, Rule, TooWideError
from mdp_fx.passes.solvers.problem import Problem
from mdp_fx.passes.solvers.tolerances import ROUNDING

MOST_CELLS = 1 << 24
"""Cells of all tables together (less than a gigabyte with messages); more are not for elimination."""


@dataclass
class Clique:
    """The tables that mention a decision when it is eliminated, added up.

    The other decisions of the clique are its separator, and what they are is a state.

    Attributes:
        variables: the decisions, the eliminated one last, before it those that are eliminated latest first.
        counts: how many options each has.
        cells: allowed combinations of their options, as ascending flat indices into a table of these counts.
        worth: importance per cell.
        costs: [budgets, cells].
        states: allowed states, as ascending flat indices.
        starts: the first cell of every state.
        children: cliques whose message is added here, and which of its states every cell belongs to.
        parent: the clique that gets the message, None for the last one.
    """

    variables: tuple[int, ...]
    counts: tuple[int, ...]
    cells: IntArray
    worth: FloatArray
    costs: FloatArray
    states: IntArray
    starts: IntArray
    children: list[tuple[int, IntArray]] = field(default_factory=list)
    parent: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether all states are allowed."""
        return len(self.states) == math.prod(self.counts[:-1])

    @property
    def options(self) -> IntArray:
        """The option of the eliminated decision, per cell."""
        return self.cells % self.counts[-1]

    def state_at(self, cells: IntArray) -> IntArray:
        """The index of the state of some cells, themselves given by their index."""
        return np.searchsorted(self.starts, cells, side="right") - 1


@dataclass(frozen=True)
class Valuation:
    """Every clique's table at some prices.

    Attributes:
        prices: per unit of every cost.
        tables: per clique and cell, messages of its children included.
        messages: per clique and state, the best over its decision.
        value: worth of the best assignment less the price of its costs.
    """

    prices: FloatArray
    tables: list[FloatArray]
    messages: list[FloatArray]
    value: float


@dataclass(frozen=True)
class Assignment:
    """An option for every decision, what it is worth and what it costs (constants included)."""

    options: IntArray
    worth: float
    costs: FloatArray


class DecisionGraph:
    """The decisions of a problem in an elimination order.

    Args:
        problem: what is to be decided.
        costs: the costs that carry a budget, in the order of prices.

    Raises:
        TooWideError: the tables would have more than MOST_CELLS cells.
    """

    def __init__(self, problem: Problem, costs: Sequence[str]) -> None:
        self.problem = problem
        self.constants = np.array([problem.constants[name] for name in costs])
        self._decisions = Decisions(problem, costs)
        self.cliques = _eliminate(self._decisions, len(self.constants))

    def value(self, prices: FloatArray) -> Valuation:
        """The best assignment at some prices."""
        tables: list[FloatArray] = []
        messages: list[FloatArray] = []
        for clique in self.cliques:
            table = clique.worth - prices @ clique.costs
            for child, state in clique.children:
                table += messages[child][state]
            tables.append(table)
            messages.append(np.maximum.reduceat(table, clique.starts))
        return Valuation(prices, tables, messages, float(messages[-1][0]) - float(prices @ self.constants))

    def best(self, valuation: Valuation) -> Assignment:
        """The assignment of a valuation's value."""
        options = np.zeros(len(self._decisions.counts), dtype=np.intp)
        for clique, table in zip(reversed(self.cliques), reversed(valuation.tables), strict=True):
            state = np.searchsorted(clique.states, _flat(options[list(clique.variables[:-1])], clique.counts[:-1]))
            start, end = np.r_[clique.starts, len(clique.cells)][state : state + 2]
            cell = start + int(table[start:end].argmax())
            options[clique.variables[-1]] = clique.cells[cell] % clique.counts[-1]
        return self.assignment(options)

    def assignment(self, options: IntArray) -> Assignment:
        """What an option for every decision is worth and costs."""
        worth, costs = 0.0, self.constants.copy()
        for clique in self.cliques:
            cell = np.searchsorted(clique.cells, _flat(options[list(clique.variables)], clique.counts))
            worth += float(clique.worth[cell])
            costs += clique.costs[:, cell]
        return Assignment(options, worth, costs)

    def beliefs(self, valuation: Valuation) -> list[FloatArray]:
        """For every cell of every clique the value of the best assignment with that cell, without constants."""
        found = list(valuation.tables)
        for i in range(len(self.cliques) - 1, -1, -1):
            clique = self.cliques[i]
            if clique.parent is not None:
                around = np.full(len(clique.states), -np.inf)
                state = next(state for child, state in self.cliques[clique.parent].children if child == i)
                np.maximum.at(around, state, found[clique.parent])
                counts = np.diff(clique.starts, append=len(clique.cells))
                found[i] = valuation.tables[i] + np.repeat(around - valuation.messages[i], counts)
        return found

    def floor(self, prices: FloatArray, budgets: FloatArray, threshold: float) -> float:
        """What every belief is at least where a selection within the budgets keeps the threshold."""
        floor = threshold - float(prices @ (budgets - self.constants))
        return floor - ROUNDING * max(abs(threshold), abs(floor))

    def selection(self, options: IntArray) -> Selection:
        """The selection that an option for every decision means."""
        dims, blocks = self._decisions.dims, self._decisions.blocks
        sizes = {dim: self.problem.options[dim][options[variable]] for dim, variable in dims.items()}
        removed = tuple(block for block, variable in blocks.items() if not options[variable])
        return Selection({**self.problem.held, **sizes}, removed)

    def allowed(self, beliefs: Sequence[FloatArray], floor: float) -> dict[str, npt.NDArray[np.bool_]]:
        """Which options of every dimension occur in cells whose belief is the floor or more."""
        own = {clique.variables[-1]: i for i, clique in enumerate(self.cliques)}
        found: dict[str, npt.NDArray[np.bool_]] = {}
        for dim, variable in self._decisions.dims.items():
            clique = self.cliques[own[variable]]
            found[dim] = np.zeros(clique.counts[-1], dtype=bool)
            found[dim][clique.options[beliefs[own[variable]] >= floor]] = True
        return found


def _flat(options: IntArray, counts: Sequence[int]) -> int:
    """The flat index of a cell."""
    return int(np.ravel_multi_index(tuple(options), tuple(counts))) if len(counts) else 0


def _eliminate(decisions: Decisions, budgets: int) -> list[Clique]:
    """Cliques in elimination order; in the last one, of the decision that has one option, everything is added up."""
    root = len(decisions.counts) - 1
    order = [*_order(decisions), root]
    place = {variable: i for i, variable in enumerate(order)}
    waiting: dict[int, list[Potential]] = {variable: [] for variable in order}
    for potential in decisions.potentials:
        waiting[min(potential.variables, key=place.__getitem__, default=root)].append(potential)
    rules: dict[int, list[Rule]] = {variable: [] for variable in order}
    for rule in decisions.rules:
        rules[min(rule.variables, key=place.__getitem__)].append(rule)
    children: dict[int, list[int]] = {variable: [] for variable in order}
    cliques: list[Clique] = []
    left = MOST_CELLS
    for i, variable in enumerate(order):
        below = children[variable]
        around = {v for p in waiting[variable] for v in p.variables}
        around |= {v for rule in rules[variable] for v in rule.variables}
        around |= {v for child in below for v in cliques[child].variables[:-1]}
        outer = sorted(around - {variable}, key=place.__getitem__, reverse=True)
        ready = {child: cliques[child] for child in below}
        clique = _clique((*outer, variable), waiting[variable], ready, decisions, budgets, left)
        left -= len(clique.cells)
        for child in below:
            cliques[child].parent = i
        cliques.append(clique)
        if variable != root:
            children[outer[-1] if outer else root].append(i)
    return cliques


def _clique(
    variables: tuple[int, ...],
    potentials: Sequence[Potential],
    children: dict[int, Clique],
    decisions: Decisions,
    budgets: int,
    most: int,
) -> Clique:
    """The tables added up, of `most` cells at most."""
    counts = tuple(decisions.counts[v] for v in variables)
    relations = [(rule.variables, rule.rows) for rule in decisions.rules_within(variables)]
    for child in children.values():
        outer = child.variables[:-1]
        if not child.is_full:
            relations.append((outer, np.stack(np.unravel_index(child.states, child.counts[:-1]), axis=1)))
    cells = _cells(variables, counts, relations, most)
    index = dict(zip(variables, _columns(cells, counts), strict=True))
    worth, costs = np.zeros(len(cells)), np.zeros((budgets, len(cells)))
    for potential in potentials:
        at = tuple(index[v] for v in potential.variables)
        if potential.worth is not None:
            worth += potential.worth[at]
        if potential.costs is not None:
            for own, extra in zip(costs, potential.costs, strict=True):
                own += extra[at]
    state = cells // counts[-1]
    starts = np.flatnonzero(np.diff(state, prepend=-1))
    found = Clique(variables, counts, cells, worth, costs, state[starts], starts)
    for i, child in children.items():
        outer = child.variables[:-1]
        flat = np.zeros(len(cells), dtype=np.intp)
        for variable, count in zip(outer, child.counts[:-1], strict=True):
            flat = flat * count + index[variable]
        found.children.append((i, flat if child.is_full else np.searchsorted(child.states, flat)))
    return found


def _columns(cells: IntArray, counts: Sequence[int]) -> list[IntArray]:
    """The option of every decision, per cell."""
    return list(np.unravel_index(cells, tuple(counts))) if counts else []


def _cells(
    variables: tuple[int, ...],
    counts: tuple[int, ...],
    relations: Sequence[tuple[tuple[int, ...], IntArray]],
    most: int,
) -> IntArray:
    """The combinations of options that all relations allow, as ascending flat indices.

    Args:
        variables: decisions.
        counts: how many options each has.
        relations: (some of the decisions, allowed rows of their options).
        most: combinations at most.

    Raises:
        TooWideError: there are more.
    """

    def check(count: int) -> None:
        if count > most:
            raise TooWideError(f"eliminating decisions needs tables of more than {MOST_CELLS:,} cells")

    if not relations:
        check(math.prod(counts))
        return np.arange(math.prod(counts))
    strides = dict(zip(variables, np.cumprod((1, *counts[:0:-1]))[::-1].tolist(), strict=True))
    # What is known of the decisions joined so far: their options, and the flat index that they make.
    known: dict[int, IntArray] = {}
    flat = np.zeros(1, dtype=np.intp)
    waiting = list(relations)
    while waiting:
        names, rows = waiting.pop(max(range(len(waiting)), key=lambda i: len(known.keys() & set(waiting[i][0]))))
        shared = [v for v in names if v in known]
        key, wanted = np.zeros(len(rows), dtype=np.intp), np.zeros(len(flat), dtype=np.intp)
        for v in shared:
            count = counts[variables.index(v)]
            key, wanted = key * count + rows[:, names.index(v)], wanted * count + known[v]
        order = np.argsort(key, kind="stable")
        first = np.searchsorted(key[order], wanted)
        many = np.searchsorted(key[order], wanted, side="right") - first
        check(int(many.sum()))
        before = np.repeat(np.arange(len(flat)), many)
        after = order[np.arange(len(before)) - np.repeat(np.cumsum(many) - many, many) + first[before]]
        known = {v: options[before] for v, options in known.items()}
        flat = flat[before]
        for v in names:
            if v not in known:
                known[v] = rows[after, names.index(v)]
                flat = flat + known[v] * strides[v]
    for v, count in zip(variables, counts, strict=True):
        if v not in known:
            check(len(flat) * count)
            flat = (flat[:, None] + np.arange(count) * strides[v]).reshape(-1)
    return np.sort(flat)


def _order(decisions: Decisions) -> list[int]:
    """Decisions but the last in the order in which each makes the fewest cells."""
    counts = decisions.counts
    neighbours: list[set[int]] = [set() for _ in counts]
    for together in [p.variables for p in decisions.potentials] + [rule.variables for rule in decisions.rules]:
        for variable in together:
            neighbours[variable].update(together)
    for variable, around in enumerate(neighbours):
        around.discard(variable)

    def cells(variable: int) -> int:
        together = neighbours[variable] | {variable}
        free = [v for v in together if not decisions.follows(v, together)]
        return math.prod(counts[v] for v in free)

    sizes = {variable: cells(variable) for variable in range(len(counts) - 1)}
    order: list[int] = []
    while sizes:
        variable = min(sizes, key=sizes.__getitem__)
        del sizes[variable]
        order.append(variable)
        around = neighbours[variable]
        for one in around:
            neighbours[one] |= around
            neighbours[one] -= {one, variable}
        for one in around:
            sizes[one] = cells(one)
    return order
