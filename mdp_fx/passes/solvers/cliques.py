"""Tighter tables: factors that form cycles are merged into cliques, and dominated choices are dropped.

The transport polytopes of single tables are a perfect relaxation where the tables form a tree over the dimensions (up
to the budget). A bottleneck block is a cycle: outer width - inner 1 - inner 2 - outer width. Eliminating dimensions one
by one and merging the tables of each eliminated dimension into one over its neighbours (a junction tree) removes that
gap, so that the relaxation's bound is the Lagrangian one. Inside a clique, a combination of dimensions that occur
nowhere else is needed only if no other one costs less in every budget and is worth as much: usually a tenth is left.
Nothing is lost: the optimum and the meaning of every variable stay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import FloatArray
from mdp_fx.passes.solvers.problem import DimAxis, Problem, SizeAxis, TableAxis, TableFactor, axis_key

# Cells of a clique's table before dominated ones are dropped; dimensions that need larger cliques stay as they are.
MAX_CELLS = 16384


def form_cliques(problem: Problem) -> Problem:
    """The same problem with cyclic factors merged and dominated cells masked."""
    blocks = dict.fromkeys(factor.block for factor in problem.factors)
    return replace(problem, factors=tuple(f for block in blocks for f in _Context(problem, block).factors()))


@dataclass(frozen=True)
class _Clique:
    axes: frozenset[TableAxis]
    separator: frozenset[TableAxis]


class _Context:
    """The factors gated by one block, and the dimensions that only they mention."""

    def __init__(self, problem: Problem, block: str | None) -> None:
        self.problem = problem
        self.block = block
        self.pool = [f for f in problem.factors if f.block == block]
        self.private = {axis for f in self.pool for axis in f.axes if self._is_private(axis)}

    def _is_private(self, axis: TableAxis) -> bool:
        """Whether the axis is a dimension that occurs under this block alone and in no composed size."""
        # What is 0 or not is for the blocks to say, whatever a table says of it.
        if not isinstance(axis, DimAxis) or axis.dim in self.problem.emptied_by:
            return False
        others = (f for f in self.problem.factors if f.block != self.block)
        composed = (a for f in self.problem.factors for a in f.axes if isinstance(a, SizeAxis))
        return not (
            any(axis in f.axes for f in others)
            or any(axis.dim in a.dims for a in composed)
            or any(dim == axis.dim and block != self.block for dim, block in self.problem.importance)
        )

    def factors(self) -> list[TableFactor]:
        cliques = self._eliminate()
        left = [f for f in self.pool if not any(c.axes.issuperset(f.axes) for c in cliques)]
        merged = []
        taken: set[int] = set()
        for clique in cliques:
            parts = [
                (i, f) for i, f in enumerate(self.pool) if f.axes and i not in taken and clique.axes.issuperset(f.axes)
            ]
            taken.update(i for i, _ in parts)
            merged.append(self._merge(clique, cliques, [f for _, f in parts]))
        plain = [f for f in self.pool if not f.axes]
        kept = [*plain, *(f for f in left if f.axes), *merged]
        return [self._without_dominated(f, kept) for f in kept]

    def _eliminate(self) -> list[_Clique]:
        """Cliques of an elimination order that takes the smallest clique first."""
        neighbours: dict[TableAxis, set[TableAxis]] = {}
        for factor in self.pool:
            for axis in factor.axes:
                neighbours.setdefault(axis, set()).update(a for a in factor.axes if a != axis)
        waiting = sorted(self.private, key=axis_key)
        cliques: list[_Clique] = []
        while waiting:
            axis = min(waiting, key=lambda a: self._cells({a, *neighbours[a]}))
            around = neighbours[axis]
            if self._cells({axis, *around}) > MAX_CELLS:
                break
            waiting.remove(axis)
            clique = frozenset({axis, *around})
            if len(around) > 1 and not any(clique <= c.axes for c in cliques):
                cliques.append(_Clique(clique, frozenset(around)))
            for one in around:
                neighbours[one] |= around - {one}
                neighbours[one].discard(axis)
        return cliques

    def _cells(self, axes: Iterable[TableAxis]) -> int:
        return math.prod(self.problem.positions(a) for a in axes)

    def _merge(self, clique: _Clique, cliques: list[_Clique], parts: list[TableFactor]) -> TableFactor:
        axes = tuple(sorted(clique.axes, key=axis_key))
        shape = tuple(self.problem.positions(a) for a in axes)
        tables: dict[str, FloatArray] = {}
        for part in parts:
            where = tuple(slice(None) if a in part.axes else None for a in axes)
            for name, table in part.tables.items():
                tables[name] = tables.get(name, np.zeros(shape)) + table[where]
        ties = {
            one.separator
            for one, other in itertools.permutations(cliques, 2)
            if one.separator <= other.axes and clique in (one, other)
        }
        ordered = (tuple(sorted(tie, key=axis_key)) for tie in ties)
        return TableFactor(
            axes, self.block, tables, ties=tuple(sorted(ordered, key=lambda t: [axis_key(a) for a in t]))
        )

    def _without_dominated(self, factor: TableFactor, factors: list[TableFactor]) -> TableFactor:
        elsewhere = {a for f in factors if f is not factor for a in f.axes} | {a for t in factor.ties for a in t}
        inner = [i for i, a in enumerate(factor.axes) if a in self.private and a not in elsewhere]
        outer = [i for i in range(len(factor.axes)) if i not in inner]
        between = any(isinstance(axis, SizeAxis) and axis.kind == "between" for axis in factor.axes)
        # A size between two positions mixes their cells: what is dominated at one may be best between them.
        if not inner or len(factor.axes) == 1 or between:
            return factor
        shape = tuple(self.problem.positions(a) for a in factor.axes)
        worth = np.zeros(shape)
        for i in inner:
            axis = factor.axes[i]
            if isinstance(axis, DimAxis) and (axis.dim, self.block) in self.problem.importance:
                values = self.problem.importance[axis.dim, self.block]
                worth += values.reshape([-1 if j == i else 1 for j in range(len(shape))])
        count = math.prod(shape[i] for i in outer)
        goods = np.stack([worth, *(-table for table in factor.tables.values())])
        rows = goods.transpose(0, *(i + 1 for i in outer), *(i + 1 for i in inner)).reshape(len(goods), count, -1)
        mask = efficient(rows)
        back = np.argsort([*outer, *inner])
        support = mask.reshape([shape[i] for i in (*outer, *inner)]).transpose(back)
        return replace(factor, support=support)


def efficient(goods: FloatArray) -> npt.NDArray[np.bool_]:
    """Which points no other point of their row equals or exceeds in every criterion (one of equals stays).

    Args:
        goods: [criteria, rows, points], more is better.

    Returns:
        Mask [rows, points].
    """
    mask = np.zeros(goods.shape[1:], dtype=bool)
    for row in range(goods.shape[1]):
        points = goods[:, row]
        order = np.lexsort(-points[::-1])
        if len(points) == 2:
            # Best first criterion first: a point is needed if it beats all before it in the second.
            second = points[1, order]
            before = np.maximum.accumulate(np.concatenate([[-np.inf], second[:-1]]))
            mask[row, order[second > before]] = True
            continue
        kept = np.empty((len(points), 0))
        for point in order:
            column = points[:, point, None]
            if not (kept >= column).all(axis=0).any():
                kept = np.hstack([kept, column])
                mask[row, point] = True
    return mask
