"""The command line as users meet it: outputs, exit codes, and what a mistake prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mdp_fx
from mdp_fx.cli import main
from tests.cli.networks import BRIEF

TINY = "tests.cli.tiny:make_network"
FAST = ["--input", "3x16x16", "--target", "torch:cpu", "--threads", "1", "--step", "16"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Runs the command line in this process: exit code, stdout, stderr."""
    code = 0
    try:
        main(list(args))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_prune_writes_everything_and_tells_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys,
        "prune",
        TINY,
        *FAST,
        "--params",
        "60%",
        "--onnx",
        "a.onnx",
        "--recipe",
        "a.json",
        "-o",
        "a.pt",
        "--json",
    )
    assert code == 0, err
    facts = json.loads(out)
    assert facts["params"]["slim"] <= 0.6 * facts["params"]["dense"]
    assert facts["solver"]["status"] in ("optimal", "gap reached")
    assert facts["written"] == {"slim": "a.pt", "onnx": "a.onnx", "recipe": "a.json"}
    slim = mdp_fx.load("a.pt")
    assert slim(torch.randn(3, 3, 16, 16)).shape == (3, 4)
    assert sum(p.numel() for p in slim.parameters()) == facts["params"]["slim"]

    code, out, err = run(capsys, "apply", TINY, "--recipe", "a.json", "-o", "b.pt")
    assert code == 0, err
    again = mdp_fx.load("b.pt")
    assert all(torch.equal(a, b) for a, b in zip(slim.state_dict().values(), again.state_dict().values(), strict=True))

    code, out, err = run(capsys, "diff", TINY, "a.pt", "--input", "3x16x16", "--json")
    assert code == 0, err
    assert json.loads(out)["params"] == [facts["params"]["dense"], facts["params"]["slim"]]

    code, out, err = run(capsys, "bench", TINY, "a.pt", *FAST[:6], *BRIEF, "--json")
    assert code == 0, err
    assert [row["name"] for row in json.loads(out)["networks"]] == [TINY, "a.pt"]

    code, out, err = run(capsys, "export", "a.pt", "-o", "c.onnx")
    assert code == 0, err
    assert "ONNX Runtime against torch" in out


def test_prune_meets_a_latency_budget_and_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "prune", TINY, *FAST, "--latency", "90%", "-o", "a.pt", "-v")
    assert code == 0, err
    for word in ("asked", "predicted", "measured", "parameters", "MACs", "gap", "warning"):
        assert word in out
    assert "measure cost regions" in err
    assert Path("a.pt").exists()


def test_taylor_reads_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "tests.cli.tiny:make_loader", "--params", "80%"]
    code, out, err = run(capsys, "prune", TINY, *FAST, *data, "-o", "a.pt", "--json")
    assert code == 0, err
    assert json.loads(out)["importance"] == "taylor"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["prune", "absent.pt"], ["absent.pt"]),
        (["prune", "torchvision:resnet19"], ["resnet19", "resnet18"]),
        (["prune", "timm:resnet19x"], ["resnet19x"]),
        (["prune", "tests.cli.tiny:nothing"], ["nothing"]),
        (["prune", TINY, "--target", "onnxruntime:cpo"], ["onnxruntime:cpo", "onnxruntime:cpu"]),
        (["prune", TINY, "--latency", "150%"], ["150", "100 %"]),
        (["prune", TINY, "--latency", "fast"], ["fast", "12.5ms"]),
        (["prune", TINY, *FAST, "--latency", "1000s"], ["1e+06 ms", "dense"]),
        (["prune", TINY, *FAST, "--params", "0.1%"], ["params", "smallest"]),
        (["prune", TINY, "--input", "5x16x16", *FAST[2:]], ["5x16x16", "--input"]),
        (["prune", "tests.cli.tiny:make_frozen", *FAST], ["nothing to prune"]),
        (["prune", TINY, *FAST, "--keep", "nowhere*"], ["nowhere*", "inspect"]),
        (["prune", TINY, *FAST, "--importance", "taylor"], ["taylor", "--data"]),
        (["prune", TINY, *FAST, "--data", "tests.cli.tiny:make_loade"], ["make_loade", "make_loader"]),
        (["prune", TINY, *FAST, "--data", "tests.cli.tiny:make_bad_labels"], ["labels", "4 classes"]),
        (["prune", TINY, *FAST, "--data", "imagefolder:nowhere"], ["nowhere"]),
        (["prune", TINY, *FAST, "--data", "tests.cli.tiny:make_breaking"], ["data loader", "OSError", "disk gone"]),
        (["prune", TINY, *FAST, "--threads", "100000"], ["100000 threads", "processor"]),
        (["prune", TINY, *FAST, "--params", "1e12"], ["above", "nothing needs pruning"]),
        (["prune", TINY, *FAST, "--batch", "1000000000000"], ["no memory", "--batch"]),
        (["prune", TINY, *FAST, "-o", "nowhere/a.pt"], ["nowhere"]),
        (["apply", TINY, "--recipe", "absent.json", "-o", "a.pt"], ["absent.json"]),
    ],
)
def test_mistakes_are_one_line_with_exit_code_1(
    capsys: pytest.CaptureFixture[str], args: list[str], parts: list[str]
) -> None:
    before = {path.name for path in Path().iterdir()}
    code, out, err = run(capsys, *args)
    assert code == 1, (out, err)
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("mdp-fx: error: ")
    for part in parts:
        assert part in err
    assert {path.name for path in Path().iterdir()} - before <= {"cache"}


def test_an_infeasible_latency_states_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "prune", TINY, *FAST, "--latency", "1%", "-o", "a.pt")
    assert code == 1
    assert "smallest" in err
    assert not Path("a.pt").exists()


def test_nan_weights_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 4, 3))
    network[1].weight.data[0, 0, 0, 0] = float("nan")
    torch.save(network, "nan.pt")
    code, _, err = run(capsys, "prune", "nan.pt", *FAST)
    assert code == 1
    assert "1.weight" in err


def test_a_state_dict_needs_its_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.cli.tiny import make_network

    torch.save(make_network().state_dict(), "state.pt")
    code, _, err = run(capsys, "prune", "state.pt", *FAST)
    assert code == 1
    assert "--arch" in err
    code, _, err = run(capsys, "prune", "state.pt", *FAST, "--arch", TINY, "--params", "70%")
    assert code == 0, err


def test_an_existing_output_needs_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.pt").write_text("precious")
    code, _, err = run(capsys, "prune", TINY, *FAST, "--params", "70%", "-o", "a.pt")
    assert code == 1
    assert "--force" in err
    assert Path("a.pt").read_text() == "precious"
    code, _, err = run(capsys, "prune", TINY, *FAST, "--params", "70%", "-o", "a.pt", "--force")
    assert code == 0, err


def test_kept_modules_go_with_any_budget(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "prune", TINY, *FAST, "--keep", "block.0", "--params", "80%", "-o", "a.pt", "--json")
    assert code == 0, err
    assert json.loads(out)["params"]["slim"] <= 0.8 * json.loads(out)["params"]["dense"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types(capsys: pytest.CaptureFixture[str], dtype: torch.dtype) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 4, 3)).to(dtype)
    torch.save(network, "other.pt")
    code, _, err = run(capsys, "prune", "other.pt", *FAST, "--params", "70%", "-o", "a.pt", "--recipe", "a.json")
    assert code == 0, err
    code, _, err = run(capsys, "apply", "other.pt", "--recipe", "a.json", "-o", "b.pt")
    assert code == 0, err
    assert next(mdp_fx.load("b.pt").parameters()).dtype == dtype
