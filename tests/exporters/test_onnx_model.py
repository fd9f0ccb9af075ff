from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.exporters import onnx_model
from mdp_fx.exporters.onnx_model import to_onnx_bytes, to_onnx_model


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


@pytest.mark.parametrize("example_batch", [1, 3])
def test_dynamic_batch_runs_at_any_batch(example_batch: int) -> None:
    net = _net()
    data = to_onnx_bytes(net, (torch.randn(example_batch, 3, 8, 8),), dynamic_batch=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    assert isinstance(value.shape[0], str)
    for batch in (1, 4):
        x = torch.randn(batch, 3, 8, 8)
        with torch.inference_mode():
            expected = net(x).numpy()
        (result,) = session.run(None, {value.name: x.numpy()})
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_static_batch_by_default_and_weights_inside() -> None:
    net = _net()
    model = to_onnx_model(net, (torch.randn(2, 3, 8, 8),))
    onnx.checker.check_model(model, full_check=True)
    assert [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 8, 8]
    stored = sum(int(np.prod(initializer.dims)) for initializer in model.graph.initializer)
    assert stored >= sum(value.numel() for name, value in net.named_parameters() if not name.startswith("1."))


def test_unoptimized_keeps_every_parameter_under_its_name() -> None:
    net = _net()
    names = {
        initializer.name
        for initializer in to_onnx_model(net, (torch.randn(1, 3, 8, 8),), optimize=False).graph.initializer
    }
    assert set(dict(net.named_parameters())) <= names


def test_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx_bytes(_net(), (torch.randn(1, 3, 8, 8),), dynamic_batch=True)
    assert capfd.readouterr() == ("", "")


def test_torchs_table_of_operators_is_built_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    own = vars(registration.ONNXRegistry)["from_torchlib"]
    built: list[str] = []

    def counted(*arguments: object, **options: object) -> object:
        built.append("registry")
        return own.__func__(registration.ONNXRegistry, *arguments[1:], **options)

    monkeypatch.setattr(onnx_model, "_registries", {})
    monkeypatch.setattr(registration.ONNXRegistry, "from_torchlib", classmethod(counted))
    before = vars(registration.ONNXRegistry)["from_torchlib"]
    for _ in range(2):
        to_onnx_model(nn.ReLU(), (torch.randn(1, 3),))
        assert vars(registration.ONNXRegistry)["from_torchlib"] is before
    assert built == ["registry"]


def test_a_module_that_cannot_be_exported_is_one_line() -> None:
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ModelError, match="cannot export to ONNX: ") as caught:
        to_onnx_bytes(Sorting(), (torch.randn(1, 4),))
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_take_the_inputs_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^cannot export to ONNX: .*mat1 and mat2|a and b must") as caught:
        to_onnx_bytes(nn.Linear(3, 3), (torch.randn(1, 4),))
    assert "\n" not in str(caught.value)


def test_an_output_that_is_no_tensor_is_named() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return [x + 1, None], {"images": x.shape[0]}

    with pytest.raises(ModelError) as caught:
        to_onnx_bytes(Counting(), (torch.randn(2, 3),))
    assert str(caught.value) == (
        "cannot export to ONNX: its output[1]['images'] is of type int, and ONNX has tensors alone: leave it out"
    )


@pytest.mark.parametrize("mask", [None, (5, 5), (3, 2, 5, 5), (2, 1, 2, 5, 5)])
def test_attention_over_windows_is_exported(mask: tuple[int, ...] | None) -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)
            self.bias = None if mask is None else nn.Parameter(torch.randn(mask))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5).unbind(0)
            return F.scaled_dot_product_attention(q, k, v, self.bias)

    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(2, 3, 5, 8)
    session = onnxruntime.InferenceSession(to_onnx_bytes(model, (x,)), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("mask", [None, (5, 5), (4, 5, 5)])
def test_attention_on_three_axes_is_exported(mask: tuple[int, ...] | None) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)
            self.bias = None if mask is None else nn.Parameter(torch.randn(mask))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
            return F.scaled_dot_product_attention(q, k, v, self.bias)

    torch.manual_seed(0)
    model, x = Joined().eval(), torch.randn(2, 5, 8)
    session = onnxruntime.InferenceSession(to_onnx_bytes(model, (x,)), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)
