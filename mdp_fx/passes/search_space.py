"""The decision as plain data: dimensions, blocks, importance and costs.

A SearchSpace is what the analysis passes hand to the solvers. It holds no tensors and no graph, and has a JSON form:

    {"format": "mdp-fx-search-space", "version": 1,
     "dimensions": [{"name": "d0", "sizes": [8, 16]}],              kept unit counts, ascending, the dense one last
     "blocks":     [{"name": "b0", "parent": null, "empties": []}],  an inner block is alive only if its parent is
     "exclusive":  [["b0", "b1"]],                                  one of them stays while their parent is alive
     "importance": [{"layer": "conv1", "dim": "d0", "block": null, "values": [1.0, 3.0]}],     one value per option
     "costs":      {"latency": {"unit": "us", "constant": 0.0, "terms": [
                       {"region": "conv1", "block": null, "table": [5.0, 9.0],
                        "axes": [{"role": "out", "constant": 0, "points": [8, 16],
                                  "terms": [{"coefficient": 1, "dims": ["d0"]}]}]}]}},
     "fixed":      {"d0": 16}}                                      dimensions held at one of their sizes

The size of an axis is its constant plus the sum of coefficient * product of the kept sizes of `dims`. A table has one
axis per entry of `axes` (a number when there are none), is given at `points`, and is multilinear between them.
A selection's cost is the constant plus the tables of all terms that lie outside removed blocks; its importance is the
sum of the values of the terms outside removed blocks.

A dimension that a block "empties" (nothing where the field is missing) has 0 as its first size. It has that size where
such a block is removed whose parent is alive, or that has none, and nowhere else. No two of the blocks that empty it
lie side by side.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from mdp_fx.errors import InputError
from mdp_fx.passes.json_reader import JsonReader
from mdp_fx.passes.space_blocks import ancestors, emptied, emptied_by, exclusive_parent, uses
from mdp_fx.passes.space_checks import check_space

Role = Literal["in", "out"]
Unit = Literal["us", "params", "macs"]
FloatArray = npt.NDArray[np.float64]

FORMAT = "mdp-fx-search-space"
VERSION = 1


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
        axes: Zero to three axes.
        table: Costs [len(axis.points) for axis in axes] in the unit of the model; kept as a read-only float64 array.
    """

    region: str
    block: str | None
    axes: tuple[CostAxis, ...]
    table: FloatArray

    def __post_init__(self) -> None:
        try:
            table = np.array(self.table, dtype=np.float64)
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
    """Everything a solver needs to know; checked when made (InputError names what is wrong and where)."""

    dimensions: tuple[Dimension, ...]
    blocks: tuple[Block, ...]
    exclusive: tuple[tuple[str, ...], ...]
    importance: tuple[ImportanceTerm, ...]
    costs: dict[str, CostModel]
    fixed: dict[str, int] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        check_space(self, roles=get_args(Role), units=get_args(Unit))

    def dense(self) -> Selection:
        """The selection that keeps everything but what is fixed."""
        return Selection({d.name: self.fixed.get(d.name, d.dense) for d in self.dimensions})

    def options(self, name: str) -> tuple[int, ...]:
        """The sizes that a dimension may take: its fixed size, or all of them."""
        if name in self.fixed:
            return (self.fixed[name],)
        return next(d.sizes for d in self.dimensions if d.name == name)

    def to_json(self) -> dict[str, Any]:
        """The JSON form described at the top of this module."""

        def axis(a: CostAxis) -> dict[str, Any]:
            terms = [{"coefficient": t.coefficient, "dims": list(t.dims)} for t in a.terms]
            return {"role": a.role, "constant": a.constant, "terms": terms, "points": list(a.points)}

        def term(t: CostTerm) -> dict[str, Any]:
            return {"region": t.region, "block": t.block, "axes": [axis(a) for a in t.axes], "table": t.table.tolist()}

        return {
            "format": FORMAT,
            "version": self.version,
            "dimensions": [{"name": d.name, "sizes": list(d.sizes)} for d in self.dimensions],
            "blocks": [{"name": b.name, "parent": b.parent, "empties": list(b.empties)} for b in self.blocks],
            "exclusive": [list(names) for names in self.exclusive],
            "importance": [
                {"layer": t.layer, "dim": t.dim, "block": t.block, "values": list(t.values)} for t in self.importance
            ],
            "costs": {
                name: {"unit": m.unit, "constant": m.constant, "terms": [term(t) for t in m.terms]}
                for name, m in self.costs.items()
            },
            "fixed": dict(self.fixed),
        }

    @classmethod
    def from_json(cls, data: object) -> SearchSpace:
        """Read the JSON form (already parsed).

        Raises:
            InputError: Another format or version, a missing or wrong field, or an inconsistent space.
        """
        top = JsonReader(data, "search space")
        if top.data.get("format") != FORMAT:
            raise InputError(f"not a search space: 'format' is {top.data.get('format')!r}, expected {FORMAT!r}")
        if top.data.get("version") != VERSION:
            raise InputError(f"search space of version {top.data.get('version')!r}; this mdp-fx reads {VERSION}")

        def axis(r: JsonReader) -> CostAxis:
            terms = tuple(SizeTerm(t.integer("coefficient"), t.strings("dims")) for t in r.readers("terms"))
            return CostAxis(cast(Role, r.string("role")), r.integer("constant"), terms, r.integers("points"))

        def term(r: JsonReader) -> CostTerm:
            axes = tuple(axis(a) for a in r.readers("axes"))
            return CostTerm(r.string("region"), r.name_or_none("block"), axes, cast(FloatArray, r.get("table")))

        def model(r: JsonReader) -> CostModel:
            terms = tuple(term(t) for t in r.readers("terms"))
            return CostModel(cast(Unit, r.string("unit")), r.number("constant"), terms)

        costs, fixed = top.reader("costs"), top.reader("fixed")
        return cls(
            dimensions=tuple(Dimension(r.string("name"), r.integers("sizes")) for r in top.readers("dimensions")),
            blocks=tuple(
                Block(r.string("name"), r.name_or_none("parent"), r.strings("empties") if "empties" in r.data else ())
                for r in top.readers("blocks")
            ),
            exclusive=top.string_lists("exclusive"),
            importance=tuple(
                ImportanceTerm(r.string("layer"), r.string("dim"), r.name_or_none("block"), r.numbers("values"))
                for r in top.readers("importance")
            ),
            costs={name: model(costs.reader(name)) for name in costs.data},
            fixed={name: fixed.integer(name) for name in fixed.data},
        )

    def save(self, path: Path) -> None:
        """Write the JSON form to `path`."""
        path.write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> SearchSpace:
        """Read a JSON file in the form of this module, or in the form of the MINLPs published with MDP."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise InputError(f"cannot read search space {path}: {e.strerror}") from e
        except ValueError as e:
            raise InputError(f"search space {path} is not valid JSON: {e}") from e
        if isinstance(data, dict) and "format" not in data and {"dims", "layers"} <= data.keys():
            return cls.from_minlp_json(data)
        return cls.from_json(data)

    @classmethod
    def from_minlp_json(cls, data: object) -> SearchSpace:
        """Read the JSON form of the MINLPs that MDP's authors solved (cost "latency", in microseconds).

        There dimensions have options 0..K and option 0 is not allowed; sizes here are 1..K. A layer without an input
        dimension is the stem: it keeps its largest option and its importance is not counted.
        """
        top = JsonReader(data, "MINLP")
        dims = top.reader("dims")
        sizes = {name: tuple(range(1, dims.reader(name).integer("options") + 1)) for name in dims.data}
        importance, terms, fixed = [], [], {}
        for layer in top.readers("layers"):
            name, out, inp, block = layer.string("name"), layer.string("out"), layer.data.get("inp"), layer.get("block")
            for dim in (out,) if inp is None else (out, inp):
                if dim not in sizes:
                    raise InputError(f"layer {name!r} names an unknown dimension {dim!r}")
            block = None if block is None else str(block)
            if inp is None:
                fixed[out] = sizes[out][-1]
            else:
                importance.append(ImportanceTerm(name, out, block, layer.numbers("importance")[1:]))
            axes = [CostAxis("out", 0, (SizeTerm(1, (out,)),), sizes[out])]
            axes += [] if inp is None else [CostAxis("in", 0, (SizeTerm(1, (inp,)),), sizes[inp])]
            table = CostTerm(name, block, tuple(axes), cast(FloatArray, layer.get("latency_us"))).table
            if table.shape != tuple(len(a.points) + 1 for a in axes):
                raise InputError(f"latency table of layer {name!r} has shape {table.shape}, not one row per option")
            terms.append(CostTerm(name, block, tuple(axes), table[(slice(1, None),) * table.ndim]))
        return cls(
            dimensions=tuple(Dimension(name, options) for name, options in sizes.items()),
            blocks=tuple(Block(str(b)) for b in top.items("blocks")),
            exclusive=(),
            importance=tuple(importance),
            costs={"latency": CostModel("us", 0.0, tuple(terms))},
            fixed=fixed,
        )


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
    used = {dim for dim, blocks in uses(space).items() if not blocks <= gone}
    dense = space.dense().sizes
    sizes = {name: selection.sizes[name] if name in used else dense[name] for name in dense}
    sizes |= dict.fromkeys(emptied(space.blocks, gone), 0)
    return Selection(sizes, tuple(b.name for b in space.blocks if b.name in gone))
