"""`mdp-fx frontier`: what is swept, what is written, what is said, and bad input."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from plotly import graph_objects

from mdp_fx.budgets import parse_budget
from mdp_fx.cli.frontier_command import _budget
from mdp_fx.errors import MdpFxError
from mdp_fx.passes.search_space import CostModel, SearchSpace
from tests.cli.networks import SHAPE, TINY, TORCH
from tests.cli.running import Run
from tests.cli.test_main import imported_after
from tests.passes.spaces import MINLP_DATA, chain_space

needs_minlp_data = pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")

POINT_KEYS = {"cost", "share", "importance", "importance_share", "dims", "removed_blocks", "knee", "true_cost"}


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    chain_space().save(folder / "chain.json")
    energy = CostModel("macs", 1.0, chain_space().costs["latency"].terms)
    replace(chain_space(), costs=chain_space().costs | {"energy": energy}).save(folder / "energy.json")


class ReachedError(MdpFxError):
    """Raised in place of the work."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is asked of a network's search space; nothing is measured."""
    seen: dict[str, Any] = {}

    def search_space(model: object, inputs: tuple[Any, ...], **options: Any) -> None:
        seen.update(options, shape=tuple(inputs[0].shape))
        raise ReachedError("reached")

    monkeypatch.setattr("mdp_fx.api.search_space", search_space)
    return seen


def follow_up(out: str) -> list[str]:
    """The command that the output proposes, without the program."""
    (line,) = [line for line in out.splitlines() if line.lstrip().startswith("mdp-fx ")]
    return shlex.split(line)[1:]


def test_defaults(run: Run, asked: dict[str, Any]) -> None:
    assert run("frontier", TINY, *SHAPE).err == "mdp-fx: error: reached\n"
    assert callable(asked.pop("stage"))
    assert callable(asked.pop("progress"))
    assert callable(asked.pop("predicted"))
    assert asked == {
        "shape": (1, 3, 16, 16),
        "target": "onnxruntime:cpu",
        "threads": None,
        "fill": None,
        "dtype": "float32",
        "importance": None,
        "data": None,
        "loss": None,
        "scores": None,
        "step": 8,
        "keep": (),
        "only": (),
        "min_keep": None,
        "fixed": {},
        "keep_blocks": (),
        "front_end": "auto",
        "seed": 0,
    }


def test_every_option_reaches_the_search_space(run: Run, asked: dict[str, Any]) -> None:
    run(
        *("frontier", TINY, *SHAPE, *TORCH, "--batch", "2", "--importance", "taylor", "--step", "16", "--keep", "a*"),
        *("--data", "tests.cli.tiny:make_loader", "--loss", "tests.cli.networks:smooth_loss", "--only", "b*"),
        *("--min-keep", "10%", "--fix", "stem.0=16", "--keep-block", "b0", "--front-end", "export", "--seed", "7"),
        *("--dtype", "bfloat16"),
    )
    assert asked.pop("data") is not None
    assert asked.pop("loss").__name__ == "smooth_loss"
    del asked["stage"], asked["progress"], asked["predicted"]
    assert asked == {
        "shape": (2, 3, 16, 16),
        "target": "torch:cpu",
        "threads": 1,
        "fill": None,
        "dtype": "bfloat16",
        "importance": "taylor",
        "scores": None,
        "step": 16,
        "keep": ("a*",),
        "only": ("b*",),
        "min_keep": pytest.approx(0.1),
        "fixed": {"stem.0": 16},
        "keep_blocks": ("b0",),
        "front_end": "export",
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("args", "target"),
    [(("--cost", "params"), None), (("--cost", "macs", "--save-space", "s.json"), "torch:cpu"), ((), "torch:cpu")],
)
def test_only_latency_takes_measurements(
    run: Run, asked: dict[str, Any], args: tuple[str, ...], target: str | None
) -> None:
    run("frontier", TINY, *SHAPE, *TORCH, *args)
    assert asked["target"] == target


def test_json_of_a_saved_space(run: Run) -> None:
    done = run("frontier", "chain.json", "--json")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert (found["source"], found["cost"], found["unit"], found["dense"]) == ("chain.json", "latency", "us", 15.0)
    assert [(p["cost"], p["importance"]) for p in found["points"]] == [(3.0, 3.0), (7.0, 8.0), (15.0, 9.0)]
    assert all(point.keys() == POINT_KEYS for point in found["points"])
    assert (found["method"], found["warnings"], found["written"]) == ("mdp", [], {})


def test_restrictions_points_and_method_count(run: Run) -> None:
    def points(*args: str) -> list[tuple[float, float]]:
        return [(p["cost"], p["importance"]) for p in run("frontier", "chain.json", *args, "--json").json["points"]]

    assert points("--points", "2") == [(3.0, 3.0), (15.0, 9.0)]
    assert points("--fix", "a=2") == [(7.0, 4.0), (15.0, 9.0)]
    assert points("--keep-block", "block")[0] == points("--method", "mdlm")[0] == (4.0, 4.0)
    assert points("--min-keep", "100%") == [(7.0, 4.0), (15.0, 9.0)]
    # What the input costs, one-dimensional tables do not know.
    assert (11.0, 8.0) in points("--method", "mgp")


def test_a_cost_by_name(run: Run) -> None:
    done = run("frontier", "energy.json", "--cost", "energy")
    assert done.out.startswith("energy.json: importance against energy\nmdp method; the dense network has 15 macs\n")
    assert follow_up(done.out) == ["solve", "energy.json", "--limit", "energy=7"]


def test_the_proposed_command_decides_on_the_point(run: Run) -> None:
    done = run("frontier", "chain.json", "--fix", "b=2", "--min-keep", "10%", "--method", "mdlm", "-v")
    assert done.code == 0
    words = follow_up(done.out)
    assert words[:2] == ["solve", "chain.json"]
    assert words[4:] == ["--method", "mdlm", "--min-keep", "10%", "--fix", "b=2"]
    found = run(*words, "--json").json
    assert (found["latency_us"], found["objective"]) == (7.0, 8.0)


def test_a_network_is_measured_and_can_be_pruned_to_a_point(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (*SHAPE, *TORCH, "--step", "16")
    done = run("frontier", TINY, *args, "--keep-block", "block", "--save-space", "a b.json")
    assert done.code == 0, done.err
    assert done.out.startswith("make_network: importance against latency\nmdp method; the dense network has ")
    assert "\nl2 importance, batch 1\ntorch:cpu " in done.out
    assert "warning  accuracy is unknown: l2 importance uses no data" in done.out
    assert "wrote    a b.json" in done.out
    words = follow_up(done.out)
    assert sorted(words[4:]) == sorted([*args, "--keep-block", "block"])
    assert words[:3] == ["prune", TINY, "--latency"]
    assert words[3].endswith("ms")
    space = SearchSpace.load(folder / "a b.json")
    assert set(space.costs) == {"latency", "params", "macs"}
    assert space.blocks == ()
    again = run("frontier", "a b.json", "--json").json
    assert again["points"][-1]["share"] == pytest.approx(1.0)
    seen: dict[str, Any] = {}

    def prune(*_: object, **options: Any) -> None:
        seen.update(options)
        raise ReachedError("reached")

    monkeypatch.setattr("mdp_fx.api.prune", prune)
    assert run(*words).err == "mdp-fx: error: reached\n"
    assert (seen["target"], seen["step"], seen["keep_blocks"]) == ("torch:cpu", 16, ("block",))
    shown = [point["cost"] for point in again["points"]]
    assert min(abs(1e6 * seen["latency"].amount - cost) for cost in shown) <= 1e-3 * shown[-1]


def test_a_network_needs_no_measurement_for_parameters(run: Run, folder: Path) -> None:
    done = run("frontier", TINY, *SHAPE, "--cost", "params", "--step", "16")
    assert done.code == 0, done.err
    assert not (folder / ".cache").exists()
    words = follow_up(done.out)
    assert words[:3] == ["prune", TINY, "--params"]
    assert words[3].isdecimal()


def test_the_plot_is_written_whole(run: Run, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    done = run("frontier", "chain.json", "--plot", "c.html", "--json")
    assert done.code == 0, done.err
    assert done.json["written"] == {"plot": "c.html"}
    assert "Plotly.newPlot" in (folder / "c.html").read_text(encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == before | {"c.html"}
    assert "c.html exists; pass --force" in run("frontier", "chain.json", "--plot", "c.html").err
    shown = run("frontier", "chain.json", "--plot", "c.html", "--force")
    assert ["wrote", "c.html"] in [line.split() for line in shown.out.splitlines()]


def test_what_cannot_be_drawn_leaves_nothing_behind(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in folder.iterdir()}

    def no_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mdp_fx.report.frontier._page", no_disk)
    with pytest.raises(OSError, match="No space"):
        run("frontier", "chain.json", "--plot", "c.html", "--save-space", "again.json")
    assert {path.name for path in folder.iterdir()} == before


def test_png_that_cannot_be_rendered_is_refused_before_the_work(
    run: Run, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("no kaleido")

    monkeypatch.setattr(graph_objects.Figure, "to_image", fail)
    done = run("frontier", TINY, *SHAPE, "--plot", "c.png")
    assert (done.code, done.out, asked) == (1, "", {})
    assert done.err == (
        "mdp-fx: error: cannot make c.png: plotly needs kaleido and a Chrome browser for PNG (no kaleido); "
        "choose a .html file\n"
    )


def test_a_saved_space_needs_neither_torch_nor_a_plot() -> None:
    modules = imported_after("frontier", "chain.json", "--json")
    assert "mdp_fx.passes.frontier" in modules
    assert not modules & {"torch", "onnx", "onnxruntime", "plotly"}


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_a_saved_space_is_known_by_how_it_begins(run: Run, folder: Path, mark: str) -> None:
    text = (folder / "chain.json").read_text(encoding="utf-8")
    (folder / "space.txt").write_text(f" \n{text}", encoding=mark)
    found = run("frontier", "space.txt", "--json").json
    assert found["points"] == run("frontier", "chain.json", "--json").json["points"]


def test_what_is_read_is_not_overwritten(run: Run, folder: Path) -> None:
    (folder / "curve.html").write_bytes((folder / "chain.json").read_bytes())
    for args in (("chain.json", "--save-space", "chain.json"), ("curve.html", "--plot", "curve.html")):
        done = run("frontier", *args, "--force")
        assert (done.code, done.out) == (1, "")
        assert done.err == f"mdp-fx: error: {args[1]} {args[2]} is what is read; name another output file\n"
    SearchSpace.load(folder / "chain.json")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("chain.json", "--cost", "energy"), "no cost 'energy' to sweep; the search space has latency"),
        ((TINY, *SHAPE, "--cost", "energy"), "no cost 'energy' to sweep; a network has latency, params, macs"),
        (("text.json",), "search space text.json is not valid JSON"),
        (("none.json",), "cannot read search space none.json: No such file or directory"),
        (("none.pt",), "cannot read none.pt"),
        (("other.json",), "not a search space: 'format' is 'x'"),
        (("chain.json", "--keep-block", "blok"), "unknown block 'blok' is to stay; did you mean 'block'?"),
        (("chain.json", "--fix", "a=7"), "dimension 'a' cannot be held at 7; its sizes are 1, 2"),
        (("chain.json", "--plot", "c.svg"), "cannot plot to c.svg: name a file that ends in .html, or in .png"),
        (("chain.json", "--plot", "other.json"), "other.json exists; pass --force"),
        (("chain.json", "--plot", "none/c.html"), "the folder none does not exist"),
        (("chain.json", "--plot", "c.html", "--save-space", "c.html"), "--plot and --save-space both name c.html"),
        ((TINY, "--target", "tpu"), "tpu"),
        (
            ("chain.json", "--target", "torch:cpu", "--trust-pickle", "--input", "3x8x8", "--seed", "0"),
            "chain.json is a search space, measured and scored already: "
            "leave out --target, --input, --seed, --trust-pickle",
        ),
        (("chain.json", "--step", "8"), "leave out --step"),
    ],
)
def test_bad_input(run: Run, folder: Path, args: tuple[str, ...], says: str) -> None:
    (folder / "text.json").write_text("{", encoding="utf-8")
    (folder / "other.json").write_text(json.dumps({"format": "x"}), encoding="utf-8")
    before = {path.name for path in folder.iterdir()}
    done = run("frontier", *args)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("mdp-fx: error: ")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
    assert {path.name for path in folder.iterdir()} == before


@needs_minlp_data
def test_published_minlp(run: Run) -> None:
    path = str(MINLP_DATA / "resnet50_titan_v.json")
    found = run("frontier", path, "--points", "30", "--json").json
    assert found["dense"] == 259228
    assert len(found["points"]) == 30
    assert 1 <= sum(point["knee"] for point in found["points"]) <= 3
    words = follow_up(run("frontier", path, "--points", "30").out)
    decided = run(*words, "--json").json
    knee = [point for point in found["points"] if point["knee"]][-1]
    assert decided["objective"] >= knee["importance"] * (1 - 1e-4)
    assert decided["latency_us"] == pytest.approx(knee["cost"], rel=1e-3)


def test_a_cost_of_nothing_has_a_budget() -> None:
    def written(cost: float) -> list[str]:
        return _budget(
            cast(Any, SimpleNamespace(cost="params", unit="params", suggestion=SimpleNamespace(cost=cost))), True
        )

    assert parse_budget(written(0.0)[1], "params").amount == 0.001
    assert [written(cost) for cost in (12.34567, 98765.4)] == [["--params", "12.35"], ["--params", "98766"]]
