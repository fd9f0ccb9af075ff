from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from mdp_fx.checkpoint import save_slim
from mdp_fx.errors import ModelError
from mdp_fx.model_source import check_finite, load_model
from tests.slim_networks import RECIPE, small_net

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def make():
    return Net()

ready = nn.ReLU()

def broken():
    raise KeyError("first line\\nsecond line")

def number():
    return 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the working folder."""
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


def message(spec: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(spec), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_torchvision_models_have_the_same_random_weights_in_every_run() -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = load_model("torchvision:resnet18")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    second = load_model("torchvision:resnet18")
    assert torch.equal(first.module.conv1.weight, second.module.conv1.weight)
    assert (first.name, first.pretrained, first.recipe) == ("resnet18", False, None)


def test_torchvision_detectors_are_built_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    assert type(load_model("torchvision:ssdlite320_mobilenet_v3_large").module).__name__ == "SSD"


def test_our_own_models_have_short_names() -> None:
    pytest.importorskip("torchvision")
    first, second = load_model("ssd300-mobilenet-v2"), load_model("ssd300-mobilenet-v2")
    assert (first.name, first.pretrained, type(first.module).__name__) == ("ssd300-mobilenet-v2", False, "SSD")
    assert all(map(torch.equal, first.module.parameters(), second.module.parameters()))
    assert "did you mean ssd512-resnet50?" in message("SSD512_resnet-50")
    assert "did you mean torchvision:ssd300_vgg16?" in message("ssd300_vgg16")
    assert "ssd300-resnet50, ssd512-resnet50" in message("nothing like it")


def test_timm_models_are_built() -> None:
    pytest.importorskip("timm")
    loaded = load_model("timm:mobilenetv3_small_050")
    assert (loaded.name, loaded.pretrained) == ("mobilenetv3_small_050", False)


def test_unknown_names_offer_near_ones() -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    assert "did you mean resnet50" in message("torchvision:resnet50x")
    assert "did you mean" in message("timm:resnet50x")
    assert "did you mean torchvision:resnet18?" in message("resnet18")
    assert "did you mean torchvision:resnet18?" in message("torchvison:resnet18")
    assert "package.module:factory" in message("nothing like it")
    assert "is a folder" in message("")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "mdp-fx[vision]" in message("timm:resnet18")


def test_factories_classes_and_modules_are_found_in_the_working_folder(factories: str) -> None:
    before = list(sys.path)
    assert type(load_model(f"{factories}:Net").module).__name__ == "Net"
    first, second = (load_model(f"{factories}:make").module for _ in range(2))
    assert torch.equal(first.get_parameter("conv.weight"), second.get_parameter("conv.weight"))
    assert isinstance(load_model(f"{factories}:ready").module, nn.ReLU)
    assert sys.path == before


def test_factories_that_fail_are_one_line(factories: str) -> None:
    assert "cannot build" in message(f"{factories}:broken")
    assert "gives a int" in message(f"{factories}:number")
    assert "no attribute 'missing'" in message(f"{factories}:missing")
    assert "No module named" in message("no_such_package:make")


def test_pickled_modules_are_read(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for name, content in (("a", net), ("b", {"model": net, "epoch": 3}), ("c", nn.DataParallel(net))):
        torch.save(content, tmp_path / f"{name}.pt")
        loaded = load_model(str(tmp_path / f"{name}.pt"))
        assert (loaded.name, loaded.pretrained) == (name, True)
        assert isinstance(loaded.module, nn.Sequential)
        assert torch.equal(loaded.module[0].weight, net[0].weight)


def test_custom_classes_need_trust(factories: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(load_model(f"{factories}:make").module, path)
    assert f"needs {factories}.Net" in message(path)
    assert "--trust-pickle" in message(path)
    assert type(load_model(str(path), trust_pickle=True).module).__name__ == "Net"
    del sys.modules[factories]
    (tmp_path / f"{factories}.py").unlink()
    assert "cannot be imported here" in message(path, trust_pickle=True)


def test_classes_of_a_script_are_explained(tmp_path: Path) -> None:
    script = "import torch\nclass Net(torch.nn.Module): pass\ntorch.save(Net(), 'net.pt')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert "needs __main__.Net" in message(tmp_path / "net.pt")
    assert "move the class into a module" in message(tmp_path / "net.pt", trust_pickle=True)


def test_state_dicts_need_their_network(factories: str, tmp_path: Path) -> None:
    net = load_model(f"{factories}:make").module
    with torch.no_grad():
        net.get_parameter("fc.bias").fill_(5)
    path = tmp_path / "weights.pth"
    state = net.state_dict()
    torch.save(state, path)
    assert "--arch torchvision:resnet50" in message(path)
    for content in (state, {"state_dict": {f"module.{k}": v for k, v in state.items()}, "args": Path("x")}):
        torch.save(content, path)
        loaded = load_model(str(path), arch=f"{factories}:Net")
        assert (loaded.name, loaded.pretrained) == ("weights", True)
        assert loaded.module.get_parameter("fc.bias")[0] == 5


def test_state_dicts_that_do_not_fit_name_the_keys(factories: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3), "head": torch.ones(1)}, path)
    text = message(path, arch=f"{factories}:Net")
    assert "missing: conv.weight, conv.bias" in text
    assert "unexpected: head" in text
    assert "fc.weight is 3x4 in the file and 2x4 in the network" in text
    torch.save({str(i): torch.ones(1) for i in range(9)}, path)
    assert "unexpected: 0, 1, 2 and 6 more" in message(path, arch=f"{factories}:Net")


def test_arch_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    torch.save(nn.ReLU(), tmp_path / "net.pt")
    assert "leave it out" in message(tmp_path / "net.pt", arch="torchvision:resnet18")
    assert "--arch is for files" in message("torchvision:resnet18", arch="torchvision:resnet18")


def test_safetensors_are_state_dicts(factories: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(load_model(f"{factories}:make").module.state_dict(), path)
    assert "holds a state dict" in message(path)
    assert type(load_model(str(path), arch=f"{factories}:Net").module).__name__ == "Net"
    path.write_bytes(b"junk")
    assert "cannot read" in message(path, arch=f"{factories}:Net")
    assert "cannot read" in message(tmp_path / "missing.safetensors")


def test_slim_files_are_recognised(tmp_path: Path) -> None:
    save_slim(tmp_path / "slim.pt", small_net(), RECIPE, {})
    loaded = load_model(str(tmp_path / "slim.pt"))
    assert isinstance(loaded.module, fx.GraphModule)
    assert loaded.recipe == RECIPE


def test_other_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save([1, 2], path)
    assert "holds a list, neither a module nor a state dict" in message(path)
    torch.save({}, path)
    assert "holds a dict" in message(path)
    assert "cannot read" in message(tmp_path / "missing.pt")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07")
    assert "is an ONNX model" in message(tmp_path / "net.onnx")
    assert "is a folder" in message(tmp_path)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_must_be_finite(value: float, word: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        net[1].weight[2] = value
    torch.save(net, tmp_path / "a.pt")
    assert f"parameter 1.weight has {word} values" in message(tmp_path / "a.pt")


def test_masks_may_be_infinite_but_no_buffer_may_be_nan() -> None:
    net = nn.Module()
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(net)
    net.register_buffer("stats", torch.tensor([torch.nan]))
    with pytest.raises(ModelError, match="buffer stats has NaN"):
        check_finite(net)
    with pytest.raises(ModelError, match="has no values yet"):
        check_finite(nn.LazyLinear(3))
