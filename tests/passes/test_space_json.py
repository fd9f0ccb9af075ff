"""Search spaces as JSON: both ways, every inconsistency one clear line, and nothing but that for whatever comes in."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdp_fx.errors import InputError, OutputError
from mdp_fx.passes import space_json
from mdp_fx.passes.minlp import solve
from mdp_fx.passes.search_space import Block, SearchSpace, Selection, evaluate, importance
from mdp_fx.passes.space_json import from_json, from_minlp
from tests.passes.spaces import (
    MINLP_DATA,
    branch_space,
    chain_space,
    emptying_space,
    random_space,
)


@given(seed=st.integers(0, 2**32 - 1), make=st.sampled_from([random_space, emptying_space]))
@settings(max_examples=60, deadline=None)
def test_round_trip(seed: int, make: Callable[[int], SearchSpace]) -> None:
    space = replace(make(seed), budgets={"latency": 3.5})
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_a_json_form_without_emptied_dimensions_or_budgets_is_read() -> None:
    data = chain_space().to_json()
    assert data["blocks"] == [{"name": "block", "parent": None, "empties": []}]
    del data["blocks"][0]["empties"], data["budgets"]
    assert SearchSpace.from_json(data) == chain_space()
    assert SearchSpace.from_json(branch_space().to_json()) == branch_space()


def test_save_and_load(tmp_path: Path) -> None:
    chain_space().save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == chain_space()
    other = replace(chain_space(), costs={})
    assert SearchSpace.load(tmp_path / "space.json") != other


def test_a_file_may_be_named_by_a_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chain_space().save("space.json")
    assert SearchSpace.load("space.json") == chain_space()
    with pytest.raises(InputError, match="the name of the search space is empty; name a JSON file"):
        SearchSpace.load("")


def test_a_mark_of_the_byte_order_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_text(json.dumps(chain_space().to_json()), encoding="utf-8-sig")
    assert SearchSpace.load(tmp_path / "marked.json") == chain_space()


def test_the_documented_example_is_a_space() -> None:
    """What the module says of the form, without its remarks, is read as it stands."""
    form = (space_json.__doc__ or "").split("\n\n")[1]
    space = SearchSpace.from_json(json.loads(re.sub(r"  +[^\s{\[\"].*", "", form)))
    assert solve(space, space.budgets)[0] == Selection({"d0": 8}, ())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        chain_space().save(tmp_path / "missing" / "space.json")
    chain_space().save(tmp_path / "space.json")
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


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
        (edit("version", value=True), "field 'version' should be an integer of at most 2\\^53, found True"),
        (edit("version", value=KeyError), "search space: field 'version' is missing"),
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
        (edit("blocks", 0, "empties", value=["a", "a"]), "dimension that block 'block' empties, 'a' is listed twice"),
        (edit("blocks", 0, "name", value="x\ny"), r"the name 'x\\ny' of a block is empty or not printable"),
        (edit("costs", "", value={"unit": "us", "constant": 0, "terms": []}), "the name '' of a cost is empty"),
        (edit("blocks", value=[]), "names an unknown block 'block'"),
        (edit("exclusive", value=[[]]), "an exclusive set of blocks is empty"),
        (edit("exclusive", value=[["x"]]), "an exclusive set names an unknown block 'x'"),
        (edit("exclusive", value=[["block", "block"]]), "block of an exclusive set 'block' is listed twice"),
        (edit("exclusive", value=["x"]), "field 'exclusive' should be a list of lists of strings"),
        (edit("importance", 0, "dim", value="x"), "importance of layer 'one' names an unknown dimension 'x'"),
        (edit("importance", 1, "block", value="x"), "importance of layer 'two' names an unknown block 'x'"),
        (edit("importance", 0, "values", value=[1.0]), "importance of layer 'one' has 1 values for 2 sizes of 'a'"),
        (edit("importance", 0, "values", value=[1.0, "x"]), "field 'values' should be a list of numbers"),
        (edit("importance", 0, "values", value=[1.0, float("nan")]), "importance of layer 'one' is nan at size 2"),
        (edit("importance", 0, "values", value=[-1.0, 1.0]), "layer 'one' is -1 at size 1; it must be finite and not"),
        (edit("importance", 0, "values", value=[1.0, 1e20]), "layer 'one' is 1e\\+20 at size 2; it must be finite"),
        (edit("importance", 0, "values", value=[1.0, 10**400]), "layer 'one' is inf at size 2"),
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
        (
            edit(*TERM, "table", value=[[1.0, 2.0], [3.0, float("nan")]]),
            "'two': the table has nan at out 2, in 2; ",
        ),
        (edit(*TERM, "table", value=[[1.0, 2.0], [-3.0, 4.0]]), "'two': the table has -3 at out 2, in 1; entries must"),
        (edit(*TERM, "table", value=[[1.0, 2.0], [3.0, float("inf")]]), "'two': the table has inf at out 2, in 2"),
        (edit(*TERM, "table", value=[[1.0, 2.0], [3.0, 10**400]]), "region 'two' has a number that is beyond every"),
        (
            edit(*TERM, "table", value=[[1.0, 2.0], [3.0, None]]),
            r"terms\[1\]: field 'table' should be numbers",
        ),
        (edit(*TERM, "table", value=[["1", 2.0], [3.0, 4.0]]), "field 'table' should be numbers, or lists of them"),
        (edit(*TERM, "table", value=[[True, 2.0], [3.0, 4.0]]), "field 'table' should be numbers, or lists of them"),
        (edit(*TERM, "axes", 0, "role", value="up"), "region 'two', axis 0 has the unknown role 'up'"),
        (edit(*TERM, "axes", 0, "constant", value=-1), "axis 0: the constant must not be negative"),
        (edit(*TERM, "axes", 0, "terms", 0, "coefficient", value=0), "axis 0: .* coefficients at least 1"),
        (edit(*TERM, "axes", 0, "terms", 0, "dims", value=[]), "axis 0: .* each with dimensions"),
        (edit(*TERM, "axes", 0, "terms", 0, "dims", value=["x"]), "region 'two' names an unknown dimension 'x'"),
        (edit(*TERM, "axes", 0, "points", value=[2, 1]), "axis 0: points must be ascending"),
        (edit(*TERM, "axes", 0, "points", value=[2]), "axis 0: points 2 to 2 do not cover the sizes 1 to 2"),
        (edit(*TERM, "axes", 0, "terms", 0, "coefficient", value=2**53), r"axis 0: its dense size is beyond 2\^53"),
        (
            edit(*TERM, "axes", 0, "points", value=[1, 2**60]),
            r"field 'points' should be a list of integers of at most 2",
        ),
        (edit("budgets", value={"x": 1.0}), "'budgets' names an unknown cost 'x'"),
        (edit("budgets", value={"latency": float("nan")}), "the latency budget is nan; it must be finite"),
        (edit("budgets", value={"latency": "30%"}), "search space.budgets: field 'latency' should be a number"),
        (edit("importence", value=[]), "search space: unknown field 'importence'; did you mean 'importance'?"),
        (edit("budget", value={"latency": 1.0}), "search space: unknown field 'budget'; did you mean 'budgets'?"),
        (edit("dimensions", 0, "size", value=[]), r"dimensions\[0\]: unknown field 'size'; did you mean 'sizes'?"),
        (edit("blocks", 0, "empty", value=[]), r"blocks\[0\]: unknown field 'empty'"),
        (
            edit("importance", 0, "x", value=1),
            r"importance\[0\]: unknown field 'x'; known are layer, dim, block, values",
        ),
        (edit("costs", "latency", "units", value="us"), "costs.latency: unknown field 'units'; did you mean 'unit'?"),
        (edit(*TERM, "tables", value=[]), r"terms\[1\]: unknown field 'tables'; did you mean 'table'?"),
        (edit(*TERM, "axes", 0, "point", value=[]), r"axes\[0\]: unknown field 'point'; did you mean 'points'?"),
        (edit(*TERM, "axes", 0, "terms", 0, "dim", value="a"), r"terms\[0\]: unknown field 'dim'; did you mean 'dims'"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": ', r"search space .*file.json is not valid JSON"),
        (b"\xff\xfe", r"search space .*file.json is not valid JSON"),
        (b"", r"search space .*file.json is not valid JSON"),
        (b"[]", r"file.json: search space: expected a JSON object, found list"),
        (b"{}", r"file.json: not a search space: 'format' is None, expected 'mdp-fx-search-space'"),
        (b'{"dims": {}, "dims": {"a": 1}}', r"file.json: the field 'dims' is there twice in one object"),
        (b'{"dims": {"a": 1}, "layers": []}', r"file.json: MINLP.dims.a: expected a JSON object, found int"),
        (b"[" * 100_000, r"search space .*file.json is nested too deeply"),
        (
            b'{"format": "mdp-fx-search-space", "version": ' + b"9" * 5000 + b"}",
            r"'version' should be an integer .*, found inf",
        ),
        (b'{"format": "mdp-fx-search-space", "version": 1e400}', r"'version' should be an integer .*, found inf"),
    ],
)
def test_files_that_are_no_search_space(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        SearchSpace.load(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read search space .*missing.json: No such file"):
        SearchSpace.load(tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"cannot read search space .*: Is a directory"):
        SearchSpace.load(tmp_path)


def test_undefined_numbers_of_a_file_are_found(tmp_path: Path) -> None:
    data = minlp_json()
    data["layers"][1]["latency_us"][1][2] = float("nan")
    (tmp_path / "nan.json").write_text(json.dumps(data), encoding="utf-8")
    assert "NaN" in (tmp_path / "nan.json").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"nan.json: cost 'latency', region 'conv': the table has nan at out 1, in 2"):
        SearchSpace.load(tmp_path / "nan.json")


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
    assert space.budgets == {"latency": 5.0}
    assert evaluate(space, space.dense()) == {"latency": 11.0}
    assert importance(space, space.dense()) == 2.0
    assert evaluate(space, Selection({"d0": 2, "d1": 1}, ("1",))) == {"latency": 4.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("layers", 1, "inp", value="d9"), "layer 'conv' names an unknown dimension 'd9'"),
        (edit("layers", 1, "inp", value=0), r"MINLP.layers\[1\]: field 'inp' should be a string, found 0"),
        (edit("layers", 1, "latency_us", value=[[0, 1, 2]]), r"table of layer 'conv' has shape \(1, 3\)"),
        (edit("layers", 1, "importance", value=[0]), "importance of layer 'conv' has 0 values for 1 sizes of 'd1'"),
        (edit("layers", 1, "block", value=7), "unknown block '7'"),
        (edit("dims", "d1", value={}), "MINLP.dims.d1: field 'options' is missing"),
        (
            edit("dims", "d1", "options", value=10**12),
            r"'conv' has shape \(2, 3\), but 'd1' has options 0 to 1000",
        ),
        (edit("dims", "d1", "options", value=-1), "'d1' has options 0 to -1"),
        (edit("dims", "d9", value={"options": 10**12}), "no layer has the dimension 'd9'"),
        (edit("layers", 1, "name", value="stem"), "layer 'stem' is listed twice"),
        (edit("layers", 1, "importance", value=[0, -2]), "importance of layer 'conv' is -2 at size 1"),
        (edit("layers", 1, "latency_us", value=[[0] * 3, [0, 6, float("nan")]]), "region 'conv': the table has nan at"),
        (
            edit("layers", 1, "latency_us", value=[[0] * 3, [0, -6, 7]]),
            "region 'conv': the table has -6 at out 1, ",
        ),
        (edit("layers", 1, "latency_us", value=[[0, float("nan"), 0], [0, 6, 7]]), "'conv': an entry for option 0"),
        (edit("layers", 1, "importance", value=[-1, 2]), "importance of layer 'conv': an entry for option 0"),
        (edit("layers", 1, "block", value=[1]), "layer 'conv' names a block by a list"),
        (edit("layers", 1, "block", value=KeyError), r"MINLP.layers\[1\]: field 'block' is missing"),
        (edit("blocks", value=[1, "1"]), "block '1' is listed twice"),
        (edit("blocks", value=[None]), "'blocks' names a block by a NoneType"),
        (edit("budget_us", value="5"), "MINLP: field 'budget_us' should be a number, found '5'"),
        (edit("budget_us", value=-5), "the latency budget is -5"),
        (edit("dense_latency_us", value=12), "'dense_latency_us' is 12, but the tables of all layers add up to 11"),
    ],
)
def test_bad_minlp_form(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = minlp_json()
    change(data)
    with pytest.raises(InputError, match=message) as caught:
        from_minlp(data)
    assert "\n" not in str(caught.value)


def test_falling_importance_of_a_minlp_names_the_layer() -> None:
    data = minlp_json()
    data["dims"]["d1"]["options"] = 2
    data["layers"][1] |= {"importance": [0, 3, 2], "latency_us": [[0] * 3, [0, 6, 7], [0, 5, 7]]}
    with pytest.raises(InputError, match="importance of layer 'conv' falls as more is kept: 3 at size 1, 2 at size 2"):
        from_minlp(data)


def test_tables_need_not_rise() -> None:
    data = minlp_json()
    data["dims"]["d1"]["options"] = 2
    data["layers"][1] |= {"importance": [0, 2, 3], "latency_us": [[0] * 3, [0, 6, 7], [0, 5, 7]]}
    space = from_minlp(data)
    assert evaluate(space, Selection({"d0": 1, "d1": 2})) == {"latency": 3 + 5}


@pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_published_minlps_have_their_dense_latency(name: str) -> None:
    path = MINLP_DATA / f"{name}_titan_v.json"
    space = SearchSpace.load(path)
    assert evaluate(space, space.dense())["latency"] == json.loads(path.read_text())["dense_latency_us"]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from([2**53 + 1, 10**30, 1e19, 1e300])
    | st.floats()
    | st.sampled_from(["", "a", "b", "d0", "d1", "block", "out", "us", "x\ny", "\ud800"])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "name", "dims", "b"]), inner),
    max_leaves=6,
)
"""JSON values, some of which look like what belongs into a search space."""


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    keys = data.keys() if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [place for key in list(keys) for place in [(data, key), *places(data[key])]]


def read_or_say(read: Callable[[object], SearchSpace], data: object) -> SearchSpace | None:
    """The space, or None where one clear line says why there is none; any other error fails the test."""
    try:
        return read(data)
    except InputError as error:
        if "\n" in str(error):
            raise
        return None


@given(data=st.data(), start=st.sampled_from([chain_space, branch_space, None]), edits=st.integers(1, 3))
@settings(max_examples=400, deadline=None)
def test_whatever_comes_in_is_a_search_space_or_one_clear_line(
    data: st.DataObject, start: Callable[[], SearchSpace] | None, edits: int
) -> None:
    document: Any = minlp_json() if start is None else start().to_json()
    read = from_minlp if start is None else from_json
    for _ in range(edits):
        found = places(document)
        if not found:
            break
        container, key = data.draw(st.sampled_from(found))
        what = data.draw(st.sampled_from(["replace", "delete", "copy", "repeat"]))
        if what == "delete":
            del container[key]
        elif what == "copy":
            other, its_key = data.draw(st.sampled_from(found))
            container[key] = copy.deepcopy(other[its_key]) if its_key in other else None
        elif what == "repeat" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = data.draw(ANYTHING)
    text = json.dumps(document)
    space = read_or_say(read, json.loads(text))
    if space is None:
        return
    # What is read is fit for use.
    assert from_json(json.loads(json.dumps(space.to_json()))) == space
    costs = evaluate(space, space.dense())
    assert all(cost >= 0 for cost in costs.values())
    assert importance(space, space.dense()) >= 0


@given(ANYTHING)
@settings(max_examples=100, deadline=None)
def test_anything_else_is_one_clear_line(value: Any) -> None:
    for read in (from_json, from_minlp):
        with pytest.raises(InputError) as caught:
            read(json.loads(json.dumps(value)))
        assert "\n" not in str(caught.value)
