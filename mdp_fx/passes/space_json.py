"""Search spaces as JSON files.

    {"format": "mdp-fx-search-space", "version": 1,
     "dimensions": [{"name": "d0", "sizes": [8, 16]}],              kept unit counts, ascending, the dense one last
     "blocks":     [{"name": "b0", "parent": null, "empties": []},  an inner block is alive only if its parent is
                    {"name": "b1", "parent": null}],
     "exclusive":  [["b0", "b1"]],                                  one of them stays while their parent is alive
     "importance": [{"layer": "conv1", "dim": "d0", "block": null, "values": [1.0, 3.0]}],     one value per option
     "costs":      {"latency": {"unit": "us", "constant": 0.0, "terms": [
                       {"region": "conv1", "block": null, "table": [5.0, 9.0],
                        "axes": [{"role": "out", "constant": 0, "points": [8, 16],
                                  "terms": [{"coefficient": 1, "dims": ["d0"]}]}]}]}},
     "fixed":      {"d0": 8},                                       dimensions held at one of their sizes
     "budgets":    {"latency": 7.0}}                                in the unit of the cost

Only "empties" and "budgets" may be left out, the other fields may be empty, and there are no further ones.

A selection keeps every dimension at one of its sizes and removes some blocks, inner ones of removed ones included. Of
the blocks of an "exclusive" set one stays, unless a block that encloses all of them goes. A dimension that a block
"empties" has 0 as its first size: it has that size where such a block is removed whose parent is alive, or that has
none, and nowhere else; no two of the blocks that empty it lie side by side.

Importance is the sum of the values of what lies outside removed blocks ("block" is the innermost one around it, null
for none); the values of a layer may not fall as more is kept. A cost is its constant plus the tables of the regions
outside removed blocks, in "us", "params", "macs" or "bytes". A table is nested lists, one level per axis, or a
number without axes. The size of an axis is its constant plus the sum of coefficient * product of the kept
sizes of "dims". Its "points" are the sizes that the table is given at, ascending: the first is at most the smallest
size that can be chosen, the last is the dense one; between them the table is multilinear. It need not be monotone. The
"role" says whether an axis is what the region reads ("in", held dense by halp and mgp) or what it makes ("out").

Files in the form of the MINLPs published with MDP are read too, see `from_minlp`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from mdp_fx.errors import InputError
from mdp_fx.files import atomic_write
from mdp_fx.passes.json_reader import JsonReader
from mdp_fx.passes.search_space import (
    Block,
    CostAxis,
    CostModel,
    CostTerm,
    Dimension,
    FloatArray,
    ImportanceTerm,
    Role,
    SearchSpace,
    SizeTerm,
    Unit,
    evaluate,
)
from mdp_fx.passes.space_checks import INFINITE

FORMAT = "mdp-fx-search-space"
VERSION = 1

# How far a published MINLP's dense latency may be from the sum of its tables, relative: both are printed numbers.
SAME = 1e-6


def save(space: SearchSpace, path: str | os.PathLike[str]) -> None:
    """Write a search space to a file, which is whole or absent.

    Raises:
        OutputError: It cannot be written.
    """
    text = json.dumps(to_json(space), allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def load(path: str | os.PathLike[str]) -> SearchSpace:
    """Read a file in either form.

    Raises:
        InputError: It cannot be read, or holds no search space.
    """
    if not os.fspath(path):
        raise InputError("the name of the search space is empty; name a JSON file")
    try:
        # Editors of some systems begin a file with a mark of its byte order.
        text = Path(path).read_text(encoding="utf-8-sig")
        data = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except OSError as e:
        raise InputError(f"cannot read search space {path}: {e.strerror}") from e
    except ValueError as e:
        raise InputError(f"search space {path} is not valid JSON: {e}") from e
    except RecursionError as e:
        raise InputError(f"search space {path} is nested too deeply") from e
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    try:
        published = isinstance(data, dict) and "format" not in data and {"dims", "layers"} <= data.keys()
        return from_minlp(data) if published else from_json(data)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def _integer(digits: str) -> int | float:
    """An integer; one that no field takes is a float, since Python refuses to read those of thousands of digits."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two fields with one name, `json` would silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the field {twice!r} is there twice in one object")
    return found


def to_json(space: SearchSpace) -> dict[str, Any]:
    """The JSON form described at the top of this module."""

    def axis(a: CostAxis) -> dict[str, Any]:
        terms = [{"coefficient": t.coefficient, "dims": list(t.dims)} for t in a.terms]
        return {"role": a.role, "constant": a.constant, "terms": terms, "points": list(a.points)}

    def term(t: CostTerm) -> dict[str, Any]:
        return {"region": t.region, "block": t.block, "axes": [axis(a) for a in t.axes], "table": t.table.tolist()}

    return {
        "format": FORMAT,
        "version": VERSION,
        "dimensions": [{"name": d.name, "sizes": list(d.sizes)} for d in space.dimensions],
        "blocks": [{"name": b.name, "parent": b.parent, "empties": list(b.empties)} for b in space.blocks],
        "exclusive": [list(names) for names in space.exclusive],
        "importance": [
            {"layer": t.layer, "dim": t.dim, "block": t.block, "values": list(t.values)} for t in space.importance
        ],
        "costs": {
            name: {"unit": m.unit, "constant": m.constant, "terms": [term(t) for t in m.terms]}
            for name, m in space.costs.items()
        },
        "fixed": dict(space.fixed),
        "budgets": dict(space.budgets),
    }


def from_json(data: object) -> SearchSpace:
    """Read the JSON form described at the top of this module (already parsed).

    Raises:
        InputError: Another format or version, a missing or wrong field, or an inconsistent space.
    """
    top = JsonReader(data, "search space")
    if top.data.get("format") != FORMAT:
        raise InputError(f"not a search space: 'format' is {top.shown('format')}, expected {FORMAT!r}")
    if top.integer("version") != VERSION:
        raise InputError(f"search space of version {top.shown('version')}; this mdp-fx reads {VERSION}")
    top.only("format", "version", *(field.name for field in dataclasses.fields(SearchSpace)))

    def axis(r: JsonReader) -> CostAxis:
        terms = tuple(
            SizeTerm(t.integer("coefficient"), t.strings("dims")) for t in r.readers("terms", "coefficient", "dims")
        )
        return CostAxis(cast(Role, r.string("role")), r.integer("constant"), terms, r.integers("points"))

    def term(r: JsonReader) -> CostTerm:
        axes = tuple(axis(a) for a in r.readers("axes", "role", "constant", "terms", "points"))
        return CostTerm(r.string("region"), r.name_or_none("block"), axes, cast(FloatArray, r.table("table")))

    def model(r: JsonReader) -> CostModel:
        terms = tuple(term(t) for t in r.readers("terms", "region", "block", "axes", "table"))
        return CostModel(cast(Unit, r.string("unit")), r.number("constant"), terms)

    costs, fixed = top.reader("costs"), top.reader("fixed")
    budgets = top.reader("budgets") if "budgets" in top.data else None
    return SearchSpace(
        dimensions=tuple(
            Dimension(r.string("name"), r.integers("sizes")) for r in top.readers("dimensions", "name", "sizes")
        ),
        blocks=tuple(
            Block(r.string("name"), r.name_or_none("parent"), r.strings("empties") if "empties" in r.data else ())
            for r in top.readers("blocks", "name", "parent", "empties")
        ),
        exclusive=top.string_lists("exclusive"),
        importance=tuple(
            ImportanceTerm(r.string("layer"), r.string("dim"), r.name_or_none("block"), r.numbers("values"))
            for r in top.readers("importance", "layer", "dim", "block", "values")
        ),
        costs={name: model(costs.reader(name, "unit", "constant", "terms")) for name in costs.data},
        fixed={name: fixed.integer(name) for name in fixed.data},
        budgets={name: budgets.number(name) for name in budgets.data} if budgets else {},
    )


def from_minlp(data: object) -> SearchSpace:
    """Read the JSON form of the MINLPs that MDP's authors solved (cost "latency", in microseconds).

    There dimensions have options 0..K and option 0 is not allowed; sizes here are 1..K. A layer without an input
    dimension is the stem: it keeps its largest option and its importance is not counted.

    Raises:
        InputError: A missing or wrong field, or an inconsistent problem; the layer is named.
    """
    top = JsonReader(data, "MINLP")
    dims = top.reader("dims")
    counts = {name: dims.reader(name).integer("options") for name in dims.data}
    sizes: dict[str, tuple[int, ...]] = {}
    names, importance, terms, fixed = set[str](), [], [], {}
    whole: list[tuple[str, FloatArray]] = []
    for layer in top.readers("layers"):
        name, out, inp, block = layer.string("name"), layer.string("out"), layer.data.get("inp"), layer.get("block")
        if name in names:
            raise InputError(f"layer {name!r} is listed twice")
        names.add(name)
        mentioned = (out,) if inp is None else (out, layer.string("inp"))
        for dim in mentioned:
            if dim not in counts:
                raise InputError(f"layer {name!r} names an unknown dimension {dim!r}")
        table = CostTerm(name, None, (), cast(FloatArray, layer.table("latency_us"))).table
        wanted = tuple(counts[dim] + 1 for dim in mentioned)
        if table.shape != wanted or min(wanted) < 2:
            options = "; ".join(f"{dim!r} has options 0 to {counts[dim]}" for dim in mentioned)
            raise InputError(f"latency table of layer {name!r} has shape {table.shape}, but {options}")
        sizes |= {dim: tuple(range(1, counts[dim] + 1)) for dim in mentioned if dim not in sizes}
        inside = None if block is None else _block_name(block, f"layer {name!r}")
        if inp is None:
            fixed[out] = counts[out]
        else:
            values = layer.numbers("importance")
            importance.append(ImportanceTerm(name, out, inside, values[1:]))
            whole.append((f"importance of layer {name!r}", np.array(values)))
        roles: tuple[Role, Role] = ("out", "in")
        axes = tuple(
            CostAxis(role, 0, (SizeTerm(1, (dim,)),), sizes[dim]) for role, dim in zip(roles, mentioned, strict=False)
        )
        terms.append(CostTerm(name, inside, axes, table[(slice(1, None),) * table.ndim]))
        whole.append((f"latency table of layer {name!r}", table))
    if unused := counts.keys() - sizes.keys():
        raise InputError(f"MINLP: no layer has the dimension {min(unused)!r}")
    space = SearchSpace(
        dimensions=tuple(Dimension(name, sizes[name]) for name in counts),
        blocks=tuple(Block(_block_name(b, "MINLP: 'blocks'")) for b in top.items("blocks")),
        exclusive=(),
        importance=tuple(importance),
        costs={"latency": CostModel("us", 0.0, tuple(terms))},
        fixed=fixed,
        budgets={"latency": top.number("budget_us")} if "budget_us" in top.data else {},
    )
    for what, entries in whole:
        if not ((entries >= 0) & (entries < INFINITE)).all():
            raise InputError(f"{what}: an entry for option 0 is negative or not finite")
    total = evaluate(space, space.unpruned())["latency"]
    if "dense_latency_us" in top.data and not abs(top.number("dense_latency_us") - total) <= SAME * total:
        found = top.shown("dense_latency_us")
        raise InputError(f"MINLP: 'dense_latency_us' is {found}, but the tables of all layers add up to {total:g}")
    return space


def _block_name(block: object, where: str) -> str:
    if not isinstance(block, str | int) or isinstance(block, bool):
        raise InputError(f"{where} names a block by a {type(block).__name__}; it must be a string or an integer")
    return str(block)
