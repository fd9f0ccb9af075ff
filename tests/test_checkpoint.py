from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from mdp_fx.checkpoint import check_savable, load_slim, save_slim
from mdp_fx.errors import ModelError, OutputError
from tests.slim_networks import RECIPE, Functional, Tied, small_net

VISION = ["resnet18", "mobilenet_v2", "densenet121"]


def traced(name: str) -> fx.GraphModule:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return fx.symbolic_trace(models.get_model(name, weights=None).eval())


@pytest.mark.parametrize("name", VISION)
def test_a_fresh_process_gives_bit_equal_outputs(name: str, tmp_path: Path) -> None:
    net = traced(name)
    x = torch.randn(2, 3, 64, 64)
    save_slim(tmp_path / "slim.pt", net, RECIPE, {"model": name})
    # The order of summation follows the number of threads, so both processes use the same.
    torch.save({"x": x, "y": net(x), "threads": torch.get_num_threads()}, tmp_path / "expected.pt")
    code = """
import sys, torch
from mdp_fx.checkpoint import load_slim
slim = load_slim(sys.argv[1])
expected = torch.load(sys.argv[2], weights_only=True)
torch.set_num_threads(expected["threads"])
assert torch.equal(slim.module(expected["x"]), expected["y"])
assert "torchvision" not in sys.modules
print(slim.report["model"])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "slim.pt"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.stderr == ""
    assert done.stdout == f"{name}\n"


def test_everything_comes_back(tmp_path: Path) -> None:
    net = small_net()
    save_slim(tmp_path / "slim.pt", net, RECIPE, {"latency": {"asked_ms": 1.5}, "groups": (1, 2)})
    slim = load_slim(tmp_path / "slim.pt")
    assert slim.recipe == RECIPE
    assert slim.report == {"latency": {"asked_ms": 1.5}, "groups": [1, 2]}
    assert list(slim.module.state_dict()) == list(net.state_dict())


def test_subclasses_of_plain_types_do_not_reach_the_file(tmp_path: Path) -> None:
    assert type(torch.__version__) is not str
    versions = {"torch": torch.__version__}
    recipe = dataclasses.replace(RECIPE, versions=versions)
    save_slim(tmp_path / "slim.pt", small_net(), recipe, versions)
    slim = load_slim(tmp_path / "slim.pt")
    assert type(slim.recipe.versions["torch"]) is str
    assert slim.report == versions


def test_the_state_dict_in_the_file_is_the_modules_own(tmp_path: Path) -> None:
    net = fx.symbolic_trace(Tied())
    save_slim(tmp_path / "slim.pt", net, RECIPE, {})
    data = torch.load(tmp_path / "slim.pt", weights_only=True)
    assert list(data["state_dict"]) == list(net.state_dict())
    assert list(data["constants"]) == ["offset"]
    net.load_state_dict(data["state_dict"])


def test_views_are_saved_without_the_storage_behind_them(tmp_path: Path) -> None:
    net = small_net()
    conv = net.get_submodule("0")
    conv.weight = nn.Parameter(torch.zeros(1000, 3, 3, 3)[:4])
    save_slim(tmp_path / "slim.pt", net, RECIPE, {})
    assert (tmp_path / "slim.pt").stat().st_size < 50_000
    assert load_slim(tmp_path / "slim.pt").module.get_submodule("0").weight.shape == (4, 3, 3, 3)


@pytest.mark.parametrize("make", [small_net, lambda: fx.symbolic_trace(Functional())], ids=["modules", "functions"])
def test_a_loaded_network_can_be_used_like_any_other(make: Any, tmp_path: Path) -> None:
    save_slim(tmp_path / "slim.pt", make(), RECIPE, {})
    net = load_slim(tmp_path / "slim.pt").module.eval()
    x = torch.randn(3, 3, 8, 8)
    expected = net(x)
    assert torch.equal(copy.deepcopy(net)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)
    assert torch.equal(torch.compile(net, backend="eager")(x), expected)
    assert all(module.training for module in net.train().modules())
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not any(module.training for module in net.eval().modules())


def test_saving_again_gives_the_same_network(tmp_path: Path) -> None:
    net = traced("mobilenet_v2")
    save_slim(tmp_path / "a.pt", net, RECIPE, {})
    save_slim(tmp_path / "b.pt", load_slim(tmp_path / "a.pt").module, RECIPE, {})
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_slim(tmp_path / "b.pt").module(x), net(x))


def test_networks_that_cannot_be_saved_leave_no_file(tmp_path: Path) -> None:
    net = small_net()
    net.get_submodule("0").register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match="has hooks"):
        check_savable(net)
    with pytest.raises(ModelError, match="has hooks"):
        save_slim(tmp_path / "slim.pt", net, RECIPE, {})
    with pytest.raises(OutputError, match="does not exist"):
        save_slim(tmp_path / "no" / "slim.pt", small_net(), RECIPE, {})
    assert list(tmp_path.iterdir()) == []


def damage(path: Path, **changes: Any) -> None:
    data = torch.load(path, weights_only=True)
    torch.save({**data, **changes}, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"format": "other"}, "not a slim.pt"),
        ({"recipe": {}}, "not an mdp-fx recipe"),
        ({"graph": None}, "damaged"),
        ({"graph": {"name": "a"}}, "damaged"),
        ({"state_dict": {}}, "damaged"),
        ({"state_dict": {"0.weight": 3}}, "something other than tensors"),
        ({"state_dict": 3}, "damaged"),
        ({"report": 3}, "damaged"),
    ],
)
def test_damaged_files_are_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "slim.pt"
    save_slim(path, small_net(), RECIPE, {})
    damage(path, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_slim(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_foreign_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "slim.pt"
    save_slim(path, small_net(), RECIPE, {})
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"PK\x03\x04nothing", b"plain text"):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load_slim(path)
        assert "\n" not in str(caught.value)
    torch.save(nn.ReLU(), path)
    with pytest.raises(ModelError, match=r"not a slim\.pt of mdp-fx: it holds more than tensors"):
        load_slim(path)
