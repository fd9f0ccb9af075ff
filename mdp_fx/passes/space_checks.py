"""Checks that a search space is consistent, with one-line errors that name what is wrong and where."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mdp_fx.errors import InputError
from mdp_fx.passes.space_blocks import ancestors, emptied_by

if TYPE_CHECKING:
    from mdp_fx.passes.search_space import CostTerm, SearchSpace


# HiGHS takes what is larger for infinite, and sums of it would overflow.
INFINITE = 1e20

# Sizes beyond this are no longer exact as floats.
LARGEST_SIZE = 2**53


def _finite(value: float) -> bool:
    return 0 <= value < INFINITE


def _unique(what: str, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if not name or not name.isprintable():
            raise InputError(f"search space: the name {name!r} of a {what} is empty or not printable")
        if name in seen:
            raise InputError(f"search space: {what} {name!r} is listed twice")
        seen.add(name)
    return seen


def check_space(space: SearchSpace, *, roles: Sequence[str], units: Sequence[str]) -> None:
    """Raise InputError for the first thing that makes the space inconsistent.

    Args:
        space: The search space.
        roles: Known roles of cost axes.
        units: Known units of costs.
    """
    _unique("dimension", (d.name for d in space.dimensions))
    for d in space.dimensions:
        if not d.sizes or d.sizes[0] < 0 or any(a >= b for a, b in itertools.pairwise(d.sizes)):
            raise InputError(f"search space: sizes of dimension {d.name!r} must be ascending and not negative")
    _check_blocks(space)
    _unique("cost", space.costs)
    dims, blocks = {d.name: d for d in space.dimensions}, {b.name for b in space.blocks}

    def known(where: str, block: str | None, names: Iterable[str]) -> None:
        if block is not None and block not in blocks:
            raise InputError(f"{where} names an unknown block {block!r}")
        for name in names:
            if name not in dims:
                raise InputError(f"{where} names an unknown dimension {name!r}")

    for name, size in space.fixed.items():
        known("search space: 'fixed'", None, [name])
        if size not in dims[name].sizes:
            raise InputError(f"search space: dimension {name!r} is fixed at {size}, which is not one of its sizes")
    for term in space.importance:
        where = f"importance of layer {term.layer!r}"
        known(where, term.block, [term.dim])
        if len(term.values) != len(dims[term.dim].sizes):
            raise InputError(
                f"{where} has {len(term.values)} values for {len(dims[term.dim].sizes)} sizes of {term.dim!r}"
            )
        for size, value in zip(dims[term.dim].sizes, term.values, strict=True):
            if not _finite(value):
                raise InputError(f"{where} is {value:g} at size {size}; it must be finite and not negative")
        for (small, low), (large, high) in itertools.pairwise(zip(dims[term.dim].sizes, term.values, strict=True)):
            if high < low:
                raise InputError(f"{where} falls as more is kept: {low:g} at size {small}, {high:g} at size {large}")
    smallest = {d.name: space.fixed.get(d.name, d.sizes[0]) for d in space.dimensions}
    dense = {d.name: d.dense for d in space.dimensions}
    for cost, model in space.costs.items():
        if model.unit not in units:
            raise InputError(f"cost {cost!r} has the unknown unit {model.unit!r}; units are {', '.join(units)}")
        if not _finite(model.constant):
            raise InputError(f"cost {cost!r} has the constant {model.constant:g}; it must be finite and not negative")
        for region in model.terms:
            known(f"cost {cost!r}, region {region.region!r}", region.block, (d for a in region.axes for d in a.dims))
            _check_term(f"cost {cost!r}, region {region.region!r}", region, smallest, dense, roles)
    for cost, budget in space.budgets.items():
        if cost not in space.costs:
            raise InputError(f"search space: 'budgets' names an unknown cost {cost!r}")
        if not _finite(budget):
            raise InputError(f"search space: the {cost} budget is {budget:g}; it must be finite and not negative")


def _check_blocks(space: SearchSpace) -> None:
    names = _unique("block", (b.name for b in space.blocks))
    parents = {b.name: b.parent for b in space.blocks}
    for block in space.blocks:
        if block.parent is not None and block.parent not in names:
            raise InputError(f"block {block.name!r} has an unknown parent {block.parent!r}")
    for block in space.blocks:
        seen, at = {block.name}, block.parent
        while at is not None:
            if at in seen:
                raise InputError(f"block {block.name!r} lies inside itself")
            seen.add(at)
            at = parents[at]
    for group in space.exclusive:
        if not group:
            raise InputError("search space: an exclusive set of blocks is empty")
        for name in group:
            if name not in names:
                raise InputError(f"search space: an exclusive set names an unknown block {name!r}")
        _unique("block of an exclusive set", group)
    for block in space.blocks:
        _unique(f"dimension that block {block.name!r} empties,", block.empties)
    _check_emptied(space)


def _check_emptied(space: SearchSpace) -> None:
    dims = {d.name: d for d in space.dimensions}
    for name, blocks in emptied_by(space.blocks).items():
        where = f"search space: block {blocks[0]!r} empties"
        if name not in dims:
            raise InputError(f"{where} an unknown dimension {name!r}")
        if dims[name].sizes[0] != 0 or len(dims[name].sizes) < 2 or name in space.fixed:
            raise InputError(f"{where} dimension {name!r}, which must be free and have 0 as the first of several sizes")
        innermost = max((ancestors(space.blocks, block) for block in blocks), key=len)
        if apart := [block for block in blocks if block not in innermost]:
            raise InputError(f"{where} dimension {name!r}, and so does {apart[0]!r} beside it")


def _check_term(
    where: str, term: CostTerm, smallest: Mapping[str, int], dense: Mapping[str, int], roles: Sequence[str]
) -> None:
    for i, axis in enumerate(term.axes):
        place = f"{where}, axis {i}"
        if axis.role not in roles:
            raise InputError(f"{place} has the unknown role {axis.role!r}; roles are {', '.join(roles)}")
        if axis.constant < 0 or any(t.coefficient < 1 or not t.dims for t in axis.terms):
            raise InputError(
                f"{place}: the constant must not be negative, coefficients at least 1, each with dimensions"
            )
        if not axis.points or any(a >= b for a, b in itertools.pairwise(axis.points)):
            raise InputError(f"{place}: points must be ascending")
        if axis.size(dense) > LARGEST_SIZE:
            raise InputError(f"{place}: its dense size is beyond 2^53")
        if axis.points[0] > axis.size(smallest) or axis.points[-1] != axis.size(dense):
            reach = f"{axis.size(smallest)} to {axis.size(dense)}"
            raise InputError(f"{place}: points {axis.points[0]} to {axis.points[-1]} do not cover the sizes {reach}")
    if term.table.shape != (shape := tuple(len(a.points) for a in term.axes)):
        raise InputError(f"{where}: table of shape {term.table.shape} for points of {shape}")
    # Written so that undefined entries are wrong too.
    wrong = ~((term.table >= 0) & (term.table < INFINITE))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        sizes = ", ".join(f"{axis.role} {axis.points[i]}" for axis, i in zip(term.axes, index, strict=True))
        entry = f"the table has {term.table[index]:g}" + (f" at {sizes}" if sizes else "")
        raise InputError(f"{where}: {entry}; entries must be finite and not negative")
