"""What the target tensorrt asks TensorRT for; tests/latency/test_on_gpu.py runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from mdp_fx.latency import tensorrt_target
from mdp_fx.latency.cuda import CudaRunner
from mdp_fx.latency.tensorrt_target import TensorRt
from tests.latency.gpu import WallTimer, unstarted


class NoEngine:
    """An engine that does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def enqueue(self) -> None:
        pass


def test_networks_are_built_for_their_shapes_as_regions_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path))
    monkeypatch.setattr("mdp_fx.latency.cuda._NETWORK_WARM_UP_S", (0.0, 0.0))
    built: list[tuple[bytes, list[tuple[int, ...]], dict[str, bool]]] = []

    def build(model: bytes, shapes: Sequence[tuple[int, ...]], _: Path, **options: bool) -> bytes:
        built.append((model, list(shapes), options))
        return b""

    monkeypatch.setattr(tensorrt_target, "build_engine", build)
    monkeypatch.setattr(tensorrt_target, "Engine", NoEngine)
    monkeypatch.setattr(TensorRt, "place", "cpu")
    target = unstarted("tensorrt")
    target.timer = WallTimer()
    assert isinstance(target.prepare(nn.ReLU(), (torch.zeros(2, 3, 4, 4),)), CudaRunner)
    ((model, shapes, options),) = built
    dimensions = onnx.load_model_from_string(model).graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in dimensions] == [2, 3, 4, 4]
    assert (shapes, options) == ([(2, 3, 4, 4)], {})
