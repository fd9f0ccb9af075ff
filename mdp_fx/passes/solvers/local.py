"""A quick good selection, for exact solvers to start from: coordinate ascent against prices on the costs.

It proves nothing and removes no doubt; it is what is left where a proof takes too long (sums of many dimensions).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import FloatArray, Selection
from mdp_fx.passes.solvers.problem import DimAxis, Problem, SizeAxis, TableAxis, TableFactor

FIRST_PRICE = 0.02
PRICE_STEP = 1.4
BISECTIONS = 8
MOST_SWEEPS = 4


def local_search(problem: Problem, budgets: Mapping[str, float], deadline: float = math.inf) -> Selection | None:
    """A selection within the budgets that no change of a single decision improves; None where the search ends outside.

    The prices of the overstepped budgets rise from nearly nothing until all are met, then the last step is bisected.
    What the budgets still have room for is filled with the best single changes. At the deadline (on the clock of
    `time.monotonic`) it is left as it is.
    """
    return _Search(problem, budgets, deadline).run()


def filled(problem: Problem, budgets: Mapping[str, float], start: Selection, deadline: float = math.inf) -> Selection:
    """A selection within the budgets with what they still have room for, by the best single changes."""
    search = _Search(problem, budgets, deadline)
    search.at = {dim: sizes.index(start.sizes[dim]) for dim, sizes in problem.options.items()}
    search.gone = set(start.removed_blocks)
    search.refresh()
    search.fill()
    return search.selection()


class _Search:
    """The present decisions as indices into the options, and what each factor costs there."""

    def __init__(self, problem: Problem, budgets: Mapping[str, float], deadline: float) -> None:
        self.problem = problem
        self.deadline = deadline
        self.names = tuple(budgets)
        self.budgets = np.array([float(budgets[name]) for name in self.names])
        self.at = {dim: len(sizes) - 1 for dim, sizes in problem.options.items()}
        self.gone: set[str] = set()
        self.inside = {block: self._descendants(block) for block in problem.parents}
        self.constants = np.array([problem.constants[name] for name in self.names])
        self.tables = [np.stack([self._table(f, name) for name in self.names]) for f in problem.factors]
        largest = np.abs(self.constants)
        for table in self.tables:
            largest = np.maximum(largest, np.abs(table).reshape(len(self.names), -1).max(axis=1))
        # What prices are counted in: budgets, where these are more than nearly nothing.
        self.scales = np.maximum(self.budgets, 1e-3 * largest)
        self.scales[self.scales == 0] = 1.0
        self.users: dict[str, list[int]] = {dim: [] for dim in problem.options}
        for i, factor in enumerate(problem.factors):
            for dim in dict.fromkeys(d for axis in factor.axes for d in axis.dims):
                self.users[dim].append(i)
        self.values: dict[str, list[tuple[str | None, FloatArray]]] = {dim: [] for dim in problem.options}
        for (dim, block), values in problem.importance.items():
            self.values[dim].append((block, values))
        self.prices = np.zeros(len(self.names))
        self.refresh()

    def run(self) -> Selection | None:
        worth = max(self._worth(), 1e-12)
        self.prices = np.zeros(len(self.names))
        below = self.prices
        for _ in range(60):
            over = self.costs > self.budgets
            if not over.any():
                break
            if self._late():
                return None
            below = self.prices
            self.prices = np.where(over, np.maximum(self.prices * PRICE_STEP, FIRST_PRICE * worth), self.prices)
            self._ascend()
        else:
            return None
        best, above = self._state(), self.prices
        for _ in range(BISECTIONS):
            if self._late():
                break
            self.prices = (below + above) / 2
            self._ascend()
            if (self.costs > self.budgets).any():
                below = self.prices
            else:
                best, above = max(best, self._state(), key=lambda state: state[0]), self.prices
        _, self.at, self.gone = best
        self.refresh()
        self.fill()
        return self.selection()

    def selection(self) -> Selection:
        """The present decisions."""
        sizes = {dim: self.problem.options[dim][i] for dim, i in self.at.items()}
        return Selection({**self.problem.held, **sizes}, tuple(b for b in self.problem.parents if b in self.gone))

    def _late(self) -> bool:
        return time.monotonic() > self.deadline

    def _state(self) -> tuple[float, dict[str, int], set[str]]:
        return self._worth(), dict(self.at), set(self.gone)

    def fill(self) -> None:
        """Spend what is left of the budgets, the most importance per cost first."""
        while not self._late():
            room = self.budgets - self.costs
            best: tuple[float, str, int] | None = None
            for dim, now in self.at.items():
                gains, extra = self._effects(dim)
                fits = (extra <= room[:, None]).all(axis=0) & (gains > 0)
                share = np.maximum((extra / self.scales[:, None]).max(axis=0), 1e-12)
                rates = np.where(fits, gains / share, -1.0)
                index = int(rates.argmax())
                if index != now and rates[index] > 0 and (best is None or rates[index] > best[0]):
                    best = (float(rates[index]), dim, index)
            if best is None:
                return
            self._set(best[1], best[2])

    def _ascend(self) -> None:
        """Change one decision after the other to what is best at the prices."""
        for _ in range(MOST_SWEEPS):
            changed = False
            for dim, now in self.at.items():
                gains, extra = self._effects(dim)
                net = gains - (self.prices / self.scales) @ extra
                index = int(net.argmax())
                if net[index] > net[now] + 1e-12 * abs(net[now]):
                    self._set(dim, index)
                    changed = True
            changed |= self._toggle_blocks()
            if not changed:
                return

    def _toggle_blocks(self) -> bool:
        changed = False
        for block in self.problem.parents:
            before, sizes, worth = self.gone, dict(self.at), self._worth() - self.prices @ (self.costs / self.scales)
            self.gone = before - {block} if block in before else before | self.inside[block]
            self.refresh()
            self._resize()
            if self._allowed() and self._worth() - self.prices @ (self.costs / self.scales) > worth:
                changed = True
            else:
                self.gone, self.at = before, sizes
                self.refresh()
        return changed

    def _resize(self) -> None:
        """What the removed blocks empty goes to 0, what they no longer empty to what is best at the prices."""
        parents = self.problem.parents
        for dim, blocks in self.problem.emptied_by.items():
            if any(b in self.gone and parents[b] not in self.gone for b in blocks):
                self._set(dim, 0)
            elif self.at[dim] == 0:
                self._set(dim, len(self.problem.options[dim]) - 1)
                gains, extra = self._effects(dim)
                self._set(dim, int((gains - (self.prices / self.scales) @ extra).argmax()))

    def _allowed(self) -> bool:
        nested = all(parent not in self.gone or b in self.gone for b, parent in self.problem.parents.items())
        return nested and not any(
            self.gone.issuperset(names) and parent not in self.gone for names, parent in self.problem.exclusive
        )

    def _descendants(self, block: str) -> set[str]:
        found = {block}
        for name, parent in self.problem.parents.items():
            if parent in found:
                found.add(name)
        return found

    def _table(self, factor: TableFactor, name: str) -> FloatArray:
        return factor.tables.get(name, np.zeros([self.problem.positions(a) for a in factor.axes]))

    def _worth(self) -> float:
        held = math.fsum(v for block, v in self.problem.importance_held.items() if block not in self.gone)
        return held + math.fsum(
            float(values[self.at[dim]])
            for dim, terms in self.values.items()
            for block, values in terms
            if block not in self.gone
        )

    def refresh(self) -> None:
        """Counts the costs of the present decisions."""
        self.spent = [
            np.zeros(len(self.names)) if f.block in self.gone else self._cost(i, None)[:, 0]
            for i, f in enumerate(self.problem.factors)
        ]
        self.costs = self.constants + sum(self.spent, np.zeros(len(self.names)))

    def _set(self, dim: str, index: int) -> None:
        self.at[dim] = index
        for i in self.users[dim]:
            if self.problem.factors[i].block not in self.gone:
                new = self._cost(i, None)[:, 0]
                self.costs = self.costs + new - self.spent[i]
                self.spent[i] = new

    def _effects(self, dim: str) -> tuple[FloatArray, FloatArray]:
        """What importance [options] and the costs [costs, options] gain when one dimension goes to each option.

        A change to or from the 0 that only a removed block brings is worth nothing at all.
        """
        count = len(self.problem.options[dim])
        gains, extra = np.zeros(count), np.zeros((len(self.names), count))
        for block, values in self.values[dim]:
            if block not in self.gone:
                gains += values - values[self.at[dim]]
        for i in self.users[dim]:
            if self.problem.factors[i].block not in self.gone:
                extra += self._cost(i, dim) - self.spent[i][:, None]
        if dim in self.problem.emptied_by:
            gains[slice(1, None) if self.at[dim] == 0 else 0] = -math.inf
        return gains, extra

    def _cost(self, i: int, dim: str | None) -> FloatArray:
        """Costs [costs, options] of a factor at every option of one dimension, [costs, 1] at the present decisions."""
        low: list[npt.NDArray[np.intp]] = []
        high = low
        share: FloatArray = np.zeros(1)
        for axis in self.problem.factors[i].axes:
            below, above, part = self._position(axis, dim)
            if above is not below:
                high, share = [*low], part
                low, high = [*low, below], [*high, above]
            elif high is low:
                low = high = [*low, below]
            else:
                low, high = [*low, below], [*high, below]
        table = self.tables[i]
        every = (slice(None),)
        values: FloatArray = table[every + tuple(np.broadcast_arrays(*low))] if low else table[:, None]
        if high is not low:
            values = values * (1 - share) + table[every + tuple(np.broadcast_arrays(*high))] * share
        return values

    def _position(
        self, axis: TableAxis, dim: str | None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
        """Where an axis stands, between which positions and how far, at every option of one dimension."""
        if isinstance(axis, DimAxis):
            count = len(self.problem.options[axis.dim])
            index = np.arange(count) if axis.dim == dim else np.array([self.at[axis.dim]])
            return index, index, np.zeros(1)
        sizes = self._sizes(axis, dim)
        positions = np.array(axis.positions)
        if axis.kind != "between":
            index = np.searchsorted(positions, sizes)
            return index, index, np.zeros(1)
        above = np.clip(np.searchsorted(positions, sizes), 1, len(positions) - 1)
        below = above - 1
        return below, above, (sizes - positions[below]) / (positions[above] - positions[below])

    def _sizes(self, axis: SizeAxis, dim: str | None) -> FloatArray:
        sizes: FloatArray = np.full(1, float(axis.constant))
        for coefficient, dims in axis.terms:
            term: FloatArray = np.full(1, float(coefficient))
            for d in dims:
                options = self.problem.options[d]
                term = term * (np.array(options) if d == dim else options[self.at[d]])
            sizes = sizes + term
        return sizes
