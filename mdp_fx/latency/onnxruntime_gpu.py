"""Targets onnxruntime:cuda, onnxruntime:tensorrt, onnxruntime:tensorrt-rtx: ONNX Runtime's providers for NVIDIA GPUs.

All run on our stream, with inputs and outputs bound to device memory: copies to and from it do not count, and a run is
enqueued without waiting for it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import onnx
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

_SILENT = 4  # severity "fatal": errors come as exceptions, a second time on stderr helps nobody
_LIBRARIES = Path(ort_state.__file__).parent
_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"

Provider = tuple[str, dict[str, str]]

_REFUSALS: tuple[type[Exception], ...] = (
    RuntimeError,
    ImportError,  # with OSError: a library that another one needs is not there
    OSError,
    *(value for value in vars(ort_state).values() if isinstance(value, type) and issubclass(value, Exception)),
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
        onnxruntime.set_default_logger_severity(_SILENT)
        onnxruntime.disable_telemetry_events()
        try:
            self._session(_smallest_model())
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

    def runtime(self) -> list[str]:
        return [f"onnxruntime {onnxruntime.__version__}"]

    def load(
        self, model: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None, *, keep: bool = False
    ) -> Enqueue:
        return BoundSession(self._session(model, keep), inputs, outputs)

    def _session(self, model: bytes, keep: bool = False) -> onnxruntime.InferenceSession:
        """A session on the provider.

        Raises:
            ModelError: the model is refused, or the provider does not start.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = _SILENT
        try:
            session = self._open(model, options, keep)
            if self.provider not in session.get_providers():
                # onnxruntime logs why it goes on without a provider, and raises nothing
                raise RuntimeError(f"{self.provider} fell back to {session.get_providers()[0]}")
        except _REFUSALS as error:
            raise ModelError(f"onnxruntime does not take the model: {first_line(error)}") from error
        return session

    @abstractmethod
    def _open(self, model: bytes, options: onnxruntime.SessionOptions, keep: bool) -> onnxruntime.InferenceSession:
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

    def _open(self, model: bytes, options: onnxruntime.SessionOptions, keep: bool) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(model, options, providers=[cuda_provider(self.stream)], enable_fallback=0)


class OnnxRuntimeTensorRt(_OnnxRuntimeGpu):
    """ONNX Runtime's TensorRT provider, with the CUDA provider for what TensorRT does not take."""

    name = "onnxruntime:tensorrt"
    provider = "TensorrtExecutionProvider"

    @classmethod
    def needs(cls) -> str:
        linked = linked_tensorrt(_LIBRARIES)
        return f'it needs TensorRT {linked}, which this onnxruntime is linked with: pip install "tensorrt=={linked}.*"'

    def runtime(self) -> list[str]:
        return [*super().runtime(), f"tensorrt {_tensorrt_version()}"]

    def _open(self, model: bytes, options: onnxruntime.SessionOptions, keep: bool) -> onnxruntime.InferenceSession:
        if importlib.util.find_spec("tensorrt_libs") is not None:
            importlib.import_module("tensorrt_libs")  # loads TensorRT's libraries, for onnxruntime to find
        tensorrt = tensorrt_provider(
            self.stream, self.dtype, cache_folder("onnxruntime-tensorrt"), model if keep else None
        )
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

    def runtime(self) -> list[str]:
        return [*super().runtime(), f"tensorrt-rtx plugin {importlib.import_module(_RTX_PACKAGE).__version__}"]

    def _open(self, model: bytes, options: onnxruntime.SessionOptions, keep: bool) -> onnxruntime.InferenceSession:
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


def tensorrt_provider(stream: int, dtype: str, folder: Path, kept: bytes | None) -> Provider:
    """ONNX Runtime's TensorRT provider on a stream.

    Args:
        stream: handle of the stream.
        dtype: number format of the model.
        folder: for its caches: what it learned about kernels, and engines.
        kept: the model whose engines are to be kept, None for none. They are kept under its content's hash:
            onnxruntime itself tells models apart by names in them, which one network shares with its slim versions.
    """
    options = {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_fp16_enable": str(dtype == "float16"),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }
    if kept is not None:
        options["trt_engine_cache_enable"] = "True"
        options["trt_engine_cache_path"] = str(folder)
        options["trt_engine_cache_prefix"] = hashlib.sha256(kept).hexdigest()[:16]
    return "TensorrtExecutionProvider", options


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


def _tensorrt_version() -> str:
    """Version of the installed package where it is the one that onnxruntime is linked with, else the major one."""
    linked = str(linked_tensorrt(_LIBRARIES))
    try:
        installed = metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return linked
    return installed if installed.split(".")[0] == linked else linked


@cache
def _rtx_devices() -> list[Any]:
    """GPUs that the plugin for TensorRT for RTX supports, after registering it."""
    plugin = importlib.import_module(_RTX_PACKAGE)
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == plugin.get_ep_name()]


def _smallest_model() -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "smallest", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data
