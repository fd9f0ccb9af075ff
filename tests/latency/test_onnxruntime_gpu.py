"""Providers of ONNX Runtime for NVIDIA GPUs: what they are asked, and what is said where they do not start."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
    cuda_provider,
    linked_tensorrt,
    rtx_options,
    tensorrt_provider,
)
from tests.latency.regions import conv_region

LIBRARIES = Path(ort_state.__file__).parent
needs_gpu_build = pytest.mark.skipif(
    "TensorrtExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no GPU part"
)


def test_all_run_on_the_stream() -> None:
    assert cuda_provider(77) == ("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": "77"})
    assert tensorrt_provider(77, "float32", Path("c"), None)[1]["user_compute_stream"] == "77"
    options = rtx_options(77, Path("c"))
    assert (options["has_user_compute_stream"], options["user_compute_stream"]) == ("1", "77")


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", "False"), ("float16", "True")])
def test_tensorrt_may_use_the_number_format(dtype: str, allowed: str) -> None:
    name, options = tensorrt_provider(1, dtype, Path("c"), None)
    assert name == "TensorrtExecutionProvider"
    assert options["trt_fp16_enable"] == allowed


def test_engines_of_networks_are_kept_by_content_and_those_of_regions_are_not() -> None:
    one, two, none = (tensorrt_provider(1, "float32", Path("c"), kept)[1] for kept in (b"1", b"2", None))
    assert one["trt_engine_cache_path"] == one["trt_timing_cache_path"] == "c"
    assert one["trt_engine_cache_prefix"] != two["trt_engine_cache_prefix"]
    assert none["trt_timing_cache_enable"] == "True"
    assert not [key for key in none if key.startswith("trt_engine")]


@needs_gpu_build
def test_onnxruntime_knows_every_option() -> None:
    known = b"".join(path.read_bytes() for path in LIBRARIES.glob("*onnxruntime_pybind11_state*"))
    known += b"".join(path.read_bytes() for path in LIBRARIES.glob("libonnxruntime.so*"))
    for _, options in (cuda_provider(1), tensorrt_provider(1, "float32", Path("c"), b"")):
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
