from __future__ import annotations

import json

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError, TargetError
from mdp_fx.latency import Effort
from mdp_fx.latency.onnxruntime_cpu import OnnxRuntimeCpu, _kernel_seconds
from mdp_fx.latency.region_onnx import RegionTemplate, direct, in_context

from .regions import (
    Built,
    Region,
    constant_region,
    conv_region,
    depthwise_region,
    token_region,
)

QUICK = Effort(min_runs=3, max_runs=4, warm_up=1)


def _outputs(model: bytes, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)}))


@pytest.mark.parametrize(
    ("region", "sizes", "learns"),
    [
        (conv_region(), (16, 40), False),
        (conv_region(), (7, 9), False),
        (conv_region(add=True), (24, 8), False),
        (depthwise_region(), (24,), True),
        (token_region(), (12,), True),
    ],
)
def test_resized_equals_exported(region: Region, sizes: tuple[int, ...], learns: bool) -> None:
    template = RegionTemplate(region)
    assert not learns or template.learn()
    module, inputs = region.build(sizes)
    resized = template.resize(module, inputs, sizes)
    exported = direct(module, inputs)
    assert [node.op_type for node in resized.graph.node] == [node.op_type for node in exported.graph.node]
    with torch.inference_mode():
        expected = module(*inputs).numpy()
    for model in (resized, exported):
        (result,) = _outputs(model.SerializeToString(), inputs)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_nothing_to_learn_for_a_region_without_sizes_in_its_graph() -> None:
    template = RegionTemplate(conv_region())
    assert not template.learn()
    assert not RegionTemplate(constant_region()).learn()


@pytest.mark.parametrize("region", [conv_region(add=True), depthwise_region(), token_region(), constant_region()])
def test_every_kind_of_region_is_timed_without_further_exports(
    region: Region, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mdp_fx.latency.onnxruntime_cpu.direct", lambda *_: pytest.fail("exported directly"))
    target = OnnxRuntimeCpu(1)
    for divisor in (1, 2, 4):
        timing = target.time_region(region, tuple(size // divisor for size in region.dense_sizes), QUICK)
        assert 0 <= timing.low_s < 0.1
    assert capfd.readouterr() == ("", "")


def test_a_region_that_cannot_be_resized_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        """Its graph changes with the size."""

        def __init__(self, size: int) -> None:
            super().__init__()
            self.linear = nn.Linear(size, size)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y.exp() if y.shape[1] > 16 else y.tanh()

    def build(sizes: tuple[int, ...]) -> Built:
        return Odd(sizes[0]).eval(), (torch.randn(1, sizes[0]),)

    target = OnnxRuntimeCpu(1)
    exports: list[nn.Module] = []

    def spy(module: nn.Module, inputs: tuple[Tensor, ...]) -> object:
        exports.append(module)
        return direct(module, inputs)

    monkeypatch.setattr("mdp_fx.latency.onnxruntime_cpu.direct", spy)
    region = Region("odd", ("in",), (32,), build)
    assert target.time_region(region, (32,), QUICK).runs >= 3
    assert exports == []
    assert target.time_region(region, (16,), QUICK).runs >= 3
    assert len(exports) == 1


def test_a_region_that_the_runtime_computes_otherwise_is_an_error() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    region = Region("random", (), (), lambda _: (Random(), (torch.randn(1, 8, 4, 4),)))
    with pytest.raises(ModelError, match="disagree on the region random"):
        OnnxRuntimeCpu(1).time_region(region, (), QUICK)


def test_the_neighbours_are_not_charged_to_the_region() -> None:
    module, inputs = conv_region(side=28, dense=(64, 64)).build((64, 64))
    with torch.inference_mode():
        outputs = (module(*inputs),)
    context = in_context(direct(module, inputs), inputs, outputs)
    assert [node.op_type for node in context.model.graph.node] == ["Conv", "Mul", "Conv", "Relu", "Conv"]
    with torch.inference_mode():
        expected = module(*context.inputs).mean(1, keepdim=True).numpy()
    session = onnxruntime.InferenceSession(context.model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, context.feeds)[0], expected, rtol=1e-3, atol=1e-4)


def test_images_are_given_as_they_are() -> None:
    module, inputs = conv_region(dense=(3, 16)).build((3, 16))
    with torch.inference_mode():
        context = in_context(direct(module, inputs), inputs, (module(*inputs),))
    assert context.inputs[0] is inputs[0]


def test_profile_is_read_per_run_and_only_between_the_neighbours() -> None:
    def node(name: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}

    run = [node("mdpfx_x0_nchwc", 100), node("conv_nchwc", 7), node("ReorderInput", 2), node("mdpfx_out0_nchwc", 50)]
    events = [*run, node("ReorderOutput", 9), {"cat": "Session", "name": "model_run", "dur": 200}] * 2
    data = json.dumps(events).encode()
    assert _kernel_seconds(data, 0.0) == pytest.approx([9e-6, 9e-6])
    assert _kernel_seconds(data, 3e-6) == pytest.approx([4e-6, 4e-6])
    with pytest.raises(TargetError, match="profiles without runs"):
        _kernel_seconds(b"[]", 0.0)


def test_a_network_the_runtime_cannot_take_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.latency.onnxruntime_cpu.to_onnx_bytes", lambda *_: b"not onnx")
    with pytest.raises(ModelError, match="does not take the exported network") as caught:
        OnnxRuntimeCpu(1).prepare(nn.Identity(), (torch.zeros(1),))
    assert "\n" not in str(caught.value)


def test_equal_regions_with_other_tensor_names_share_a_key() -> None:
    one = conv_region()

    def build(sizes: tuple[int, ...]) -> Built:
        module, inputs = one.build(sizes)
        return nn.Sequential(module), inputs

    target = OnnxRuntimeCpu(1)
    for region in (one, Region(one.key, one.roles, one.dense_sizes, build), one):
        assert target.time_region(region, (16, 16), QUICK).runs >= 3


def test_the_profiler_costs_microseconds_per_kernel() -> None:
    target = OnnxRuntimeCpu(1)
    overhead = target._profiler_overhead()
    assert 0 <= overhead < 1e-4
    assert target._profiler_overhead() == overhead
