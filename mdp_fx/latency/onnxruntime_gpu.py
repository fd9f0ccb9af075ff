"""Targets onnxruntime:cuda, onnxruntime:tensorrt, onnxruntime:tensorrt-rtx: ONNX Runtime's providers for NVIDIA GPUs.

All run on our stream, with inputs and outputs bound to device memory: copies to and from it do not count, and a run is
enqueued without waiting for it.

What a provider declines, ONNX Runtime runs on the next one and says nothing. So the first run of every model is
profiled, and each node says where it ran: some part of a network must run on the provider that the target is named for.
A region may be declined, as it is in its network; but nothing on the GPU means that nothing can be timed there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import re
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from mdp_fx.errors import ModelError, TargetError, first_line
from mdp_fx.exporters.nvidia import compute_capability, gpu_name
from mdp_fx.latency.cache_folders import cache_folder
from mdp_fx.latency.cuda import Enqueue
from mdp_fx.latency.onnx_gpu import OnnxGpuTarget
from mdp_fx.latency.onnxruntime_sessions import RUNTIME_ERRORS, be_silent, chain_model, session_options
from mdp_fx.latency.targets import RegionSpec

_log = logging.getLogger(__name__)

_PROCESSOR = "CPUExecutionProvider"
_COPIES = ("MemcpyFromHost", "MemcpyToHost")  # between providers: where they run says nothing
_LIBRARIES = Path(ort_state.__file__).parent
_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"

Provider = tuple[str, dict[str, str]]

_REFUSALS: tuple[type[Exception], ...] = (
    RuntimeError,
    ImportError,  # with OSError: a library that another one needs is not there
    OSError,
    *RUNTIME_ERRORS,
)


class _OnnxRuntimeGpu(OnnxGpuTarget):
    """ONNX Runtime with one of its providers for NVIDIA GPUs, default graph optimisations.

    Attributes:
        provider: its name in ONNX Runtime.
        built_in: whether it comes with ONNX Runtime.
    """

    provider: ClassVar[str]
    built_in: ClassVar[bool] = True

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        super().__init__(threads, dtype)
        self._declined: set[str] = set()
        be_silent()
        try:
            self._session(chain_model(1))
        except ModelError as error:
            message = f"target {self.name} does not start here: {self.needs()} ({first_line(error.__cause__)})"
            raise TargetError(message) from error

    @classmethod
    def lacking(cls) -> list[str]:
        lacking = super().lacking()
        if cls.built_in and cls.provider not in onnxruntime.get_available_providers():
            lacking.append(f"an onnxruntime built with {cls.provider} (pip install onnxruntime-gpu in its place)")
        return lacking

    @classmethod
    @abstractmethod
    def needs(cls) -> str:
        """What the provider needs beside a GPU with its driver, and where it is."""

    def runtime(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}

    def load(
        self,
        model: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor] | None = None,
        region: RegionSpec | None = None,
    ) -> Enqueue:
        with tempfile.TemporaryDirectory(prefix="mdp-fx-") as folder:
            session = self._session(model, Path(folder) / "profile")
            enqueue = BoundSession(session, inputs, outputs)
            self.timer.wait()
            self.timer.seconds(enqueue)
            used = providers_used(Path(session.end_profiling()).read_bytes())
        if self.provider in used:
            return enqueue
        others = " and ".join(sorted(used)) or "nothing"
        if region is None or used <= {_PROCESSOR}:
            raise ModelError(f"{self.provider} takes no part of it, {others} runs it")
        if region.key not in self._declined:
            self._declined.add(region.key)
            _log.warning("%s takes no part of the region %s, %s runs it", self.provider, region.key, others)
        return enqueue

    def _session(self, model: bytes, profile: Path | None = None) -> onnxruntime.InferenceSession:
        """A session on the provider; its runs are profiled until it is told to end that.

        Raises:
            ModelError: the model is refused, or the provider does not start.
        """
        try:
            session = self._open(model, session_options(self.threads, profile))
            if self.provider not in session.get_providers():
                # onnxruntime logs why it goes on without a provider, and raises nothing
                raise RuntimeError(f"{self.provider} fell back to {session.get_providers()[0]}")
        except _REFUSALS as error:
            raise ModelError(f"onnxruntime does not take the model: {first_line(error)}") from error
        return session

    @abstractmethod
    def _open(self, model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        """A session on the provider, or on another one where it does not start."""

    @property
    def stream(self) -> int:
        """Handle of the stream to run on."""
        return int(self.timer.stream.cuda_stream)


class OnnxRuntimeCuda(_OnnxRuntimeGpu):
    """ONNX Runtime's CUDA provider: cuDNN and cuBLAS, op by op."""

    name = "onnxruntime:cuda"
    provider = "CUDAExecutionProvider"

    @classmethod
    def needs(cls) -> str:
        return f'it needs CUDA {onnxruntime.cuda_version} with cuDNN 9: pip install "mdp-fx[cuda]"'

    def _open(self, model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(model, options, providers=[cuda_provider(self.stream)], enable_fallback=0)


class OnnxRuntimeTensorRt(_OnnxRuntimeGpu):
    """ONNX Runtime's TensorRT provider, with the CUDA provider for what TensorRT does not take."""

    name = "onnxruntime:tensorrt"
    provider = "TensorrtExecutionProvider"

    @classmethod
    def needs(cls) -> str:
        linked = linked_tensorrt(_LIBRARIES)
        return f'it needs TensorRT {linked}, which this onnxruntime is linked with: pip install "tensorrt=={linked}.*"'

    def runtime(self) -> dict[str, str]:
        return {**super().runtime(), **_tensorrt_version()}

    def _open(self, model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        if importlib.util.find_spec("tensorrt_libs") is not None:
            importlib.import_module("tensorrt_libs")  # loads TensorRT's libraries, for onnxruntime to find
        tensorrt = tensorrt_provider(self.stream, self.dtype, cache_folder("onnxruntime-tensorrt"))
        return onnxruntime.InferenceSession(
            model, options, providers=[tensorrt, cuda_provider(self.stream)], enable_fallback=0
        )


class OnnxRuntimeTensorRtRtx(_OnnxRuntimeGpu):
    """TensorRT for RTX, a plugin provider that its package registers in ONNX Runtime."""

    name = "onnxruntime:tensorrt-rtx"
    provider = "NvTensorRTRTXExecutionProvider"
    built_in = False

    @classmethod
    def lacking(cls) -> list[str]:
        lacking = super().lacking()
        if importlib.util.find_spec(_RTX_PACKAGE) is None:
            lacking.append('its plugin for onnxruntime (pip install "mdp-fx[tensorrt-rtx]")')
        if not hasattr(onnxruntime, "register_execution_provider_library"):
            lacking.append(f"onnxruntime 1.24 or newer (this is {onnxruntime.__version__})")
        return lacking

    @classmethod
    def needs(cls) -> str:
        major, minor = compute_capability()
        return (
            "it needs a driver for CUDA 13 and an RTX GPU (compute 8.6, 8.9, or 12.0 and newer), and "
            f"{gpu_name()} has compute {major}.{minor}"
        )

    def runtime(self) -> dict[str, str]:
        return {**super().runtime(), "tensorrt-rtx": importlib.import_module(_RTX_PACKAGE).__version__}

    def _open(self, model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        devices = _rtx_devices()
        if not devices:
            raise RuntimeError("the plugin supports no GPU of this machine")
        options.add_provider_for_devices(
            devices[:1], rtx_options(self.stream, cache_folder("onnxruntime-tensorrt-rtx"))
        )
        return onnxruntime.InferenceSession(model, options, enable_fallback=0)


def cuda_provider(stream: int) -> Provider:
    """ONNX Runtime's CUDA provider on a stream."""
    return "CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": str(stream)}


def tensorrt_provider(stream: int, dtype: str, folder: Path) -> Provider:
    """ONNX Runtime's TensorRT provider on a stream.

    Args:
        stream: handle of the stream.
        dtype: number format of the model.
        folder: for what it learned about kernels. With that an engine is soon built again: none is kept, for every
            pruning would leave some.
    """
    return "TensorrtExecutionProvider", {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_fp16_enable": str(dtype == "float16"),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }


def rtx_options(stream: int, folder: Path) -> dict[str, str]:
    """Options of the provider TensorRT for RTX on a stream, its compiled kernels kept in `folder`."""
    return {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(stream),
        "nv_runtime_cache_path": str(folder),
    }


def linked_tensorrt(libraries: Path) -> int | None:
    """Major version of the TensorRT that the onnxruntime in a folder is linked with; None where it is not."""
    for library in libraries.glob("*onnxruntime_providers_tensorrt.*"):
        found = re.search(rb"nvinfer(?:\.so\.|_)(\d+)", library.read_bytes())
        if found:
            return int(found.group(1))
    return None


def providers_used(profile: bytes) -> set[str]:
    """The providers on which the kernels in a profile ran."""
    nodes = [event["args"] for event in json.loads(profile) if event.get("cat") == "Node"]
    return {node["provider"] for node in nodes if "provider" in node and node.get("op_name") not in _COPIES}


class BoundSession:
    """A session with its inputs and outputs bound to device memory: call it to enqueue an inference.

    Args:
        session: of one model.
        inputs: one per input, in order; floating-point numbers are cast to what the model reads.
        outputs: one per output, in order; by default onnxruntime allocates them where the inputs are.

    Raises:
        ModelError: another number of them than the model has, or of other types or shapes.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        nodes, results = session.get_inputs(), session.get_outputs()
        if len(nodes) != len(inputs):
            raise ModelError(f"the ONNX model has {len(nodes)} inputs instead of {len(inputs)}")
        if outputs is not None and len(results) != len(outputs):
            raise ModelError(f"the ONNX model has {len(results)} outputs instead of {len(outputs)}")
        self._inputs = [_as_read(value, node.type) for value, node in zip(inputs, nodes, strict=True)]
        self._outputs = outputs
        try:
            for node, value in zip(nodes, self._inputs, strict=True):
                self._binding.bind_input(node.name, *_place(value), *_content(value))
            for index, node in enumerate(results):
                place = _place(self._inputs[0])
                self._binding.bind_output(node.name, *place, *(() if outputs is None else _content(outputs[index])))
        except _REFUSALS as error:
            raise ModelError(f"onnxruntime does not take these inputs: {first_line(error)}") from error

    def __call__(self) -> None:
        """Enqueues an inference.

        Raises:
            ModelError: onnxruntime refuses.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except _REFUSALS as error:
            raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def _as_read(value: Tensor, kind: str) -> Tensor:
    """A tensor as an input of type `kind` ("tensor(float16)", say) takes it."""
    kinds = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bfloat16)": torch.bfloat16}
    return (value.to(kinds[kind]) if value.is_floating_point() and kind in kinds else value).contiguous()


def _place(value: Tensor) -> tuple[str, int]:
    return value.device.type, value.device.index or 0


def _content(value: Tensor) -> tuple[int, tuple[int, ...], int]:
    return int(from_torch_dtype(value.dtype)), tuple(value.shape), value.data_ptr()


def _tensorrt_version() -> dict[str, str]:
    """Version of the installed package where it is what onnxruntime is linked with, else the library's major one."""
    linked = str(linked_tensorrt(_LIBRARIES))
    try:
        installed = metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return {"nvinfer": linked}
    return {"tensorrt": installed} if installed.split(".")[0] == linked else {"nvinfer": linked}


@cache
def _rtx_devices() -> list[Any]:
    """GPUs that the plugin for TensorRT for RTX supports, after registering it."""
    plugin = importlib.import_module(_RTX_PACKAGE)
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == plugin.get_ep_name()]
