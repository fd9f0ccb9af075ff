from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError, OutputError, ParityError
from mdp_fx.exporters import onnx_export
from mdp_fx.exporters.onnx_export import export_onnx
from tests.slim_networks import FixedBatch, Tied, TwoInputs, small_net


def run(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return [torch.from_numpy(output) for output in outputs]


def test_a_graph_module_becomes_one_file_with_a_dynamic_batch(tmp_path: Path) -> None:
    net = small_net()
    path = tmp_path / "net.onnx"
    report = export_onnx(net, (torch.randn(1, 3, 8, 8),), path)
    assert report.dynamic_batch
    assert report.max_rel_error < 1e-4
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(run(path, x)[0], net(x))
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert not any(t.external_data for t in onnx.load(path).graph.initializer)


def test_several_inputs_and_outputs_and_tied_weights(tmp_path: Path) -> None:
    two = TwoInputs().eval()
    export_onnx(two, (torch.randn(1, 3, 8, 8), torch.randn(1, 5)), tmp_path / "two.onnx")
    inputs = (torch.randn(3, 3, 8, 8), torch.randn(3, 5))
    for a, b in zip(run(tmp_path / "two.onnx", *inputs), two(*inputs), strict=True):
        torch.testing.assert_close(a, b)
    tied = Tied().eval()
    export_onnx(tied, (torch.randn(2, 6),), tmp_path / "tied.onnx")
    x = torch.randn(3, 6)
    torch.testing.assert_close(run(tmp_path / "tied.onnx", x)[0], tied(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_vision_networks(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    net = models.get_model(name, weights=None).eval()
    assert export_onnx(net, (torch.randn(1, 3, 64, 64),), tmp_path / "net.onnx").dynamic_batch


def test_a_fixed_batch_is_reported(tmp_path: Path) -> None:
    report = export_onnx(FixedBatch(), (torch.randn(2, 3),), tmp_path / "net.onnx")
    assert not report.dynamic_batch
    dimension = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim[0]
    assert dimension.dim_value == 2


def test_the_module_keeps_its_modes_and_is_exported_in_eval_mode(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9)).train()
    net[1].eval()
    mean = net[1].running_mean.clone()
    export_onnx(net, (torch.randn(2, 3, 8, 8),), tmp_path / "net.onnx")
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert torch.equal(net[1].running_mean, mean)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(run(tmp_path / "net.onnx", x)[0], net.eval()(x))


def test_half_precision(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    assert export_onnx(net.half(), (torch.randn(2, 8).half(),), tmp_path / "net.onnx").max_rel_error < 1e-2


def test_existing_files_need_force(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    inputs = (torch.randn(1, 3, 8, 8),)
    with pytest.raises(OutputError, match="--force"):
        export_onnx(small_net(), inputs, path)
    assert path.read_bytes() == b"old"
    export_onnx(small_net(), inputs, path, force=True)
    onnx.checker.check_model(onnx.load(path))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class NotExportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).abs() if x.sum() > 0 else x


def test_nothing_is_written_when_the_result_differs_or_fails(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="is off by") as caught:
        export_onnx(Noise(), (torch.randn(2, 3),), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot export to ONNX") as failed:
        export_onnx(NotExportable(), (torch.randn(2, 2),), tmp_path / "net.onnx")
    assert "\n" not in str(failed.value)
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 3, 8, 8]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    monkeypatch.setattr(onnx_export, "to_onnx_bytes", lambda *_, **__: model.SerializeToString())
    with pytest.raises(ModelError, match="no valid ONNX") as caught:
        export_onnx(small_net(), (torch.randn(1, 3, 8, 8),), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_exporting_is_silent(tmp_path: Path) -> None:
    code = """
import sys, torch
from mdp_fx.exporters.onnx_export import export_onnx
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).eval()
export_onnx(net, (torch.randn(1, 3, 8, 8),), sys.argv[1])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "net.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("", "")
