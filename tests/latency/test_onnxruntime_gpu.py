"""Providers of ONNX Runtime for NVIDIA GPUs: what they are asked, and what is said where they do not start."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state  # type: ignore[import-untyped, unused-ignore]

from mdp_fx.errors import ModelError
from mdp_fx.exporters.onnx_model import to_onnx_bytes
from mdp_fx.latency import onnxruntime_gpu
from mdp_fx.latency.onnxruntime_gpu import (
    BoundSession,
    OnnxRuntimeCuda,
    OnnxRuntimeTensorRt,
    OnnxRuntimeTensorRtRtx,
    Provider,
    cuda_provider,
    linked_tensorrt,
    providers_used,
    tensorrt_provider,
)
from tests.latency.gpu import WallTimer, unstarted
from tests.latency.regions import conv_region

LIBRARIES = Path(ort_state.__file__).parent
needs_gpu_build = pytest.mark.skipif(
    "TensorrtExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no GPU part"
)


class Spy:
    """What sessions are made of, in the place of sessions."""

    def __init__(self) -> None:
        self.providers: list[Provider] = []

    def __call__(self, _: bytes, __: object, *, providers: list[Provider], **___: object) -> Spy:
        self.providers = providers
        return self


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sessions_run_on_the_timers_stream(
    dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path))
    spy = Spy()
    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    orders = {
        "onnxruntime:cuda": ["CUDAExecutionProvider"],
        "onnxruntime:tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
    }
    for name, order in orders.items():
        target = unstarted(name, dtype)
        assert isinstance(target, OnnxRuntimeCuda | OnnxRuntimeTensorRt)
        target.timer = SimpleNamespace(stream=SimpleNamespace(cuda_stream=77))  # type: ignore[assignment]
        target._open(b"", onnxruntime.SessionOptions())
        assert [provider for provider, _ in spy.providers] == order
        assert {options["user_compute_stream"] for _, options in spy.providers} == {"77"}
    assert spy.providers[0][1]["trt_fp16_enable"] == str(dtype == "float16")
    folder = Path(spy.providers[0][1]["trt_timing_cache_path"])
    assert tmp_path in folder.parents
    assert folder.is_dir()
    assert capfd.readouterr() == ("", "")


class Registered(onnxruntime.InferenceSession):  # type: ignore[misc, unused-ignore]
    """A session whose first provider has started, and declines everything."""

    def get_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", *super().get_providers()]


class Declining(OnnxRuntimeTensorRt):
    """The target onnxruntime:tensorrt on a processor."""

    def __init__(self) -> None:
        self.threads = 1
        self.timer = WallTimer()
        self._declined: set[str] = set()

    def _open(self, model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        return Registered(model, options, providers=["CPUExecutionProvider"])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user is told; torch notes its own steps there."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("mdp_fx")]


def test_a_provider_that_takes_nothing_of_a_model_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    region = conv_region()
    module, inputs = region.build((8, 8))
    model = to_onnx_bytes(module, inputs)
    target = Declining()
    wanted = r"^TensorrtExecutionProvider takes no part of it, CPUExecutionProvider runs it$"
    for of in (None, region):
        with pytest.raises(ModelError, match=wanted):
            target.load(model, inputs, region=of)
    assert not said(caplog)


def test_a_region_may_run_on_the_gpus_other_provider_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    region = conv_region()
    module, inputs = region.build((8, 8))
    model = to_onnx_bytes(module, inputs)
    target = Declining()
    monkeypatch.setattr(onnxruntime_gpu, "providers_used", lambda _: {"CUDAExecutionProvider"})
    with pytest.raises(ModelError, match="CUDAExecutionProvider runs it"):
        target.load(model, inputs)
    for _ in range(2):
        target.load(model, inputs, region=region)()
    wanted = f"TensorrtExecutionProvider takes no part of the region {region.key}, CUDAExecutionProvider runs it"
    assert said(caplog) == [wanted]
    monkeypatch.setattr(onnxruntime_gpu, "providers_used", lambda _: {"TensorrtExecutionProvider"})
    target.load(model, inputs)()


def test_copies_between_providers_are_no_part_of_a_model() -> None:
    def node(op: str, provider: str) -> dict[str, object]:
        return {"cat": "Node", "name": f"{op}_kernel_time", "args": {"op_name": op, "provider": provider}}

    events = [{"cat": "Session", "name": "model_run"}, node("MemcpyToHost", "CUDAExecutionProvider")]
    events += [node("Conv", "CPUExecutionProvider")]
    assert providers_used(json.dumps(events).encode()) == {"CPUExecutionProvider"}


@needs_gpu_build
def test_onnxruntime_knows_every_option() -> None:
    known = b"".join(path.read_bytes() for path in LIBRARIES.glob("*onnxruntime_pybind11_state*"))
    known += b"".join(path.read_bytes() for path in LIBRARIES.glob("libonnxruntime.so*"))
    for _, options in (cuda_provider(1), tensorrt_provider(1, "float32", Path("c"))):
        for key in options:
            assert key.encode() + b"\0" in known, key
    assert b"disable_synchronize_execution_providers\0" in known
    assert b"trt_no_such_option\0" not in known


@needs_gpu_build
def test_the_linked_tensorrt_is_read_from_the_library() -> None:
    linked = linked_tensorrt(LIBRARIES)
    assert linked is not None
    assert linked >= 10
    text = OnnxRuntimeTensorRt.needs()
    assert text.startswith(f"it needs TensorRT {linked}, ")
    assert f'pip install "tensorrt=={linked}.*"' in text


def test_other_names_of_the_library_are_read_too(tmp_path: Path) -> None:
    assert linked_tensorrt(tmp_path) is None
    (tmp_path / "onnxruntime_providers_tensorrt.dll").write_bytes(b"..nvinfer_11.dll..")
    assert linked_tensorrt(tmp_path) == 11


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.latency.cuda.missing_gpu", list)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert OnnxRuntimeCuda.missing() == (
        "target onnxruntime:cuda needs an onnxruntime built with CUDAExecutionProvider "
        "(pip install onnxruntime-gpu in its place)"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert OnnxRuntimeTensorRtRtx.missing() == (
        'target onnxruntime:tensorrt-rtx needs its plugin for onnxruntime (pip install "mdp-fx[tensorrt-rtx]")'
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert OnnxRuntimeTensorRtRtx.missing() is None


def test_the_plugins_needs_name_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_gpu, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(onnxruntime_gpu, "gpu_name", lambda: "NVIDIA H200")
    assert OnnxRuntimeTensorRtRtx.needs().endswith("and NVIDIA H200 has compute 9.0")


@pytest.mark.parametrize("given", [True, False])
def test_inputs_and_outputs_are_bound_to_memory(given: bool) -> None:
    module, inputs = conv_region().build((8, 8))
    session = onnxruntime.InferenceSession(to_onnx_bytes(module, inputs), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = module(*inputs)
    found = torch.empty(expected.shape)
    bound = BoundSession(
        session, [inputs[0].double().transpose(2, 3).contiguous().transpose(2, 3)], [found] if given else None
    )
    bound()
    if not given:
        found = torch.from_numpy(bound._binding.copy_outputs_to_cpu()[0])
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_a_model_is_one_line() -> None:
    module, inputs = conv_region().build((8, 8))
    session = onnxruntime.InferenceSession(to_onnx_bytes(module, inputs), providers=["CPUExecutionProvider"])
    with pytest.raises(ModelError, match="has 1 inputs instead of 0"):
        BoundSession(session, [])
    with pytest.raises(ModelError, match="has 1 outputs instead of 2"):
        BoundSession(session, inputs, [torch.empty(1, 8, 12, 12)] * 2)
    with pytest.raises(ModelError, match="onnxruntime cannot run the model"):
        BoundSession(session, [torch.zeros(1, 8, 12, 12, dtype=torch.int64)])()
    with pytest.raises(ModelError, match="onnxruntime cannot run the model") as caught:
        BoundSession(session, inputs, [torch.empty(1, 9, 12, 12)])()
    assert "\n" not in str(caught.value)
