"""The decision in the form that solvers work on: merged one-hots and tables, the method's switches applied.

A Problem has one importance vector per (dimension, block) and one table per (set of axes, block), however many layers
and regions of the search space share them. Tables are numpy arrays resolved at the axes' own positions, one per cost.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from mdp_fx.passes.search_space import (
    CostAxis,
    CostTerm,
    Dimension,
    FloatArray,
    SearchSpace,
    Selection,
    interpolation_weights,
)
from mdp_fx.passes.space_blocks import ancestors, common_block, emptied_by, exclusive_parent, uses

Method = Literal["halp", "mgp", "mdlm", "mdp"]
BLOCKS_HELD: tuple[str, ...] = ("halp", "mdlm")
OUT_ONLY: tuple[str, ...] = ("halp", "mgp")

# The cost that `count_removed` adds.
REMOVED = "removed blocks"

# A size made of several dimensions is resolved by its combinations up to this many, by interpolation above.
MAX_COMBINATIONS = 64


@dataclass(frozen=True)
class DimAxis:
    """Positions are the options of one dimension."""

    dim: str

    @property
    def dims(self) -> tuple[str, ...]:
        """That one."""
        return (self.dim,)


@dataclass(frozen=True)
class SizeAxis:
    """Positions are sizes: constant + sum of coefficient * product of dimensions.

    Attributes:
        constant: What the fixed dimensions contribute, and the axis's own constant.
        terms: (coefficient, dimensions) of the free part, sorted.
        positions: Ascending sizes. All reachable ones when `kind` is "joint" or "exact".
        kind: "joint": one position per size, decided by the combination of the dimensions. "exact": one position
            per size, decided by indicators. "between": the weight is spread over two neighbouring positions.
    """

    constant: int
    terms: tuple[tuple[int, tuple[str, ...]], ...]
    positions: tuple[int, ...]
    kind: Literal["joint", "exact", "between"]

    @property
    def dims(self) -> tuple[str, ...]:
        """The free dimensions, each once."""
        return tuple(dict.fromkeys(dim for _, dims in self.terms for dim in dims))

    def size(self, sizes: Mapping[str, int]) -> int:
        """The size at the kept sizes of the free dimensions."""
        return self.constant + sum(c * math.prod(sizes[d] for d in dims) for c, dims in self.terms)


TableAxis = DimAxis | SizeAxis


def axis_key(axis: TableAxis) -> tuple[str, ...]:
    """A fixed order of axes, so that tables over the same axes are found to be the same."""
    return ("dim", axis.dim) if isinstance(axis, DimAxis) else ("size", repr(axis))


@dataclass(frozen=True)
class TableFactor:
    """Tables over the same axes, gated by the same block.

    Attributes:
        axes: The axes, in the order of `axis_key`.
        block: The block, None when always there.
        tables: Table per cost name, [positions of each axis].
        support: Cells that are needed (all when None).
        ties: Sets of two or more axes whose joint weights this factor shares with others.
    """

    axes: tuple[TableAxis, ...]
    block: str | None
    tables: dict[str, FloatArray]
    support: npt.NDArray[np.bool_] | None = None
    ties: tuple[tuple[TableAxis, ...], ...] = ()


@dataclass(frozen=True)
class Problem:
    """What a solver decides.

    Attributes:
        options: Sizes of every free dimension (two or more each); the others are in `held`.
        held: Sizes of the dimensions that have no choice.
        homes: For every free dimension the innermost block around all its uses; without it the dimension is idle.
        parents: Removable blocks, outer before inner, with the block around each; empty when the method holds them.
        exclusive: (blocks of which one must stay, block that must be alive for that, if any).
        emptied_by: For every dimension that goes to 0 with a block, all such blocks; 0 is its first option.
        importance: Value per option for every (dimension, block).
        importance_held: Importance per block of what has no choice.
        factors: Cost tables.
        constants: Constant per cost.
    """

    options: dict[str, tuple[int, ...]]
    held: dict[str, int]
    homes: dict[str, str | None]
    parents: dict[str, str | None]
    exclusive: tuple[tuple[tuple[str, ...], str | None], ...]
    emptied_by: dict[str, tuple[str, ...]]
    importance: dict[tuple[str, str | None], FloatArray]
    importance_held: dict[str | None, float]
    factors: tuple[TableFactor, ...]
    constants: dict[str, float]

    def positions(self, axis: TableAxis) -> int:
        """Number of positions of an axis."""
        return len(self.options[axis.dim] if isinstance(axis, DimAxis) else axis.positions)

    def worth(self, selection: Selection) -> float:
        """The importance that a selection keeps."""
        gone = set(selection.removed_blocks)
        held = math.fsum(value for block, value in self.importance_held.items() if block not in gone)
        return held + math.fsum(
            float(values[self.options[dim].index(selection.sizes[dim])])
            for (dim, block), values in self.importance.items()
            if block not in gone
        )

    def restricted(self, allowed: Mapping[str, npt.NDArray[np.bool_]]) -> Problem:
        """The problem with some options only; the 0 of a dimension that goes with a block stays.

        Args:
            allowed: mask over the options of every free dimension, at least one true.
        """
        masks = dict(allowed)
        for dim in self.emptied_by.keys() & masks.keys():
            masks[dim] = masks[dim] | (np.arange(len(masks[dim])) == 0)

        def table(values: FloatArray, axes: tuple[TableAxis, ...]) -> FloatArray:
            for i, axis in enumerate(axes):
                if isinstance(axis, DimAxis):
                    values = values.compress(masks[axis.dim], axis=i)
            return values

        return replace(
            self,
            options={d: tuple(np.array(sizes)[masks[d]].tolist()) for d, sizes in self.options.items()},
            importance={key: values[masks[key[0]]] for key, values in self.importance.items()},
            factors=tuple(
                replace(f, tables={name: table(values, f.axes) for name, values in f.tables.items()})
                for f in self.factors
            ),
        )

    def never_zero(self, dim: str, block: str | None) -> bool:
        """Whether a dimension that goes to 0 with blocks does so only where `block` goes too."""
        around = set()
        while block is not None:
            around.add(block)
            block = self.parents[block]
        return dim in self.emptied_by and around.issuperset(self.emptied_by[dim])


def modelled_space(space: SearchSpace, method: Method) -> SearchSpace:
    """The search space whose true costs are what `method` models.

    halp and mdlm hold all blocks, so that no dimension goes to 0 with one. halp and mgp know a region's latency as a
    function of its output alone: every axis that is not an output is held at its current size (dense, or what its
    dimensions are fixed at), so a region with input axes only costs its current time. What is counted and not measured
    (parameters, MACs, memory) they know as it is.
    """
    held, current = method in BLOCKS_HELD, space.dense().sizes
    costs = {}
    for name, model in space.costs.items():
        simple = method in OUT_ONLY and model.unit == "us"
        terms = tuple(_output_only(t, current) if simple else t for t in model.terms)
        costs[name] = replace(model, terms=tuple(replace(t, block=None) for t in terms) if held else terms)
    if not held:
        return replace(space, costs=costs)
    emptied = emptied_by(space.blocks)
    dimensions = tuple(Dimension(d.name, d.sizes[1:]) if d.name in emptied else d for d in space.dimensions)
    importance = tuple(
        replace(t, block=None, values=t.values[1:] if t.dim in emptied else t.values) for t in space.importance
    )
    return replace(space, dimensions=dimensions, costs=costs, blocks=(), exclusive=(), importance=importance)


def _output_only(term: CostTerm, current: Mapping[str, int]) -> CostTerm:
    table = term.table
    for i, axis in reversed(list(enumerate(term.axes))):
        if axis.role != "out":
            weights = interpolation_weights(axis.points, [axis.size(current)])[0]
            table = np.tensordot(weights, table, axes=(0, i))
    return replace(term, axes=tuple(a for a in term.axes if a.role == "out"), table=table)


def compile_problem(space: SearchSpace, costs: Iterable[str]) -> Problem:
    """Merge the terms of a (modelled) search space; only the named costs are looked at."""
    names = tuple(costs)
    space = replace(space, costs={name: space.costs[name] for name in names}, budgets={})
    outer = {b.name: b.parent for b in space.blocks}
    emptied = emptied_by(space.blocks)
    # Whether a dimension is 0 is looked at where the blocks that empty it lie.
    used = {dim: places | {outer[b] for b in emptied.get(dim, ())} for dim, places in uses(space).items()}
    # A dimension that the model does not look at keeps its largest size.
    every = {d.name: space.options(d.name)[0 if used[d.name] else -1 :] for d in space.dimensions}
    options = {name: sizes for name, sizes in every.items() if len(sizes) > 1}
    held = {name: sizes[0] for name, sizes in every.items() if len(sizes) == 1}

    importance: dict[tuple[str, str | None], FloatArray] = {}
    importance_held: dict[str | None, float] = {}
    dims = {d.name: d for d in space.dimensions}
    for term in space.importance:
        if term.dim in options:
            values = np.asarray(term.values)
            key = (term.dim, term.block)
            importance[key] = importance[key] + values if key in importance else values
        else:
            value = term.values[dims[term.dim].sizes.index(held[term.dim])]
            importance_held[term.block] = importance_held.get(term.block, 0.0) + value

    merged: dict[tuple[tuple[TableAxis, ...], str | None], dict[str, FloatArray]] = {}
    constants = {name: space.costs[name].constant for name in names}
    for name in names:
        for region in space.costs[name].terms:
            axes, table = _resolve(region, options, held)
            if not axes and region.block is None:
                constants[name] += float(table)
                continue
            tables = merged.setdefault((axes, region.block), {})
            tables[name] = tables[name] + table if name in tables else table

    depth = {b.name: len(ancestors(space.blocks, b.name)) for b in space.blocks}
    parents = {b.name: b.parent for b in sorted(space.blocks, key=lambda b: depth[b.name])}
    return Problem(
        options=options,
        held=held,
        homes={name: common_block(space.blocks, sorted(used[name], key=str)) for name in options},
        parents=parents,
        exclusive=tuple((names, exclusive_parent(space, names)) for names in space.exclusive),
        emptied_by=emptied,
        importance=importance,
        importance_held=importance_held,
        factors=tuple(TableFactor(axes, block, tables) for (axes, block), tables in merged.items()),
        constants=constants,
    )


def count_removed(problem: Problem) -> Problem:
    """The same problem with one cost more: how many blocks are removed, inner ones of a removed block included.

    It is the number of blocks, and -1 for each one that stays: its tables are the only negative ones.
    """
    factors = {(factor.axes, factor.block): factor for factor in problem.factors}
    for block in problem.parents:
        same = factors.get(((), block), TableFactor((), block, {}))
        factors[(), block] = replace(same, tables={**same.tables, REMOVED: np.array(-1.0)})
    constants = {**problem.constants, REMOVED: float(len(problem.parents))}
    return replace(problem, factors=tuple(factors.values()), constants=constants)


def _resolve(
    term: CostTerm, options: Mapping[str, tuple[int, ...]], held: Mapping[str, int]
) -> tuple[tuple[TableAxis, ...], FloatArray]:
    """The distinct axes of a term that still vary, and its table over their positions."""
    axes = [_axis(axis, options, held) for axis in term.axes]
    between = [axis for axis in axes if isinstance(axis, SizeAxis) and axis.kind == "between"]
    # Weights spread between neighbours on two axes at once would leave the solver a choice of interpolation:
    # only one axis of a table may do that, and not one that appears twice.
    keep = max(between, key=lambda axis: len(_reachable(axis, options)), default=None)
    for i, axis in enumerate(axes):
        if isinstance(axis, SizeAxis) and axis in between and (axis != keep or between.count(axis) > 1):
            axes[i] = replace(axis, positions=_reachable(axis, options), kind="exact")
    table = term.table
    for i, (axis, source) in enumerate(zip(axes, term.axes, strict=True)):
        weights = interpolation_weights(source.points, _positions(axis, source, options, held))
        table = np.moveaxis(np.tensordot(weights, table, axes=(1, i)), 0, i)
    # An axis that occurs twice (a depthwise layer's input and output) leaves the table's diagonal.
    varying = tuple(sorted({axis for axis in axes if not isinstance(axis, int)}, key=axis_key))
    letters = string.ascii_letters
    labels = [len(varying) + i if isinstance(axis, int) else varying.index(axis) for i, axis in enumerate(axes)]
    summed = np.einsum(f"{''.join(letters[i] for i in labels)}->{letters[: len(varying)]}", table)
    return varying, summed


def _axis(axis: CostAxis, options: Mapping[str, tuple[int, ...]], held: Mapping[str, int]) -> TableAxis | int:
    """The axis without its fixed dimensions; an int when nothing is left to vary."""
    constant, free = axis.constant, dict[tuple[str, ...], int]()
    for term in axis.terms:
        coefficient = term.coefficient * math.prod(held[d] for d in term.dims if d in held)
        dims = tuple(sorted(d for d in term.dims if d not in held))
        if dims and coefficient:
            free[dims] = free.get(dims, 0) + coefficient
        elif not dims:
            constant += coefficient
    names = sorted({d for dims in free for d in dims})
    if not names:
        return constant
    if len(names) == 1:
        return DimAxis(names[0])
    size = SizeAxis(constant, tuple((c, dims) for dims, c in sorted(free.items())), axis.points, "between")
    if math.prod(len(options[d]) for d in names) > MAX_COMBINATIONS:
        return size
    return replace(size, positions=_reachable(size, options), kind="joint")


def _positions(
    axis: TableAxis | int, source: CostAxis, options: Mapping[str, tuple[int, ...]], held: Mapping[str, int]
) -> Sequence[int]:
    if isinstance(axis, int):
        return (axis,)
    if isinstance(axis, DimAxis):
        # Free dimensions beside this one only occur in products with a dimension held at zero: any size does.
        others = {dim: sizes[-1] for dim, sizes in options.items()} | dict(held)
        return [source.size({**others, axis.dim: size}) for size in options[axis.dim]]
    return axis.positions


def _reachable(axis: SizeAxis, options: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """All sizes an axis can have; a superset where a dimension occurs in several terms and has many partners."""
    terms = [
        {c * math.prod(choice[d] for d in dims) for choice in _choices(dict.fromkeys(dims), options)}
        for c, dims in axis.terms
    ]
    if math.prod(len(options[d]) for d in axis.dims) <= MAX_COMBINATIONS:
        return tuple(sorted({axis.size(choice) for choice in _choices(axis.dims, options)}))
    sizes = {axis.constant}
    for values in terms:
        sizes = {a + b for a in sizes for b in values}
    return tuple(sorted(sizes))


def _choices(dims: Iterable[str], options: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    names = tuple(dims)
    for sizes in itertools.product(*(options[d] for d in names)):
        yield dict(zip(names, sizes, strict=True))
