"""The decision as plain data: dimensions, blocks, importance and costs.

A SearchSpace is what the analysis passes hand to the solvers. It holds no tensors and no graph; `space_json.py` says
what it looks like as JSON, and what every part of it means.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mdp_fx.errors import InputError
from mdp_fx.passes.space_blocks import ancestors, emptied, emptied_by, exclusive_parent, unused
from mdp_fx.passes.space_checks import check_space

Role = Literal["in", "out"]
Unit = Literal["us", "params", "macs", "bytes"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dimension:
    """A group of coupled channels (or heads, features ...) and the unit counts it may keep.

    Attributes:
        name: Unique name.
        sizes: Kept unit counts, ascending; the last one is the dense size.
    """

    name: str
    sizes: tuple[int, ...]

    @property
    def dense(self) -> int:
        """The size of the unpruned dimension."""
        return self.sizes[-1]


@dataclass(frozen=True)
class Block:
    """A removable region.

    Attributes:
        name: Unique name.
        parent: The removable block that encloses it, if any.
        empties: Dimensions that go to 0 with it: it is a branch of a concatenation, and its units are all they have.
    """

    name: str
    parent: str | None = None
    empties: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportanceTerm:
    """The importance a layer keeps at each option of its dimension, nothing when `block` is removed."""

    layer: str
    dim: str
    block: str | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class SizeTerm:
    """coefficient * product of the kept sizes of `dims`."""

    coefficient: int
    dims: tuple[str, ...]

    def size(self, sizes: Mapping[str, int]) -> int:
        """Value of the term at the kept sizes."""
        return self.coefficient * math.prod(sizes[dim] for dim in self.dims)


@dataclass(frozen=True)
class CostAxis:
    """One axis of a cost table: its size as a function of the dimensions, and where the table is given."""

    role: Role
    constant: int
    terms: tuple[SizeTerm, ...]
    points: tuple[int, ...]

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions the size depends on, each once, in order of first mention."""
        return tuple(dict.fromkeys(dim for term in self.terms for dim in term.dims))

    def size(self, sizes: Mapping[str, int]) -> int:
        """Size of the axis at the kept sizes of its dimensions."""
        return self.constant + sum(term.size(sizes) for term in self.terms)


@dataclass(frozen=True, eq=False)
class CostTerm:
    """The cost of one region as a table over the sizes of its axes, zero when `block` is removed.

    Attributes:
        region: Name of the region, for messages.
        block: Innermost removable block that holds it.
        axes: What the cost depends on; a constant has none.
        table: Costs [len(axis.points) for axis in axes] in the unit of the model; kept as a read-only float64 array.
    """

    region: str
    block: str | None
    axes: tuple[CostAxis, ...]
    table: FloatArray

    def __post_init__(self) -> None:
        try:
            table = np.array(self.table, dtype=np.float64)
        except OverflowError as e:
            raise InputError(f"cost table of region {self.region!r} has a number that is beyond every float") from e
        except (TypeError, ValueError) as e:
            raise InputError(f"cost table of region {self.region!r} is not a rectangular array of numbers") from e
        table.setflags(write=False)
        object.__setattr__(self, "table", table)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CostTerm):
            return NotImplemented
        mine, theirs = (self.region, self.block, self.axes), (other.region, other.block, other.axes)
        return mine == theirs and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash((self.region, self.block, self.axes))

    def cost(self, sizes: Mapping[str, int]) -> float:
        """Cost at the kept sizes, the block being alive."""
        value = self.table
        for axis in self.axes:
            value = np.tensordot(interpolation_weights(axis.points, [axis.size(sizes)])[0], value, axes=1)
        return float(value)


@dataclass(frozen=True)
class CostModel:
    """One cost that may carry a budget: a constant plus its terms, in `unit`."""

    unit: Unit
    constant: float
    terms: tuple[CostTerm, ...]


@dataclass(frozen=True)
class Selection:
    """What is kept: a size for every dimension, and the blocks that go (inner blocks of a removed block included)."""

    sizes: dict[str, int]
    removed_blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchSpace:
    """Everything a solver needs to know; checked when made (InputError names what is wrong and where).

    Attributes:
        dimensions: What may be cut, and to which sizes.
        blocks: What may be removed; an inner block is alive only if its parent is.
        exclusive: Sets of blocks of which one stays while the block around them is alive.
        importance: What is kept of each layer.
        costs: Cost models by name.
        fixed: Dimensions held at one of their sizes.
        budgets: Budgets by cost name that came with the space, in the unit of the cost; nothing holds anyone to them.
    """

    dimensions: tuple[Dimension, ...]
    blocks: tuple[Block, ...]
    exclusive: tuple[tuple[str, ...], ...]
    importance: tuple[ImportanceTerm, ...]
    costs: dict[str, CostModel]
    fixed: dict[str, int] = field(default_factory=dict)
    budgets: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_space(self, roles=get_args(Role), units=get_args(Unit))

    def dense(self) -> Selection:
        """The selection that keeps everything but what is fixed."""
        return Selection({d.name: self.fixed.get(d.name, d.dense) for d in self.dimensions})

    def unpruned(self) -> Selection:
        """The network as it is, whatever is fixed: shares of a cost are shares of this one's."""
        return Selection({d.name: d.dense for d in self.dimensions})

    def options(self, name: str) -> tuple[int, ...]:
        """The sizes that a dimension may take: its fixed size, or all of them."""
        if name in self.fixed:
            return (self.fixed[name],)
        return next(d.sizes for d in self.dimensions if d.name == name)

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        from mdp_fx.passes import space_json

        return space_json.to_json(self)

    @classmethod
    def from_json(cls, data: object) -> SearchSpace:
        """Read the JSON form (already parsed).

        Raises:
            InputError: Another format or version, a missing or wrong field, or an inconsistent space.
        """
        from mdp_fx.passes import space_json

        return space_json.from_json(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form to `path`.

        Raises:
            OutputError: It cannot be written.
        """
        from mdp_fx.passes import space_json

        space_json.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchSpace:
        """Read a JSON file in the form of `space_json`, or in the form of the MINLPs published with MDP.

        Raises:
            InputError: It cannot be read, or holds no search space.
        """
        from mdp_fx.passes import space_json

        return space_json.load(path)


Rounding = Callable[[float], int]
"""`round`; `math.ceil` for what must be enough as a budget; `math.floor` for a budget that is too little."""


def amount(value: float, unit: Unit, rounding: Rounding = round) -> str:
    """A cost for people: time in milliseconds, memory in MiB."""
    if unit == "us":
        return f"{digits(value / 1000, rounding)} ms"
    if unit == "bytes":
        return f"{digits(value / 2**20, rounding, ',')} MiB"
    return f"{rounding(round(value, 6)):,} {unit}"


def digits(value: float, rounding: Rounding, separator: str = "") -> str:
    """Four digits, and all that stand before the point."""
    if value <= 0:
        return "0"
    places = max(0, 3 - math.floor(math.log10(value)))
    # What is a billionth off is off by arithmetic.
    text = f"{rounding(round(value * 10**places, 6)) / 10**places:{separator}.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def share_of(value: float, unit: Unit, dense: float, rounding: Rounding = round) -> str:
    """An amount with its share of the dense network's."""
    text = amount(value, unit, rounding)
    return f"{text} ({rounding(round(1000 * value / dense, 6)) / 10:.1f}% of dense)" if dense else text


def interpolation_weights(points: Sequence[int], at: Sequence[int]) -> FloatArray:
    """Weights [len(at), len(points)] that interpolate linearly between `points`, which cover the sizes `at`."""
    weights = np.zeros((len(at), len(points)))
    for row, size in enumerate(at):
        high = min(bisect_right(points, size), len(points) - 1)
        low = max(high - 1, 0)
        share = (size - points[low]) / (points[high] - points[low]) if high > low else 0.0
        weights[row, low] = 1.0 - share
        weights[row, high] += share
    return weights


def evaluate(space: SearchSpace, selection: Selection) -> dict[str, float]:
    """Every cost of a selection, by direct arithmetic on the tables and without any solver."""
    gone = set(selection.removed_blocks)
    return {
        name: model.constant + math.fsum(term.cost(selection.sizes) for term in model.terms if term.block not in gone)
        for name, model in space.costs.items()
    }


def importance(space: SearchSpace, selection: Selection) -> float:
    """The importance that a selection keeps, by direct arithmetic on the values."""
    gone, sizes = set(selection.removed_blocks), {d.name: d.sizes for d in space.dimensions}
    return math.fsum(
        term.values[sizes[term.dim].index(selection.sizes[term.dim])]
        for term in space.importance
        if term.block not in gone
    )


def cut_dimensions(space: SearchSpace, selection: Selection) -> list[Dimension]:
    """The dimensions that a selection keeps less than all of; those that only removed blocks use do not count."""
    idle = unused(space, set(selection.removed_blocks))
    return [d for d in space.dimensions if selection.sizes[d.name] != d.dense and d.name not in idle]


def violations(space: SearchSpace, selection: Selection) -> list[str]:
    """What makes a selection no member of the space, one line each; budgets are not looked at."""
    gone, known = set(selection.removed_blocks), {b.name for b in space.blocks}
    found = [f"unknown block {name!r} removed" for name in sorted(gone - known)]
    if selection.sizes.keys() != {d.name for d in space.dimensions}:
        return [*found, "the sizes do not name every dimension once"]
    for dim in space.dimensions:
        if selection.sizes[dim.name] not in space.options(dim.name):
            found.append(f"dimension {dim.name!r} may not have size {selection.sizes[dim.name]}")
    empty = emptied(space.blocks, gone)
    for name in emptied_by(space.blocks):
        if (name in empty) != (selection.sizes[name] == 0):
            state = "removed" if name in empty else "kept"
            found.append(f"dimension {name!r} has size {selection.sizes[name]}; the block that empties it is {state}")
    for block in space.blocks:
        if block.parent in gone and block.name not in gone:
            found.append(f"block {block.name!r} kept inside the removed block {block.parent!r}")
    for names in space.exclusive:
        if gone.issuperset(names) and exclusive_parent(space, names) not in gone:
            found.append(f"all of the blocks {', '.join(names)} removed")
    return found


def normalise(space: SearchSpace, selection: Selection) -> Selection:
    """The same decision in one spelling: unused dimensions dense (or fixed), inner blocks of removed ones listed too.

    A dimension is unused when every term that mentions it lies inside a removed block. One that a removed block
    empties is 0.
    """
    gone = {
        b.name for b in space.blocks if not set(selection.removed_blocks).isdisjoint(ancestors(space.blocks, b.name))
    }
    idle, dense = unused(space, gone), space.dense().sizes
    sizes = {name: dense[name] if name in idle else selection.sizes[name] for name in dense}
    sizes |= dict.fromkeys(emptied(space.blocks, gone), 0)
    return Selection(sizes, tuple(b.name for b in space.blocks if b.name in gone))
