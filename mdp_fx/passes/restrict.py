"""A search space with fewer choices: floors, dimensions held at a size, blocks that must stay."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from mdp_fx.errors import MOST_NAMED, BudgetError, InputError, one_of
from mdp_fx.passes.arguments import check_restrictions
from mdp_fx.passes.search_space import CostTerm, Dimension, SearchSpace, Selection, interpolation_weights
from mdp_fx.passes.space_blocks import ancestors, emptied, emptied_by

# A share of a size may round up what it should equal.
ROUNDING = 1e-9


def restrict(
    space: SearchSpace,
    *,
    min_keep: float | None = None,
    fixed: Mapping[str, int] | None = None,
    keep_blocks: Collection[str] = (),
    at_most: Mapping[str, int] | None = None,
    removed: Collection[str] = (),
) -> SearchSpace:
    """The members of a space that satisfy restrictions, as a space of its own.

    Args:
        space: The search space; it stays as it is.
        min_keep: Share of its dense size that every dimension keeps at least. It does not touch the dimensions that
            are held at a size, here or in the space, nor the 0 of those that go with a block.
        fixed: Dimensions held at one of their sizes. Blocks that would take such a dimension to 0 stay.
        keep_blocks: Blocks that stay, and with them the blocks around them.
        at_most: One of the sizes of dimensions that have lost units for good: larger ones are not offered.
        removed: Blocks that are removed for good: the space has no more of them.

    Raises:
        InputError: Such a dimension, size or block is not in the space, or a restriction is of another type.
    """
    check_restrictions(min_keep, fixed, keep_blocks)
    fixed = dict(fixed or {})
    at_most = at_most or {}
    space = _without(space, removed) if removed else space
    _check_fixed(space, fixed)
    names = [block.name for block in space.blocks]
    for name in keep_blocks:
        if name not in names:
            raise InputError(f"unknown block {name!r} is to stay{one_of(name, names)}")
    emptying = emptied_by(space.blocks)
    asked = [*keep_blocks, *(block for dim in fixed for block in emptying.get(dim, ()))]
    staying = {around for name in asked for around in ancestors(space.blocks, name)}
    blocks = tuple(
        replace(block, parent=None if block.parent in staying else block.parent)
        for block in space.blocks
        if block.name not in staying
    )
    left = emptied_by(blocks)
    held = {**space.fixed, **fixed}

    def allowed(dim: Dimension, size: int) -> bool:
        if dim.name in emptying and size == 0:
            return dim.name in left
        floor = 0.0 if min_keep is None or dim.name in held else min_keep * dim.dense * (1 - ROUNDING)
        return floor <= size <= at_most.get(dim.name, dim.dense)

    kept = {dim.name: [i for i, size in enumerate(dim.sizes) if allowed(dim, size)] for dim in space.dimensions}

    def outside(block: str | None) -> str | None:
        return None if block in staying else block

    dimensions = tuple(Dimension(d.name, tuple(d.sizes[i] for i in kept[d.name])) for d in space.dimensions)
    largest = {dim.name: dim.dense for dim in dimensions}
    return replace(
        space,
        dimensions=dimensions,
        blocks=blocks,
        exclusive=tuple(group for group in space.exclusive if staying.isdisjoint(group)),
        importance=tuple(
            replace(t, block=outside(t.block), values=tuple(t.values[i] for i in kept[t.dim])) for t in space.importance
        ),
        costs={
            name: replace(model, terms=tuple(_up_to(replace(t, block=outside(t.block)), largest) for t in model.terms))
            for name, model in space.costs.items()
        },
        fixed=held,
    )


def _up_to(term: CostTerm, largest: Mapping[str, int]) -> CostTerm:
    """A cost on the sizes that are left, of which the largest of every axis must end its table."""
    table, axes = term.table, list(term.axes)
    for i, axis in enumerate(axes):
        end = axis.size(largest)
        if end < axis.points[-1]:
            points = (*(point for point in axis.points if point < end), end)
            weights = interpolation_weights(axis.points, points)
            table = np.moveaxis(np.tensordot(weights, table, axes=(1, i)), 0, i)
            axes[i] = replace(axis, points=points)
    return replace(term, axes=tuple(axes), table=table)


def _without(space: SearchSpace, removed: Collection[str]) -> SearchSpace:
    """The space in which blocks are gone: nothing of them is left to choose, to pay for, or to keep."""
    gone = {block.name for block in space.blocks if not set(ancestors(space.blocks, block.name)).isdisjoint(removed)}
    empty = emptied(space.blocks, gone)
    blocks = tuple(
        replace(block, empties=tuple(dim for dim in block.empties if dim not in empty))
        for block in space.blocks
        if block.name not in gone
    )
    exclusive = (tuple(name for name in names if name not in gone) for names in space.exclusive)
    return replace(
        space,
        blocks=blocks,
        exclusive=tuple(names for names in exclusive if names),
        importance=tuple(term for term in space.importance if term.block not in gone),
        costs={
            name: replace(model, terms=tuple(term for term in model.terms if term.block not in gone))
            for name, model in space.costs.items()
        },
        fixed={**space.fixed, **dict.fromkeys(empty, 0)},
    )


def with_removed(space: SearchSpace, selection: Selection, removed: Collection[str]) -> Selection:
    """A selection of what `restrict` left of a space without the blocks `removed`, as one of the whole space."""
    if not removed:
        return selection
    gone = tuple(
        block.name
        for block in space.blocks
        if not set(ancestors(space.blocks, block.name)).isdisjoint((*removed, *selection.removed_blocks))
    )
    empty = emptied(space.blocks, gone)
    dense = space.dense().sizes
    # What a block emptied that goes together with the one around it is not there to be empty.
    sizes = {name: size if size or name in empty else dense[name] for name, size in selection.sizes.items()}
    return Selection(sizes | dict.fromkeys(empty, 0), gone)


@contextmanager
def named_restrictions(
    min_keep: float | None, fixed: Mapping[str, int] | None, keep_blocks: Collection[str]
) -> Iterator[None]:
    """Within it, what says that a budget cannot be met also says under which restrictions."""
    try:
        yield
    except BudgetError as error:
        floor = [f"every dimension keeps {100 * min_keep:g} %"] if min_keep else []
        held = [f"{name} is held at {size}" for name, size in (fixed or {}).items()]
        kept = [f"{name} stays" for name in keep_blocks]
        names = [*floor, *held, *kept]
        if not error.smallest or not names:
            raise
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise BudgetError(f"{error}, where {', '.join(names[:MOST_NAMED])}{more}", error.smallest) from error


def _check_fixed(space: SearchSpace, fixed: Mapping[str, int]) -> None:
    dims = {d.name: d for d in space.dimensions}
    for name, size in fixed.items():
        if name not in dims:
            raise InputError(f"unknown dimension {name!r} is to be held at {size}{one_of(name, dims)}")
        if size not in space.options(name):
            raise InputError(f"dimension {name!r} cannot be held at {size}; {_offered(space, name)}")
        if size == 0 and name in emptied_by(space.blocks):
            raise InputError(f"dimension {name!r} cannot be held at 0: it is that where its block is removed only")


def _offered(space: SearchSpace, name: str) -> str:
    sizes = space.options(name)
    if name in space.fixed:
        return f"the search space holds it at {sizes[0]}"
    shown = sizes if len(sizes) <= 8 else (*sizes[:3], "...", *sizes[-3:])
    return f"its sizes are {', '.join(map(str, shown))}"
