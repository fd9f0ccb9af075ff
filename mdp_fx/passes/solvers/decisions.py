"""The decisions of a problem, and the tables over few of them each that its importance and costs are the sum of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import FloatArray, interpolation_weights
from mdp_fx.passes.solvers.problem import DimAxis, Problem, SizeAxis, TableAxis, TableFactor

IntArray = npt.NDArray[np.intp]

FEW_DIMS = 2
"""A size of more dimensions than this is added up by partial sums."""

MOST_ENTRIES = 1 << 22
"""Entries of a single table at most."""


class TooWideError(Exception):
    """The tables of an elimination would not fit into memory."""


@dataclass(frozen=True)
class Potential:
    """A table over some decisions.

    Attributes:
        variables: indices of the decisions.
        worth: importance [counts of the decisions], None for none.
        costs: [budgets, counts of the decisions], None for none.
    """

    variables: tuple[int, ...]
    worth: FloatArray | None = None
    costs: FloatArray | None = None


@dataclass(frozen=True)
class Rule:
    """Which options of some decisions go together.

    Attributes:
        variables: indices of the decisions.
        rows: [rows, decisions], the allowed options.
        result: the decision that follows from the others, None for none.
    """

    variables: tuple[int, ...]
    rows: IntArray
    result: int | None = None


class Decisions:
    """Decisions and tables of a problem.

    Attributes:
        counts: how many options every decision has; the last one has a single one.
        potentials: the tables.
        rules: what goes together.
        dims: the decision of every free dimension.
        blocks: the decision of every removable block: 0 where it goes, 1 where it stays.
    """

    def __init__(self, problem: Problem, costs: Sequence[str]) -> None:
        self._problem = problem
        self._names = tuple(costs)
        self.counts: list[int] = []
        self.potentials: list[Potential] = []
        self.rules: list[Rule] = []
        self.dims = {dim: self._variable(len(sizes)) for dim, sizes in problem.options.items()}
        self.blocks = {block: self._variable(2) for block in problem.parents}
        self._sums: dict[frozenset[tuple[int, tuple[str, ...]]], tuple[int, IntArray]] = {}
        self._structure()
        self._importance()
        sums = [a for f in problem.factors for a in f.axes if isinstance(a, SizeAxis) and len(a.dims) > FEW_DIMS]
        # Shorter sums first: longer ones go on from them.
        for axis in sorted(dict.fromkeys(sums), key=lambda a: len(a.terms)):
            self._sum(axis)
        for factor in problem.factors:
            self._factor(factor)
        # What everything is added up in.
        self._variable(1)

    def follows(self, variable: int, others: Collection[int]) -> bool:
        """Whether a decision follows from others."""
        return any(r.result == variable and set(r.variables) <= {variable, *others} for r in self.rules)

    def rules_within(self, variables: Collection[int]) -> Iterator[Rule]:
        """The rules about some decisions alone."""
        return (rule for rule in self.rules if set(rule.variables) <= set(variables))

    def _variable(self, count: int) -> int:
        self.counts.append(count)
        return len(self.counts) - 1

    def _rule(
        self, variables: Sequence[int], rows: Sequence[Sequence[int]] | IntArray, result: int | None = None
    ) -> None:
        self.rules.append(Rule(tuple(variables), np.asarray(rows, dtype=np.intp), result))

    def _structure(self) -> None:
        """What may be removed together, and what is 0 where."""
        parents = self._problem.parents
        for block, parent in parents.items():
            if parent is not None:
                self._rule((self.blocks[parent], self.blocks[block]), [(0, 0), (1, 0), (1, 1)])
        for names, parent in self._problem.exclusive:
            self._one_stays(names, parent)
        for dim, emptying in self._problem.emptied_by.items():
            if dim not in self.dims:
                continue
            blocks = tuple(dict.fromkeys(b for block in emptying for b in (block, parents[block]) if b is not None))
            rows = []
            for alive in itertools.product((0, 1), repeat=len(blocks)):
                state = dict(zip(blocks, alive, strict=True)) | {None: 1}
                gone = any(not state[b] and state[parents[b]] for b in emptying)
                options = (0,) if gone else range(1, self.counts[self.dims[dim]])
                rows += [(*alive, option) for option in options]
            self._rule((*(self.blocks[b] for b in blocks), self.dims[dim]), rows)

    def _one_stays(self, names: Sequence[str], parent: str | None) -> None:
        """One of the blocks stays while the parent is alive: a chain of "one of those so far stays"."""
        before = self.blocks[names[0]]
        for name in names[1:]:
            after = self._variable(2)
            rows = [(one, other, one | other) for one, other in itertools.product((0, 1), repeat=2)]
            self._rule((before, self.blocks[name], after), rows, after)
            before = after
        if parent is None:
            self._rule((before,), [(1,)])
        else:
            self._rule((self.blocks[parent], before), [(0, 0), (0, 1), (1, 1)])

    def _importance(self) -> None:
        for (dim, block), values in self._problem.importance.items():
            self._gated((self.dims[dim],), block, worth=values)
        for block, value in self._problem.importance_held.items():
            self._gated((), block, worth=np.array(value))

    def _gated(
        self,
        variables: tuple[int, ...],
        block: str | None,
        *,
        worth: FloatArray | None = None,
        costs: FloatArray | None = None,
    ) -> None:
        """Adds a table that counts only while a block is alive."""
        if block is not None:
            variables = (self.blocks[block], *variables)
            worth = None if worth is None else np.stack([np.zeros_like(worth), worth])
            costs = None if costs is None else np.stack([np.zeros_like(costs), costs], axis=1)
        self.potentials.append(Potential(variables, worth, costs))

    def _sum(self, axis: SizeAxis) -> tuple[int, IntArray]:
        """The decision that says what the terms of an axis add up to, and the sums that it may take."""
        terms = frozenset(axis.terms)
        if terms in self._sums:
            return self._sums[terms]
        known = max((built for built in self._sums if built < terms), key=len, default=frozenset[Any]())
        variable, values = self._sums.get(known, (-1, np.zeros(1, dtype=np.intp)))
        for term in sorted(terms - known):
            coefficient, dims = term
            if not known and len(dims) == 1:
                sizes = np.array(self._problem.options[dims[0]], dtype=np.intp)
                variable, values = self.dims[dims[0]], coefficient * sizes
            else:
                variable, values = self._plus(variable, values, term)
            known |= {term}
            self._sums[known] = variable, values
        return variable, values

    def _plus(self, variable: int, values: IntArray, term: tuple[int, tuple[str, ...]]) -> tuple[int, IntArray]:
        """A partial sum with one more term."""
        coefficient, dims = term
        names = tuple(dict.fromkeys(dims))
        shape = tuple(len(self._problem.options[d]) for d in names)
        added = np.full(shape, coefficient, dtype=np.intp)
        for dim in dims:
            sizes = np.array(self._problem.options[dim], dtype=np.intp)
            added = added * sizes.reshape([-1 if d == dim else 1 for d in names])
        sums = values.reshape([-1] + [1] * added.ndim) + added
        if sums.size > MOST_ENTRIES:
            raise TooWideError(f"a sum of {sums.size:,} combinations of sizes")
        reachable = np.unique(sums)
        result = self._variable(len(reachable))
        options = np.stack(np.unravel_index(np.arange(sums.size), sums.shape), axis=1)
        rows = np.c_[options, np.searchsorted(reachable, sums.reshape(-1))]
        columns = [variable, *(self.dims[d] for d in names), result]
        if variable in columns[1:]:
            # A dimension that is in both terms stands for itself.
            rows = rows[rows[:, 0] == rows[:, columns.index(variable, 1)]]
        if variable < 0 or variable in columns[1:]:
            rows, columns = rows[:, 1:], columns[1:]
        self._rule(columns, rows, result)
        return result, reachable

    def _factor(self, factor: TableFactor) -> None:
        variables: list[int] = []
        # Every axis as indices into the table, or as weights between its positions, over the decisions behind it.
        spreads: list[tuple[tuple[int, ...], FloatArray]] = []
        for axis in factor.axes:
            places, weights = self._axis(axis)
            spreads.append((places, weights))
            variables += [v for v in places if v not in variables]
        cells = math.prod(self.counts[v] for v in variables)
        if cells > MOST_ENTRIES:
            raise TooWideError(f"a table over {len(variables)} decisions has {cells:,} entries")
        costs = np.stack([self._spread(factor, name, spreads, variables) for name in self._names])
        self._gated(tuple(variables), factor.block, costs=costs)

    def _axis(self, axis: TableAxis) -> tuple[tuple[int, ...], FloatArray]:
        """The decisions behind an axis, and weights [counts of the decisions, positions]."""
        if isinstance(axis, DimAxis):
            variable = self.dims[axis.dim]
            return (variable,), np.eye(self.counts[variable])
        if len(axis.dims) > FEW_DIMS:
            variable, sums = self._sum(axis)
            return (variable,), interpolation_weights(axis.positions, (sums + axis.constant).tolist())
        sizes = [
            axis.size(dict(zip(axis.dims, choice, strict=True)))
            for choice in itertools.product(*(self._problem.options[d] for d in axis.dims))
        ]
        weights = interpolation_weights(axis.positions, sizes)
        shape = [len(self._problem.options[d]) for d in axis.dims]
        return tuple(self.dims[d] for d in axis.dims), weights.reshape(*shape, -1)

    def _spread(
        self, factor: TableFactor, name: str, spreads: list[tuple[tuple[int, ...], FloatArray]], variables: list[int]
    ) -> FloatArray:
        """A factor's table over its decisions."""
        table = factor.tables.get(name)
        shape = tuple(self.counts[v] for v in variables)
        if table is None:
            return np.zeros(shape)
        operands: list[Any] = [table, [len(self.counts) + i for i in range(table.ndim)]]
        for i, (places, weights) in enumerate(spreads):
            operands += [weights, [*places, len(self.counts) + i]]
        # einsum wants small labels.
        labels = {label: i for i, label in enumerate(dict.fromkeys(x for part in operands[1::2] for x in part))}
        operands[1::2] = [[labels[x] for x in part] for part in operands[1::2]]
        result: FloatArray = np.einsum(*operands, [labels[v] for v in variables], optimize=len(spreads) > 1)
        return result
