"""`mdp-fx solve`: what reaches the solver, what is written, what is said, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdp_fx.errors import MdpFxError
from mdp_fx.passes.minlp import METHODS
from mdp_fx.passes.search_space import SearchSpace
from mdp_fx.passes.solvers import SOLVERS
from tests.cli.networks import SHAPE, TINY, TORCH
from tests.cli.running import Run
from tests.cli.test_main import imported_after
from tests.passes.spaces import MINLP_DATA, branch_space, chain_space

needs_minlp_data = pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")

KEYS = ("objective", "bound", "gap", "latency_us", "budget_us", "dims", "removed_blocks", "solver", "status", "seconds")


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    chain_space().save(folder / "chain.json")
    replace(chain_space(), budgets={"latency": 9.0}).save(folder / "recorded.json")
    branch_space().save(folder / "branch.json")


class ReachedError(MdpFxError):
    """Raised in place of the work."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the solver is asked; it does nothing."""
    seen: dict[str, Any] = {}

    def solve(space: SearchSpace, budgets: dict[str, str], **options: Any) -> None:
        seen.update(options, space=space, budgets=budgets)
        raise ReachedError("reached")

    monkeypatch.setattr("mdp_fx.decision.solve", solve)
    return seen


def test_defaults(run: Run, asked: dict[str, Any]) -> None:
    assert run("solve", "chain.json").err == "mdp-fx: error: reached\n"
    assert asked.pop("space") == chain_space()
    assert asked == {
        "budgets": {},
        "method": "mdp",
        "solver": "auto",
        "gap": pytest.approx(1e-4),
        "time_limit": 60.0,
        "threads": None,
        "seed": 0,
        "min_keep": None,
        "fixed": {},
        "keep_blocks": (),
        "max_removed": None,
    }


def test_every_option_reaches_the_solver(run: Run, asked: dict[str, Any]) -> None:
    run(
        *("solve", "chain.json", "--budget", "30%", "--params", "60%", "--macs", "30M", "--memory", "20MiB"),
        *("--limit", "energy=1.5G", "--limit", "a=b=7%", "--method", "halp", "--solver", "exact", "--gap", "0.001"),
        *("--time-limit", "3", "--threads", "2", "--seed", "7", "--min-keep", "10%", "--fix", "a=2"),
        *("--fix", "layer1.0=x=16", "--keep-block", "b0", "--keep-block", "b1", "--max-removed", "4"),
    )
    assert asked.pop("space") == chain_space()
    assert asked == {
        "budgets": {
            "latency": "30%",
            "params": "60%",
            "macs": "30M",
            "memory": "20MiB",
            "energy": "1.5G",
            "a=b": "7%",
        },
        "method": "halp",
        "solver": "exact",
        "gap": pytest.approx(1e-3),
        "time_limit": 3.0,
        "threads": 2,
        "seed": 7,
        "min_keep": pytest.approx(0.1),
        "fixed": {"a": 2, "layer1.0=x": 16},
        "keep_blocks": ("b0", "b1"),
        "max_removed": 4,
    }


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_can_be_asked_for(name: str, run: Run, asked: dict[str, Any]) -> None:
    run("solve", "chain.json", "--solver", name)
    assert asked["solver"] == name


@pytest.mark.parametrize("method", METHODS)
def test_json_has_the_keys(run: Run, method: str) -> None:
    done = run("solve", "chain.json", "--budget", "60%", "--method", method, "--json")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert set(KEYS) <= found.keys()
    assert found["method"] == method
    assert found["latency_us"] <= found["budget_us"] == pytest.approx(9.0)
    assert set(found["dims"]) == {"a", "b"}


def test_the_recorded_budget_is_the_default(run: Run) -> None:
    found = run("solve", "recorded.json", "--gap", "0", "--json").json
    assert (found["space"], found["budget_us"], found["objective"]) == ("recorded.json", 9.0, 8.0)
    assert (found["dims"], found["removed_blocks"], found["status"]) == ({"a": 1, "b": 2}, [], "optimal")
    found = run("solve", "recorded.json", "--latency", "3.5us", "--json").json
    assert (found["objective"], found["removed_blocks"]) == (3.0, ["block"])


def test_table_for_people(run: Run) -> None:
    done = run("solve", "recorded.json", "--solver", "exact")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    assert done.out.startswith("recorded.json: 88.9 % of the importance kept\nmdp, exact solver: optimal, ")
    assert ["objective", "8", "of", "9"] in rows
    assert ["latency", "0.015", "ms", "0.009", "ms", "0.007", "ms", "77.8", "%", "46.7", "%"] in rows
    assert ["blocks", "0", "of", "1", "removed"] in rows
    assert "\x1b" not in done.out


def test_the_decision_is_written_whole(run: Run, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    done = run("solve", "recorded.json", "-o", "decision.json", "--json")
    assert done.code == 0, done.err
    assert json.loads((folder / "decision.json").read_text()) == done.json
    assert {path.name for path in folder.iterdir()} == before | {"decision.json"}
    assert "decision.json exists; pass --force" in run("solve", "recorded.json", "-o", "decision.json").err
    shown = run("solve", "recorded.json", "-o", "decision.json", "--force")
    assert ["wrote", "decision.json"] in [line.split() for line in shown.out.splitlines()]


def test_the_search_space_is_not_overwritten(run: Run, folder: Path) -> None:
    before = (folder / "recorded.json").read_bytes()
    (folder / "link.json").symlink_to("recorded.json")
    for output in ("recorded.json", "./recorded.json", "link.json"):
        done = run("solve", "recorded.json", "-o", output, "--force")
        assert done.code == 1
        assert done.err == f"mdp-fx: error: --output {Path(output)} is what is read; name another output file\n"
    assert (folder / "recorded.json").read_bytes() == before


def test_without_an_answer_nothing_is_written(run: Run, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    assert run("solve", "chain.json", "--budget", "1%", "-o", "decision.json").code == 1
    assert {path.name for path in folder.iterdir()} == before
    assert "the folder none does not exist" in run("solve", "chain.json", "-o", "none/d.json").err


def test_a_decision_needs_no_network(run: Run) -> None:
    modules = imported_after("solve", "recorded.json", "--json")
    assert "highspy" in modules
    assert not modules & {"torch", "onnx", "onnxruntime"}


def test_a_saved_space_gives_the_decision_of_the_pruning_run(run: Run, folder: Path) -> None:
    done = run("prune", TINY, *SHAPE, *TORCH, "--params", "60%", "--save-space", "space.json", "--json")
    assert done.code == 0, done.err
    assert done.json["written"] == {"slim": "make_network-slim.pt", "space": "space.json"}
    pruned, space = done.json, SearchSpace.load(folder / "space.json")
    assert space.budgets == pruned["solver"]["budgets"]
    found = run("solve", "space.json", "--solver", "exact", "--gap", "0.1%", "--json").json
    assert found["objective"] == pytest.approx(pruned["solver"]["objective"], rel=1e-3)
    assert found["dims"].keys() == {group["name"] for group in pruned["groups"]}
    assert found["costs"]["params"] <= found["budgets"]["params"]
    coarse = run("solve", "space.json", "--min-keep", "50%", "--limit", "macs=90%", "--max-removed", "0", "--json").json
    assert all(size >= 16 for size in coarse["dims"].values())
    assert coarse["budgets"].keys() == {"params", "macs"}


Change = Callable[[dict[str, Any]], object]


def set_table(data: dict[str, Any], value: float) -> None:
    data["costs"]["latency"]["terms"][1]["table"][1][0] = value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(version=2), "search space of version 2; this mdp-fx reads 1"),
        (lambda d: d.update(format="x"), "not a search space: 'format' is 'x'"),
        (lambda d: set_table(d, float("nan")), "region 'two': the table has nan at out 2, in 1"),
        (lambda d: set_table(d, -4.0), "region 'two': the table has -4 at out 2, in 1"),
        (lambda d: d["importance"][0].update(values=[4.0, 3.0]), "importance of layer 'one' falls as more is kept"),
        (lambda d: d["importance"][0].update(values=[4.0]), "importance of layer 'one' has 1 values for 2 sizes"),
        (lambda d: d["importance"][0].update(dim="c"), "layer 'one' names an unknown dimension 'c'"),
        (lambda d: d.update(blocks=[]), "importance of layer 'two' names an unknown block 'block'"),
        (lambda d: d["dimensions"][1].update(name="a"), "dimension 'a' is listed twice"),
        (lambda d: d["dimensions"][1].update(sizes="12"), "field 'sizes' should be a list, found '12'"),
    ],
)
def test_bad_spaces(run: Run, folder: Path, change: Change, says: str) -> None:
    data = chain_space().to_json()
    change(data)
    (folder / "bad.json").write_text(json.dumps(data), encoding="utf-8")
    done = run("solve", "bad.json", "--budget", "30%")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("mdp-fx: error: bad.json: ")
    assert done.err.count("\n") == 1
    assert says in done.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("",), "the name of the search space is empty; name a JSON file"),
        (
            ("recorded.json", "--fix", "nope=1"),
            "unknown dimension 'nope' is to be held at 1; the search space has a, b",
        ),
        (("recorded.json", "--keep-block", "x"), "unknown block 'x' is to stay; the search space has block"),
        (("none.json",), "cannot read search space none.json: No such file or directory"),
        (("chain.json",), "the search space records no budget: give one, such as --budget 30%"),
        (("chain.json", "--budget", "fast"), "cannot read the latency budget 'fast': write it as 50% or 12.5ms"),
        (("chain.json", "--params", "60%"), "budget for an unknown cost 'params'; the search space has latency"),
        (("chain.json", "--limit", "latncy=60%"), "unknown cost 'latncy'; did you mean 'latency'?"),
        (("chain.json", "--budget", "10%"), "cannot be met: the smallest is 0.003 ms (20.0% of dense)"),
        (
            ("chain.json", "--budget", "20%", "--max-removed", "0"),
            "cannot be met with at most 0 blocks removed: the smallest is 0.004 ms (26.7% of dense)",
        ),
        (("recorded.json", "--fix", "bb=1"), "unknown dimension 'bb' is to be held at 1; did you mean 'b'?"),
        (("recorded.json", "--fix", "b=7"), "dimension 'b' cannot be held at 7; its sizes are 1, 2"),
        (("recorded.json", "--keep-block", "blok"), "unknown block 'blok' is to stay; did you mean 'block'?"),
        (("branch.json", "--budget", "60%", "--fix", "a=0"), "dimension 'a' cannot be held at 0"),
    ],
)
def test_bad_questions(run: Run, args: tuple[str, ...], says: str) -> None:
    done = run("solve", *args)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err


def test_a_budget_cannot_be_given_twice(run: Run) -> None:
    done = run("solve", "chain.json", "--budget", "30%", "--limit", "latency=40%")
    assert done.code == 2
    assert "the budget of 'latency' is given twice" in done.err


@needs_minlp_data
def test_published_minlp_at_its_own_budget(run: Run) -> None:
    found = run("solve", str(MINLP_DATA / "resnet50_titan_v.json"), "--json").json
    assert found["budget_us"] == 249338
    assert found["latency_us"] <= 249338
    assert found["dense_costs"] == {"latency": 259228}
    assert found["gap"] <= 1e-4
    assert len(found["dims"]) == 37


@needs_minlp_data
def test_time_limit_gives_the_best_so_far_and_says_so(run: Run) -> None:
    args = ("solve", str(MINLP_DATA / "resnet101_titan_v.json"), "--budget", "30%", "--solver", "exact")
    done = run(*args, "--time-limit", "0.001", "--threads", "1")
    assert done.code == 0, done.err
    assert "exact solver: time limit, " in done.out
    assert "warning  the time limit came before the gap was proven" in done.out
