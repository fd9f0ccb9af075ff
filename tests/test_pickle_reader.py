from __future__ import annotations

import functools
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.errors import ModelError
from mdp_fx.pickle_reader import materialise, read_pickle, read_plain


def read(path: Path, content: Any) -> Any:
    torch.save(content, path)
    return materialise(read_pickle(path), path)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


class Custom(nn.Module):
    """A class that only the tests have."""


def built_by(*_: Any) -> None:
    raise AssertionError("a constructor ran")


def test_modules_come_back_with_their_classes_and_attributes(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=F.gelu)
    layer.norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)
    layer.kinds = [nn.BatchNorm2d, (nn.ReLU, {"a": nn.GELU})]
    net = nn.Sequential(layer, nn.Flatten())
    back = read(tmp_path / "a.pt", net)
    assert [type(module) for module in back.modules()] == [type(module) for module in net.modules()]
    assert back[0].activation is F.gelu
    assert back[0].norm_layer.func is nn.LayerNorm
    assert back[0].kinds == layer.kinds
    x = torch.randn(3, 2, 8)
    assert torch.equal(back.eval()(x), net.eval()(x))


def test_shared_modules_and_parameters_stay_shared(tmp_path: Path) -> None:
    relu, linear, other = nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = linear.weight
    back = read(tmp_path / "a.pt", nn.Sequential(relu, linear, relu, other))
    assert back[0] is back[2]
    assert back[1].weight is back[3].weight


def test_networks_of_the_vision_libraries_are_read(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    timm = pytest.importorskip("timm")
    for net in (models.regnet_y_400mf(), timm.create_model("mobilenetv3_small_050")):
        back = read(tmp_path / "a.pt", net.eval())
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(back(x), net(x))
        assert type(back) is type(net)


def test_of_the_old_format_state_dicts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(materialise(read_pickle(path), path)["0.weight"], net[0].weight)
    torch.save(net, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"format of torch < 1\.6.*--trust-pickle"):
        read_pickle(path)
    assert isinstance(read_pickle(path, trust=True), nn.Sequential)


def test_foreign_objects_beside_the_weights_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "config": Custom(), "path": Path("x")}, path)
    data = read_pickle(path)
    assert torch.equal(materialise(data["state_dict"], path)["w"], torch.ones(2))
    with pytest.raises(ModelError, match=r"needs .*Custom"):
        materialise(data["config"], path)


def test_a_foreign_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"needs .*test_pickle_reader\.Custom.*--trust-pickle"):
        read(tmp_path / "a.pt", nn.Sequential(nn.ReLU(), Custom()))


def test_a_graph_module_is_code(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch\.fx graph as Python code.*--trust-pickle"):
        read(tmp_path / "a.pt", fx.symbolic_trace(nn.ReLU()))


HOSTILE = {
    "system": Calls(__import__("os").system, "touch owned"),
    "eval": Calls(eval, "__import__('pathlib').Path('owned').touch()"),
    "getattr": Calls(getattr, nn.ReLU(), "forward"),
    "load": Calls(torch.load, "owned"),
    "hub": Calls(torch.hub.load, "owned", "owned"),
    "constructor": Calls(nn.Linear, 3, 4),
    "constructor of a container": Calls(nn.ModuleList, [nn.ReLU()]),
    "from_file": Calls(torch.from_file, "owned", True, 8),
    "import": Calls(__import__("importlib").import_module, "antigravity"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("old_format", [False, True])
def test_hostile_pickles_run_nothing(
    content: Calls, old_format: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    torch.save(nn.Sequential(nn.ReLU()), path)
    torch.save({"a": content}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ModelError) as caught:
        materialise(read_pickle(path), path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_no_constructor_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)
    monkeypatch.setattr(nn.Linear, "__init__", built_by)
    monkeypatch.setattr(nn.Sequential, "__init__", built_by)
    assert isinstance(materialise(read_pickle(path), path)[0], nn.Linear)


def test_names_that_would_become_code_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential()
    net._modules['a"), __import__("os"), ("'] = nn.ReLU()
    with pytest.raises(ModelError, match="not usable as a name"):
        read(tmp_path / "a.pt", net)


def test_replaced_methods_and_damaged_registries_are_refused(tmp_path: Path) -> None:
    net = nn.ReLU()
    net.forward = F.gelu  # type: ignore[assignment]
    with pytest.raises(ModelError, match="replaces its own forward"):
        read(tmp_path / "a.pt", net)
    net = nn.ReLU()
    net.__dict__["_modules"] = []
    with pytest.raises(ModelError, match="has no _modules"):
        read(tmp_path / "a.pt", net)
    net = nn.ReLU()
    net._parameters["w"] = 3  # type: ignore[assignment]
    with pytest.raises(ModelError, match="'w' in _parameters is a int"):
        read(tmp_path / "a.pt", net)


def test_deep_nesting_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": 1}, path)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ModelError, match="nested too deeply"):
        materialise(deep, path)


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"

    def message(content: bytes | None = None) -> str:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            read_pickle(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        return str(caught.value)

    assert "no such file" in message()
    assert "is empty" in message(b"")
    assert "truncated" in message(b"hello world, not a pickle")
    assert "truncated" in message(pickle.dumps({"a": 1}, protocol=2))
    torch.save({"w": torch.ones(100)}, path)
    whole = path.read_bytes()
    assert "truncated" in message(whole[:-100])
    assert "truncated" in message(whole[:200])
    torch.save({"w": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    assert "truncated" in message(path.read_bytes()[:-100])
    torch.save(nn.ReLU(), path, pickle_protocol=4)
    assert "default way" in message()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.trace(nn.ReLU(), torch.ones(2)).save(path)
    assert "TorchScript" in message()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "x")
    assert "zip archive" in message()
    path.unlink()
    path.mkdir()
    assert "is a folder" in message()


def test_plain_reading_takes_no_modules(tmp_path: Path) -> None:
    torch.save({"a": nn.ReLU()}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="ReLU"):
        read_plain(tmp_path / "a.pt")


def test_trusted_files_are_read_fully(tmp_path: Path) -> None:
    torch.save(Calls(sorted, [3, 1]), tmp_path / "a.pt")
    assert read_pickle(tmp_path / "a.pt", trust=True) == [1, 3]
    torch.save(Calls(Path("missing").unlink), tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"No such file|missing"):
        read_pickle(tmp_path / "a.pt", trust=True)


@pytest.mark.parametrize("trust", [False, True])
def test_a_search_space_is_no_network(tmp_path: Path, trust: bool) -> None:
    (tmp_path / "space.txt").write_text('{"format": "mdp-fx-search-space"}', encoding="utf-8")
    with pytest.raises(ModelError, match="is a JSON file, no network; search spaces are for mdp-fx solve") as caught:
        read_pickle(tmp_path / "space.txt", trust)
    assert "--trust-pickle" not in str(caught.value)
