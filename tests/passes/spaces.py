"""Small random search spaces and their exhaustive solution, for tests of solvers.

The solution shares no code with the package: what solvers claim, and what the package re-evaluates, is held against it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from mdp_fx.passes.search_space import (
    Block,
    CostAxis,
    CostModel,
    CostTerm,
    Dimension,
    ImportanceTerm,
    SearchSpace,
    Selection,
    SizeTerm,
)
from mdp_fx.passes.space_blocks import ancestors

MINLP_DATA = Path(__file__).parents[2].parent / "shared" / "data" / "minlp"

needs_minlp_data = pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")


def axis(role: str, *dims: str, points: tuple[int, ...]) -> CostAxis:
    """An axis that is the sum of the dimensions."""
    assert role in ("in", "out")
    return CostAxis("in" if role == "in" else "out", 0, tuple(SizeTerm(1, (d,)) for d in dims), points)


def chain_space() -> SearchSpace:
    """Two layers a -> b with one removable block around the second: small enough to check by hand."""
    sizes = (1, 2)
    return SearchSpace(
        dimensions=(Dimension("a", sizes), Dimension("b", sizes)),
        blocks=(Block("block"),),
        exclusive=(),
        importance=(ImportanceTerm("one", "a", None, (3.0, 4.0)), ImportanceTerm("two", "b", "block", (1.0, 5.0))),
        costs={
            "latency": CostModel(
                "us",
                1.0,
                (
                    CostTerm("one", None, (axis("out", "a", points=sizes),), np.array([2.0, 6.0])),
                    CostTerm(
                        "two",
                        "block",
                        (axis("out", "b", points=sizes), axis("in", "a", points=sizes)),
                        np.array([[1.0, 2.0], [4.0, 8.0]]),
                    ),
                ),
            )
        },
    )


def branch_space() -> SearchSpace:
    """Two branches a and b of one concatenation, which layer c reads; one of them must stay."""
    sizes = (0, 2, 4)

    def conv(name: str) -> CostTerm:
        return CostTerm(name, name, (axis("out", name, points=sizes),), np.array([0.0, 3.0, 5.0]))

    joined = CostTerm("c", None, (axis("in", "a", "b", points=(0, 2, 8)),), np.array([0.0, 2.0, 8.0]))
    return SearchSpace(
        dimensions=(Dimension("a", sizes), Dimension("b", sizes)),
        blocks=(Block("a", None, ("a",)), Block("b", None, ("b",))),
        exclusive=(("a", "b"),),
        importance=(ImportanceTerm("a", "a", "a", (0.0, 1.0, 2.0)), ImportanceTerm("b", "b", "b", (0.0, 4.0, 5.0))),
        costs={"latency": CostModel("us", 1.0, (conv("a"), conv("b"), joined))},
    )


def nested_space() -> SearchSpace:
    """Blocks outer > (left, right), of which one must stay; d lies in left, e in right and outside."""
    sizes = (1, 4)
    return SearchSpace(
        dimensions=(Dimension("d", sizes), Dimension("e", sizes)),
        blocks=(Block("outer"), Block("left", "outer"), Block("right", "outer")),
        exclusive=(("left", "right"),),
        importance=(ImportanceTerm("l", "d", "left", (1.0, 2.0)), ImportanceTerm("r", "e", "right", (1.0, 3.0))),
        costs={
            "params": CostModel(
                "params",
                0.0,
                (CostTerm("stem", None, (CostAxis("out", 0, (SizeTerm(1, ("e",)),), sizes),), np.ones(2)),),
            )
        },
    )


def random_space(seed: int) -> SearchSpace:
    """A space of at most some hundred selections with every feature: nested and exclusive blocks, sums, products."""
    rng = np.random.default_rng(seed)
    dims = tuple(
        Dimension(f"d{i}", tuple(sorted(rng.choice(np.arange(0 if rng.random() < 0.2 else 1, 9), k, replace=False))))
        for i, k in enumerate(rng.integers(1, 4, rng.integers(2, 5)))
    )
    dims = tuple(Dimension(d.name, tuple(int(s) for s in d.sizes)) for d in dims)
    blocks: list[Block] = []
    for i in range(rng.integers(0, 4)):
        inner = blocks and rng.random() < 0.5
        blocks.append(Block(f"b{i}", str(rng.choice([b.name for b in blocks])) if inner else None))
    names = [b.name for b in blocks]
    together = len(names) > 1 and rng.random() < 0.5
    exclusive = [tuple(str(b) for b in rng.choice(names, 2, replace=False))] if together else []

    def block() -> str | None:
        return str(rng.choice(names)) if names and rng.random() < 0.6 else None

    def cost_axis(role: str) -> CostAxis:
        terms = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            mentioned = rng.choice(len(dims), rng.choice([1, 1, 2]), replace=bool(rng.random() < 0.2))
            terms.append(SizeTerm(int(rng.integers(1, 3)), tuple(dims[i].name for i in mentioned)))
        constant = int(rng.integers(0, 3))
        low, high = (constant + sum(t.size({d.name: d.sizes[end] for d in dims}) for t in terms) for end in (0, -1))
        inner = rng.integers(low, high + 1, 3).tolist() if high > low else []
        points = tuple(sorted({low, high, *inner}))
        return CostAxis("in" if role == "in" else "out", constant, tuple(terms), points)

    def term(i: int) -> CostTerm:
        axes = tuple(cost_axis(role) for role in ("out", "in", "in")[: rng.choice([0, 1, 2, 2, 2, 3])])
        shape = tuple(len(a.points) for a in axes)
        # Rising with size, with noise: measured tables are not monotone.
        table = np.asarray(np.indices(shape).sum(axis=0) * 5 + rng.integers(0, 12, shape), dtype=float)
        return CostTerm(f"r{i}", block(), axes, table)

    def model(unit: str, count: int) -> CostModel:
        return CostModel("us" if unit == "us" else "params", float(rng.integers(0, 4)), tuple(map(term, range(count))))

    return SearchSpace(
        dimensions=dims,
        blocks=tuple(blocks),
        exclusive=tuple(exclusive),
        importance=tuple(
            ImportanceTerm(f"l{i}", d.name, block(), tuple(np.cumsum(rng.integers(0, 20, len(d.sizes))).astype(float)))
            for i, d in enumerate(dims[j] for j in rng.integers(0, len(dims), len(dims) + 2))
        ),
        costs={"latency": model("us", int(rng.integers(1, 6))), "params": model("params", 2)},
        fixed={dims[0].name: dims[0].sizes[0]} if rng.random() < 0.15 else {},
    )


def emptying_space(seed: int) -> SearchSpace:
    """A random space in which some dimensions go to 0 with a block, or with one of two nested ones."""
    base, rng = random_space(seed), np.random.default_rng(seed + 1)
    empties: dict[str, list[str]] = {b.name: [] for b in base.blocks}
    for dim in base.dimensions:
        if not base.blocks or dim.name in base.fixed or dim.dense == 0 or rng.random() < 0.3:
            continue
        chain = ancestors(base.blocks, str(rng.choice(list(empties))))
        for block in rng.choice(chain, rng.integers(1, len(chain) + 1), replace=False):
            empties[str(block)].append(dim.name)
    emptied = {name for names in empties.values() for name in names}
    first = {d.name: d.name in emptied and d.sizes[0] != 0 for d in base.dimensions}
    dims = tuple(Dimension(d.name, (0,) * first[d.name] + d.sizes) for d in base.dimensions)

    def reach(term: CostTerm) -> CostTerm:
        table, axes = term.table, []
        for i, at in enumerate(term.axes):
            low = at.size({d.name: base.fixed.get(d.name, d.sizes[0]) for d in dims})
            if low < at.points[0]:
                padding = [(1 if i == j else 0, 0) for j in range(table.ndim)]
                table = np.pad(table, padding, constant_values=float(rng.integers(0, 5)))
                at = dataclasses.replace(at, points=(low, *at.points))
            axes.append(at)
        return dataclasses.replace(term, axes=tuple(axes), table=table)

    return dataclasses.replace(
        base,
        dimensions=dims,
        blocks=tuple(dataclasses.replace(b, empties=tuple(empties[b.name])) for b in base.blocks),
        importance=tuple(
            dataclasses.replace(t, values=(0.0,) * first[t.dim] + tuple(t.values)) for t in base.importance
        ),
        costs={
            name: dataclasses.replace(model, terms=tuple(map(reach, model.terms))) for name, model in base.costs.items()
        },
    )


def every_selection(space: SearchSpace) -> Iterator[Selection]:
    """All members of a small space, by the rules that `search_space.py` states and none of its code."""
    parents = {b.name: b.parent for b in space.blocks}
    for count in range(len(parents) + 1):
        for gone in itertools.combinations(parents, count):
            if _may_go(space, parents, gone):
                options = [_sizes_without(d, space, parents, gone) for d in space.dimensions]
                for sizes in itertools.product(*options):
                    yield Selection(dict(zip((d.name for d in space.dimensions), sizes, strict=True)), gone)


def _may_go(space: SearchSpace, parents: Mapping[str, str | None], gone: Collection[str]) -> bool:
    """Whether these blocks may be removed together."""
    if any(parent in gone and name not in gone for name, parent in parents.items()):
        return False
    for names in space.exclusive:
        shared = set.intersection(*(set(_around(parents, name)) for name in names))
        # Blocks are removed with all that is inside: one of them is alive unless some block around all of them goes.
        if set(names) <= set(gone) and shared.isdisjoint(gone):
            return False
    return True


def _around(parents: Mapping[str, str | None], name: str) -> Iterator[str]:
    """The blocks strictly around a block."""
    outer = parents[name]
    while outer is not None:
        yield outer
        outer = parents[outer]


def _sizes_without(
    dim: Dimension, space: SearchSpace, parents: Mapping[str, str | None], gone: Collection[str]
) -> Sequence[int]:
    """The sizes a dimension may have when some blocks are removed."""
    if dim.name in space.fixed:
        return [space.fixed[dim.name]]
    emptying = [b.name for b in space.blocks if dim.name in b.empties]
    if not emptying:
        return dim.sizes
    empty = any(name in gone and parents[name] not in gone for name in emptying)
    return [0] if empty else [size for size in dim.sizes if size > 0]


def true_costs(space: SearchSpace, selection: Selection, method: str = "mdp") -> dict[str, float]:
    """Every cost of a selection as a method models it: the tables read one axis after the other."""
    current = {d.name: space.fixed.get(d.name, d.sizes[-1]) for d in space.dimensions}
    found = {}
    for name, model in space.costs.items():
        inputs = current if method in ("halp", "mgp") and model.unit == "us" else selection.sizes
        found[name] = model.constant
        for term in model.terms:
            if term.block not in selection.removed_blocks:
                found[name] += _read(term.table, term.axes, {"in": inputs, "out": selection.sizes})
    return found


def _read(table: np.ndarray, axes: Sequence[CostAxis], sizes: Mapping[str, Mapping[str, int]]) -> float:
    if not axes:
        return float(table)
    size = axes[0].constant
    for term in axes[0].terms:
        part = term.coefficient
        for dim in term.dims:
            part *= sizes[axes[0].role][dim]
        size += part
    entries = [_read(part, axes[1:], sizes) for part in table]
    return float(np.interp(size, axes[0].points, entries))


def true_worth(space: SearchSpace, selection: Selection) -> float:
    """The importance that a selection keeps."""
    kept = 0.0
    for term in space.importance:
        if term.block not in selection.removed_blocks:
            sizes = next(d.sizes for d in space.dimensions if d.name == term.dim)
            kept += dict(zip(sizes, term.values, strict=True))[selection.sizes[term.dim]]
    return kept


def members_of(space: SearchSpace, method: str, most: int | None = None) -> list[Selection]:
    """What a method may choose, with at most so many blocks removed."""
    most = 0 if method in ("halp", "mdlm") else most
    return [s for s in every_selection(space) if most is None or len(s.removed_blocks) <= most]


def best_importance(
    space: SearchSpace, budgets: Mapping[str, float], method: str = "mdp", most: int | None = None
) -> float | None:
    """The optimum of a method by exhaustion; None when the budgets cannot be met."""
    worth = []
    for selection in members_of(space, method, most):
        costs = true_costs(space, selection, method)
        if all(costs[name] <= budget * (1 + 1e-9) for name, budget in budgets.items()):
            worth.append(true_worth(space, selection))
    return max(worth, default=None)


def scaled(space: SearchSpace, factor: float) -> SearchSpace:
    """The same space with its importance in another unit."""
    terms = (dataclasses.replace(t, values=tuple(factor * v for v in t.values)) for t in space.importance)
    return dataclasses.replace(space, importance=tuple(terms))


def wide_space(layers: int) -> SearchSpace:
    """Layers of a hidden size each, all of one width, which they share: as in a transformer."""
    widths, hidden = tuple(range(1, 13)), tuple(range(1, 17))
    names = [f"h{i}" for i in range(layers)]
    shared = axis("in", "width", points=widths)
    return SearchSpace(
        dimensions=(Dimension("width", widths), *(Dimension(name, hidden) for name in names)),
        blocks=(),
        exclusive=(),
        importance=(
            ImportanceTerm("width", "width", None, tuple(float(w) for w in widths)),
            *(
                ImportanceTerm(name, name, None, tuple((1.0 + 0.13 * i) * math.sqrt(h) for h in hidden))
                for i, name in enumerate(names)
            ),
        ),
        costs={
            "latency": CostModel(
                "us",
                0.0,
                tuple(
                    CostTerm(name, None, (axis("out", name, points=hidden), shared), np.outer(hidden, widths) + 0.1 * i)
                    for i, name in enumerate(names)
                ),
            )
        },
    )


def sum_space(layers: int, options: int) -> SearchSpace:
    """Layers that read the concatenation of all outputs before them, as in a dense block."""
    rng = np.random.default_rng(layers)
    sizes = tuple(range(1, options + 1))
    dims = tuple(Dimension(f"d{i}", sizes) for i in range(layers))
    terms = []
    for i in range(1, layers):
        before = tuple(SizeTerm(1, (d.name,)) for d in dims[:i])
        joined = CostAxis("in", 0, before, (i, i * options))
        table = rng.integers(1, 5, (options, 2)) + 3.0 * np.arange(1, options + 1)[:, None] * [1, options]
        terms.append(CostTerm(f"r{i}", None, (axis("out", f"d{i}", points=sizes), joined), table))
    return SearchSpace(
        dimensions=dims,
        blocks=(),
        exclusive=(),
        importance=tuple(
            ImportanceTerm(f"l{i}", d.name, None, tuple(np.cumsum(rng.integers(1, 20, options)).astype(float).tolist()))
            for i, d in enumerate(dims)
        ),
        costs={"latency": CostModel("us", 0.0, tuple(terms))},
    )
