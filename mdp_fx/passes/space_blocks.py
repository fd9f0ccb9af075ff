"""How blocks lie in one another, and which dimensions go with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from mdp_fx.passes.search_space import SearchSpace


class Nested(Protocol):
    """A block of a search space, or of a network."""

    @property
    def name(self) -> str:
        """Its own."""

    @property
    def parent(self) -> str | None:
        """The name of the smallest block around it, or None."""

    @property
    def empties(self) -> tuple[str, ...]:
        """The dimensions of which nothing is left without it."""


Block = TypeVar("Block", bound=Nested)


def ancestors(blocks: Iterable[Nested], name: str | None) -> tuple[str, ...]:
    """The block itself and the blocks around it, innermost first; nothing for None."""
    parents = {b.name: b.parent for b in blocks}
    chain: list[str] = []
    while name is not None:
        chain.append(name)
        name = parents[name]
    return tuple(chain)


def common_block(blocks: Iterable[Nested], names: Iterable[str | None]) -> str | None:
    """The innermost block that holds all of `names` (each of them counts as holding itself)."""
    chains = [ancestors(blocks, name) for name in names]
    return next((b for b in chains[0] if all(b in chain for chain in chains)), None) if chains else None


def exclusive_parent(space: SearchSpace, names: Iterable[str]) -> str | None:
    """The innermost block strictly around all blocks of an exclusive set: while it is alive, one of them must be."""
    parents = {b.name: b.parent for b in space.blocks}
    return common_block(space.blocks, [parents[name] for name in names])


def emptied_by(blocks: Iterable[Nested]) -> dict[str, tuple[str, ...]]:
    """For every dimension that some block empties, those blocks."""
    found: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        for dim in block.empties:
            found[dim] = (*found.get(dim, ()), block.name)
    return found


def outermost(blocks: Sequence[Block], gone: Collection[str]) -> tuple[Block, ...]:
    """Those of the removed blocks `gone` that lie in no other of them: with these the others go."""
    return tuple(b for b in blocks if b.name in gone and not any(a in gone for a in ancestors(blocks, b.parent)))


def emptied(blocks: Sequence[Nested], gone: Collection[str]) -> frozenset[str]:
    """The dimensions that are 0 when the blocks `gone` are removed.

    A block whose own surroundings go too empties nothing: what it was joined with is not there either.
    """
    return frozenset(dim for b in outermost(blocks, gone) for dim in b.empties)


def uses(space: SearchSpace) -> dict[str, set[str | None]]:
    """For every dimension the blocks of the terms that mention it (None: outside all blocks)."""
    found: dict[str, set[str | None]] = {d.name: set() for d in space.dimensions}
    for term in space.importance:
        found[term.dim].add(term.block)
    for model in space.costs.values():
        for region in model.terms:
            for axis in region.axes:
                for dim in axis.dims:
                    found[dim].add(region.block)
    return found


def unused(space: SearchSpace, gone: Collection[str]) -> set[str]:
    """The dimensions that nothing uses when `gone` are removed (inner blocks of a removed block included)."""
    return {dim for dim, blocks in uses(space).items() if blocks <= set(gone)}
