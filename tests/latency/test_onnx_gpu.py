"""Regions as ONNX models, bound to memory and checked: with ONNX Runtime's CPU provider in a GPU's place."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.exporters.onnx_model import to_onnx_bytes
from mdp_fx.latency import Effort
from mdp_fx.latency.cuda import Enqueue
from mdp_fx.latency.onnx_gpu import OnnxGpuTarget
from mdp_fx.latency.onnxruntime_gpu import BoundSession
from mdp_fx.latency.region_onnx import RegionModels
from mdp_fx.latency.targets import RegionSpec
from tests.latency.gpu import WallTimer
from tests.latency.regions import Built, Region, constant_region, conv_region, depthwise_region, token_region

QUICK = Effort(min_runs=3, max_runs=3, warm_up=1)


class InPlace(OnnxGpuTarget):
    """Everything but the device."""

    name = "in place"
    place = "cpu"

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.timer = WallTimer()
        self._models = RegionModels()
        self.loaded: list[bytes] = []
        self.refused = 0

    def runtime(self) -> dict[str, str]:
        return {}

    def load(
        self,
        model: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor] | None = None,
        region: RegionSpec | None = None,
    ) -> Enqueue:
        self.loaded.append(model)
        if self.refused:
            self.refused -= 1
            raise ModelError("refused")
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return BoundSession(session, inputs, outputs)


@pytest.fixture(autouse=True)
def _quick_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.latency.cuda._WINDOW_S", 0.0)
    monkeypatch.setattr("mdp_fx.latency.cuda._NETWORK_WARM_UP_S", (0.0, 0.0))
    monkeypatch.setattr("mdp_fx.latency.cuda._REGION_WARM_UP_S", (0.0, 0.0))


@pytest.mark.parametrize("region", [conv_region(add=True), depthwise_region(), token_region(), constant_region()])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kind_of_region_is_timed_from_one_export(region: Region, dtype: str) -> None:
    target = InPlace(dtype)
    for divisor in (1, 2):
        timing = target.time_region(region, tuple(size // divisor for size in region.dense_sizes), QUICK)
        assert timing.runs == 3
        assert timing.low_s > 0
    templates = target._models._templates
    assert len(templates) == 1
    assert next(iter(templates.values())).exact


def test_what_the_runtime_refuses_is_exported_anew_and_then_an_error() -> None:
    target = InPlace()
    target.refused = 1
    assert target.time_region(conv_region(), (8, 8), QUICK).low_s > 0
    assert len(target.loaded) == 2
    target.refused = 9
    with pytest.raises(ModelError, match=r"^the region conv3 .* does not run on in place in float32: refused$"):
        target.time_region(conv_region(), (8, 8), QUICK)


def test_a_runtime_that_computes_something_else_is_refused() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    def build(_: tuple[int, ...]) -> Built:
        return Random(), (torch.randn(1, 8, 4, 4),)

    with pytest.raises(ModelError, match=r"the region random .*: it computes something else than torch$"):
        InPlace().time_region(Region("random", (), (), build), (), QUICK)


def test_networks_and_onnx_files_run_in_their_own_number_formats() -> None:
    module, inputs = conv_region().build((8, 8))
    target = InPlace("float16")
    runner = target.prepare(module, inputs)
    assert runner() > 0  # type: ignore[operator]
    runner.close()
    assert target.runner(to_onnx_bytes(module, inputs), inputs, "it")() > 0  # type: ignore[operator]
    with pytest.raises(ModelError, match="has 1 inputs instead of 2"):
        target.runner(to_onnx_bytes(module, inputs), (*inputs, *inputs), "it")
    with pytest.raises(ModelError, match="onnxruntime cannot run the model"):
        target.runner(to_onnx_bytes(module, inputs), (torch.zeros(1, 9, 12, 12),), "it")
