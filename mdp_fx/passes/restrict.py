"""A search space with fewer choices: floors, dimensions held at a size, blocks that must stay."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from mdp_fx.errors import MOST_NAMED, BudgetError, InputError, one_of
from mdp_fx.passes.arguments import check_restrictions
from mdp_fx.passes.search_space import Dimension, SearchSpace
from mdp_fx.passes.space_blocks import ancestors, emptied_by

# A share of a size may round up what it should equal.
ROUNDING = 1e-9


def restrict(
    space: SearchSpace,
    *,
    min_keep: float | None = None,
    fixed: Mapping[str, int] | None = None,
    keep_blocks: Collection[str] = (),
) -> SearchSpace:
    """The members of a space that satisfy restrictions, as a space of its own.

    Args:
        space: The search space; it stays as it is.
        min_keep: Share of its dense size that every dimension keeps at least. It does not touch the dimensions that
            are held at a size, here or in the space, nor the 0 of those that go with a block.
        fixed: Dimensions held at one of their sizes. Blocks that would take such a dimension to 0 stay.
        keep_blocks: Blocks that stay, and with them the blocks around them.

    Raises:
        InputError: Such a dimension, size or block is not in the space, or a restriction is of another type.
    """
    check_restrictions(min_keep, fixed, keep_blocks)
    fixed = dict(fixed or {})
    _check_fixed(space, fixed)
    names = [block.name for block in space.blocks]
    for name in keep_blocks:
        if name not in names:
            raise InputError(f"unknown block {name!r} is to stay{one_of(name, names)}")
    emptied = emptied_by(space.blocks)
    asked = [*keep_blocks, *(block for dim in fixed for block in emptied.get(dim, ()))]
    staying = {around for name in asked for around in ancestors(space.blocks, name)}
    blocks = tuple(
        replace(block, parent=None if block.parent in staying else block.parent)
        for block in space.blocks
        if block.name not in staying
    )
    left = emptied_by(blocks)
    held = {**space.fixed, **fixed}

    def allowed(dim: Dimension, size: int) -> bool:
        if dim.name in emptied and size == 0:
            return dim.name in left
        floor = 0.0 if min_keep is None or dim.name in held else min_keep * dim.dense * (1 - ROUNDING)
        return size >= floor

    kept = {dim.name: [i for i, size in enumerate(dim.sizes) if allowed(dim, size)] for dim in space.dimensions}

    def outside(block: str | None) -> str | None:
        return None if block in staying else block

    return replace(
        space,
        dimensions=tuple(Dimension(d.name, tuple(d.sizes[i] for i in kept[d.name])) for d in space.dimensions),
        blocks=blocks,
        exclusive=tuple(group for group in space.exclusive if staying.isdisjoint(group)),
        importance=tuple(
            replace(t, block=outside(t.block), values=tuple(t.values[i] for i in kept[t.dim])) for t in space.importance
        ),
        costs={
            name: replace(model, terms=tuple(replace(t, block=outside(t.block)) for t in model.terms))
            for name, model in space.costs.items()
        },
        fixed=held,
    )


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
