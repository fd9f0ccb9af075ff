"""The search space as data: evaluation by hand, JSON both ways, and every inconsistency named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdp_fx.errors import InputError
from mdp_fx.passes.search_space import (
    Block,
    CostAxis,
    CostTerm,
    SearchSpace,
    Selection,
    SizeTerm,
    evaluate,
    importance,
    interpolation_weights,
    normalise,
    violations,
)
from tests.passes.spaces import (
    MINLP_DATA,
    branch_space,
    chain_space,
    emptying_space,
    every_selection,
    nested_space,
    random_space,
)


def test_evaluation_by_hand() -> None:
    space = chain_space()
    assert evaluate(space, space.dense()) == {"latency": 1 + 6 + 8}
    assert importance(space, space.dense()) == 9.0
    gone = Selection({"a": 1, "b": 2}, ("block",))
    assert evaluate(space, gone) == {"latency": 1 + 2}
    assert importance(space, gone) == 3.0


def test_table_is_multilinear_between_its_points() -> None:
    out = CostAxis("out", 1, (SizeTerm(2, ("a", "b")), SizeTerm(1, ("b",))), (0, 8, 20))
    inp = CostAxis("in", 0, (SizeTerm(1, ("a",)),), (0, 4))
    term = CostTerm("t", None, (out, inp), np.array([[0.0, 4.0], [8.0, 12.0], [20.0, 100.0]]))
    # Size of the first axis 1 + 2 * 2 * 1 + 1 = 6, of the second 2: a quarter short of the row at 8, half way across.
    assert term.cost({"a": 2, "b": 1}) == pytest.approx(0.25 * 2 + 0.75 * 10)
    assert out.dims == ("a", "b")


def test_interpolation_weights() -> None:
    assert interpolation_weights((2, 4, 8), (2, 3, 8)).tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert interpolation_weights((5,), (5,)).tolist() == [[1]]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ((), None),
        (("left",), None),
        (("outer", "left", "right"), None),
        (("left", "right"), "all of the blocks left, right removed"),
        (("outer",), "block 'left' kept inside the removed block 'outer'"),
        (("other",), "unknown block 'other' removed"),
    ],
)
def test_violations_of_blocks(removed: tuple[str, ...], message: str | None) -> None:
    found = violations(nested_space(), Selection({"d": 4, "e": 4}, removed))
    assert found == [] if message is None else message in found


def test_violations_of_sizes() -> None:
    space = replace(nested_space(), fixed={"e": 1})
    assert violations(space, Selection({"d": 2, "e": 1})) == ["dimension 'd' may not have size 2"]
    assert violations(space, Selection({"d": 1, "e": 4})) == ["dimension 'e' may not have size 4"]
    assert violations(space, Selection({"d": 1})) == ["the sizes do not name every dimension once"]


@pytest.mark.parametrize(
    ("sizes", "removed", "found"),
    [
        ((4, 4), (), []),
        ((0, 2), ("a",), []),
        ((0, 4), (), ["dimension 'a' has size 0; the block that empties it is kept"]),
        ((2, 4), ("a",), ["dimension 'a' has size 2; the block that empties it is removed"]),
        ((0, 0), ("a", "b"), ["all of the blocks a, b removed"]),
    ],
)
def test_what_a_block_empties_is_0_without_it_and_only_then(
    sizes: tuple[int, int], removed: tuple[str, ...], found: list[str]
) -> None:
    selection = Selection(dict(zip("ab", sizes, strict=True)), removed)
    assert violations(branch_space(), selection) == found


def test_normalise_empties_what_a_block_takes_along() -> None:
    space = branch_space()
    assert normalise(space, Selection({"a": 4, "b": 2}, ("a",))) == Selection({"a": 0, "b": 2}, ("a",))
    assert evaluate(space, Selection({"a": 0, "b": 2}, ("a",))) == {"latency": 1 + 3 + 2}
    assert importance(space, Selection({"a": 0, "b": 2}, ("a",))) == 4.0


def test_a_json_form_without_emptied_dimensions_is_read() -> None:
    data = chain_space().to_json()
    assert data["blocks"] == [{"name": "block", "parent": None, "empties": []}]
    del data["blocks"][0]["empties"]
    assert SearchSpace.from_json(data) == chain_space()
    assert SearchSpace.from_json(branch_space().to_json()) == branch_space()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (Block("a", None, ("x",)), Block("b"))}, "block 'a' empties an unknown dimension 'x'"),
        ({"fixed": {"b": 4}}, "block 'b' empties dimension 'b', which must be free and have 0 as the first"),
        (
            {"blocks": (Block("a", None, ("a",)), Block("b", None, ("a",)))},
            "block 'a' empties dimension 'a', and so does 'b' beside it",
        ),
    ],
)
def test_what_cannot_be_emptied_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(branch_space(), **change)
    with pytest.raises(
        InputError, match="block 'block' empties dimension 'a', which must be free and have 0 as the first"
    ):
        replace(chain_space(), blocks=(Block("block", None, ("a",)),))


def test_normalise_restores_what_is_not_used_and_lists_inner_blocks() -> None:
    space = nested_space()
    selection = normalise(space, Selection({"d": 1, "e": 1}, ("outer",)))
    # d is used in a removed block only; e also outside.
    assert selection == Selection({"d": 4, "e": 1}, ("outer", "left", "right"))
    assert normalise(space, selection) == selection
    assert normalise(replace(space, fixed={"d": 1}), selection).sizes["d"] == 1


@given(seed=st.integers(0, 2**32 - 1), make=st.sampled_from([random_space, emptying_space]))
@settings(max_examples=60, deadline=None)
def test_json_round_trip_and_normalised_cost(seed: int, make: Callable[[int], SearchSpace]) -> None:
    space = make(seed)
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space
    for selection in every_selection(space):
        same = normalise(space, selection)
        assert violations(space, same) == []
        assert evaluate(space, same) == evaluate(space, selection)
        assert importance(space, same) == importance(space, selection)


def test_save_and_load(tmp_path: Path) -> None:
    chain_space().save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == chain_space()
    other = replace(chain_space(), costs={})
    assert SearchSpace.load(tmp_path / "space.json") != other


def test_table_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        chain_space().costs["latency"].terms[0].table[0] = 1.0


def edit(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        at: Any = data
        for key in path[:-1]:
            at = at[key]
        if value is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = value

    return apply


TERM = ("costs", "latency", "terms", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("format", value="x"), "not a search space: 'format' is 'x'"),
        (edit("version", value=2), "search space of version 2; this mdp-fx reads 1"),
        (edit("dimensions", value=KeyError), "search space: field 'dimensions' is missing"),
        (edit("dimensions", value={}), "field 'dimensions' should be a list"),
        (edit("dimensions", 0, value=3), r"search space.dimensions\[0\]: expected a JSON object, found int"),
        (
            edit("dimensions", 0, "sizes", value=[1, 2.5]),
            r"dimensions\[0\]: field 'sizes' should be a list of integers",
        ),
        (edit("dimensions", 0, "sizes", value=[2, 1]), "sizes of dimension 'a' must be ascending"),
        (edit("dimensions", 0, "sizes", value=[]), "sizes of dimension 'a' must be ascending"),
        (edit("dimensions", 1, "name", value="a"), "dimension 'a' is listed twice"),
        (edit("dimensions", 1, "name", value=1), r"dimensions\[1\]: field 'name' should be a string, found 1"),
        (edit("blocks", 0, "parent", value="x"), "block 'block' has an unknown parent 'x'"),
        (edit("blocks", 0, "parent", value="block"), "block 'block' lies inside itself"),
        (edit("blocks", value=[]), "names an unknown block 'block'"),
        (edit("exclusive", value=[[]]), "an exclusive set of blocks is empty"),
        (edit("exclusive", value=[["x"]]), "an exclusive set names an unknown block 'x'"),
        (edit("exclusive", value=["x"]), "field 'exclusive' should be a list of lists of strings"),
        (edit("importance", 0, "dim", value="x"), "importance of layer 'one' names an unknown dimension 'x'"),
        (edit("importance", 1, "block", value="x"), "importance of layer 'two' names an unknown block 'x'"),
        (edit("importance", 0, "values", value=[1.0]), "importance of layer 'one' has 1 values for 2 sizes of 'a'"),
        (edit("importance", 0, "values", value=[1.0, "x"]), "field 'values' should be a list of numbers"),
        (edit("importance", 0, "values", value=[1.0, float("nan")]), "'one' has negative or not finite values"),
        (edit("importance", 0, "values", value=[-1.0, 1.0]), "'one' has negative or not finite values"),
        (
            edit("importance", 0, "values", value=[4.0, 3.0]),
            "importance of layer 'one' falls as more is kept: 4 at size 1, 3 at size 2",
        ),
        (edit("costs", "latency", "unit", value="s"), "cost 'latency' has the unknown unit 's'; units are us, params"),
        (edit("costs", "latency", "constant", value=-1), "cost 'latency' has the constant -1"),
        (
            edit("costs", "latency", "constant", value="1"),
            "search space.costs.latency: field 'constant' should be a number",
        ),
        (edit(*TERM, "block", value="x"), "cost 'latency', region 'two' names an unknown block 'x'"),
        (edit(*TERM, "table", value=[[1.0, 2.0]]), r"region 'two': table of shape \(1, 2\) for points of \(2, 2\)"),
        (edit(*TERM, "table", value=[[1.0], [2.0, 3.0]]), "cost table of region 'two' is not a rectangular array"),
        (edit(*TERM, "table", value=[[1.0, 2.0], [3.0, float("nan")]]), "'two': the table has negative or not finite"),
        (edit(*TERM, "table", value=[[1.0, 2.0], [3.0, -4.0]]), "'two': the table has negative or not finite"),
        (edit(*TERM, "axes", 0, "role", value="up"), "region 'two', axis 0 has the unknown role 'up'"),
        (edit(*TERM, "axes", 0, "constant", value=-1), "axis 0: the constant must not be negative"),
        (edit(*TERM, "axes", 0, "terms", 0, "coefficient", value=0), "axis 0: .* coefficients at least 1"),
        (edit(*TERM, "axes", 0, "terms", 0, "dims", value=[]), "axis 0: .* each with dimensions"),
        (edit(*TERM, "axes", 0, "terms", 0, "dims", value=["x"]), "region 'two' names an unknown dimension 'x'"),
        (edit(*TERM, "axes", 0, "points", value=[2, 1]), "axis 0: points must be ascending"),
        (edit(*TERM, "axes", 0, "points", value=[2]), "axis 0: points 2 to 2 do not cover the sizes 1 to 2"),
        (edit("fixed", value={"x": 1}), "'fixed' names an unknown dimension 'x'"),
        (edit("fixed", value={"a": 3}), "dimension 'a' is fixed at 3, which is not one of its sizes"),
        (edit("fixed", value={"a": True}), "search space.fixed: field 'a' should be an integer"),
    ],
)
def test_bad_json_is_one_clear_line(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = copy.deepcopy(chain_space().to_json())
    change(data)
    with pytest.raises(InputError, match=message) as caught:
        SearchSpace.from_json(data)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_search_space(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read search space .*missing.json: No such file"):
        SearchSpace.load(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"format": ', encoding="utf-8")
    with pytest.raises(InputError, match=r"cut.json is not valid JSON"):
        SearchSpace.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="expected a JSON object, found list"):
        SearchSpace.load(tmp_path / "list.json")


def minlp_json() -> dict[str, Any]:
    """A stem of two options and one layer in a block, in the form of the published MINLPs."""
    stem = {"name": "stem", "out": "d0", "inp": None, "block": None, "importance": [0, 5, 9], "latency_us": [0, 3, 4]}
    layer = {
        "name": "conv",
        "out": "d1",
        "inp": "d0",
        "block": 1,
        "importance": [0, 2],
        "latency_us": [[0] * 3, [0, 6, 7]],
    }
    dims = {"d0": {"options": 2, "layers": ["stem"]}, "d1": {"options": 1, "layers": ["conv"]}}
    return {"dims": dims, "blocks": [1], "layers": [stem, layer], "dense_latency_us": 11, "budget_us": 5}


def test_minlp_form(tmp_path: Path) -> None:
    (tmp_path / "minlp.json").write_text(json.dumps(minlp_json()), encoding="utf-8")
    space = SearchSpace.load(tmp_path / "minlp.json")
    assert space.fixed == {"d0": 2}
    assert space.blocks == (Block("1"),)
    assert evaluate(space, space.dense()) == {"latency": 11.0}
    assert importance(space, space.dense()) == 2.0
    assert evaluate(space, Selection({"d0": 2, "d1": 1}, ("1",))) == {"latency": 4.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("layers", 1, "inp", value="d9"), "layer 'conv' names an unknown dimension 'd9'"),
        (edit("layers", 1, "latency_us", value=[[0, 1, 2]]), r"table of layer 'conv' has shape \(1, 3\)"),
        (edit("layers", 1, "importance", value=[0]), "importance of layer 'conv' has 0 values for 1 sizes of 'd1'"),
        (edit("layers", 1, "block", value=7), "unknown block '7'"),
        (edit("dims", "d1", value={}), "MINLP.dims.d1: field 'options' is missing"),
    ],
)
def test_bad_minlp_form(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = minlp_json()
    change(data)
    with pytest.raises(InputError, match=message):
        SearchSpace.from_minlp_json(data)


@pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_published_minlps_have_their_dense_latency(name: str) -> None:
    path = MINLP_DATA / f"{name}_titan_v.json"
    space = SearchSpace.load(path)
    assert evaluate(space, space.dense())["latency"] == json.loads(path.read_text())["dense_latency_us"]
