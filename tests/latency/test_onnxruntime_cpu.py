from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError, TargetError
from mdp_fx.latency import Effort
from mdp_fx.latency.onnxruntime_cpu import OnnxRuntimeCpu, _kernel_seconds
from mdp_fx.latency.region_onnx import direct

from .regions import (
    Built,
    Region,
    constant_region,
    conv_region,
    depthwise_region,
    token_region,
)

QUICK = Effort(min_runs=3, max_runs=4, warm_up=1)


@pytest.mark.parametrize("region", [conv_region(add=True), depthwise_region(), token_region(), constant_region()])
def test_every_kind_of_region_is_timed_without_further_exports(
    region: Region, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mdp_fx.latency.region_onnx.direct", lambda *_: pytest.fail("exported directly"))
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

    monkeypatch.setattr("mdp_fx.latency.region_onnx.direct", spy)
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


def test_profile_is_read_per_run_and_only_between_the_neighbours() -> None:
    def node(name: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}

    run = [node("mdpfx_x0_nchwc", 100), node("conv_nchwc", 7), node("ReorderInput", 2), node("mdpfx_out0_nchwc", 50)]
    events = [*run, node("ReorderOutput", 9), {"cat": "Session", "name": "model_run", "dur": 200}] * 2
    data = json.dumps(events).encode()
    assert _kernel_seconds(data, 0.0) == pytest.approx([9e-6, 9e-6])
    assert _kernel_seconds(data, 3e-6) == pytest.approx([3e-6, 3e-6])
    assert _kernel_seconds(data, 5e-6) == [0.0, 0.0]
    with pytest.raises(TargetError, match="profiles without runs"):
        _kernel_seconds(b"[]", 0.0)


def test_what_comes_after_the_first_of_several_outputs_counts() -> None:
    names = ["conv_nchwc", "mdpfx_out1_nchwc", "ReorderOutput_token_1", "ReorderOutput", "linear", "mdpfx_out0"]
    events = [{"name": f"{name}_kernel_time", "dur": 10**index} for index, name in enumerate(names)]
    # Here the last neighbour speaks no blocked layout: the kernel that follows it is the region's.
    events += [{"name": "ReorderOutput_kernel_time", "dur": 10 ** len(names)}, {"name": "model_run", "dur": 1}]
    assert _kernel_seconds(json.dumps(events).encode(), 0.0) == pytest.approx([1.011001])


def test_a_region_of_two_outputs_is_timed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(16, 16, 1)
            self.second = nn.Conv2d(16, 256, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x).relu()
            return self.second(y), y

    profiles: list[bytes] = []

    def spy(profile: bytes, overhead_s: float) -> list[float]:
        profiles.append(profile)
        return _kernel_seconds(profile, overhead_s)

    target = OnnxRuntimeCpu(1)
    target._overhead_s = 0.0
    monkeypatch.setattr("mdp_fx.latency.onnxruntime_cpu._kernel_seconds", spy)
    region = Region("two", (), (), lambda _: (Two().eval(), (torch.randn(1, 16, 14, 14),)))
    timing = target.time_region(region, (), QUICK)
    nodes = [event for event in json.loads(profiles[0]) if event["cat"] == "Node"]
    convolutions = [node["dur"] for node in nodes if node["name"].startswith(("conv2d", "relu"))]
    assert len(convolutions) % 2 == 0
    assert timing.median_s > 0.5e-6 * float(np.median(convolutions[::2])) + 0.5e-6 * float(
        np.median(convolutions[1::2])
    )
    kinds = [(node["args"]["op_name"], node["name"]) for node in nodes]
    for before, after in itertools.pairwise(kinds):
        if before[1].startswith("mdpfx_out") and "_nchwc" in before[1]:
            assert after[0] == "ReorderOutput"
            assert after[1].startswith("ReorderOutput")


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
    assert 0.2e-6 < overhead < 10e-6
    assert target._profiler_overhead() == overhead
