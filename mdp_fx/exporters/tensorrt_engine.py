"""A network as a TensorRT engine, built from ONNX through TensorRT's Python API.

Networks are strongly typed: an engine computes in the number formats that its ONNX graph is written in. TensorRT 11
knows no other way, and 10.3, the last one for a Titan V, knows this one: one path serves both.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError, TargetError, first_line
from mdp_fx.exporters.nvidia import gpu_name, missing_gpu
from mdp_fx.exporters.onnx_export import onnx_of_any_batch
from mdp_fx.exporters.onnx_model import ONNX_DTYPES
from mdp_fx.exporters.parity import compare
from mdp_fx.files import atomic_write, check_output
from mdp_fx.graph.casting import cast_network
from mdp_fx.graph.modes import eval_mode

if TYPE_CHECKING:
    import tensorrt as trt

# TensorRT multiplies float32 in TF32 where the GPU can, which rounds as half precision does.
_ALLOWED_ERROR = 1e-2
_FORMATS = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's names of TensorRT's number formats; it packs those of four bits (INT4, FP4) in pairs, as torch does not."""


@dataclass(frozen=True)
class EngineLayer:
    """What TensorRT made of a part of the network.

    Attributes:
        name: the operations in it.
        kind: of layer.
        output: memory format and number format of its first output.
        tactic: the kernel that was the fastest.
    """

    name: str
    kind: str = ""
    output: str = ""
    tactic: str = ""


@dataclass(frozen=True)
class EngineReport:
    """What was built, and how far it is from torch.

    Attributes:
        tensorrt: version that built it, the only one that loads it.
        device: GPU that it was built on, and for.
        dtype: its number format.
        batch: batch that it is fastest at, and the largest that it takes.
        dynamic_batch: whether it takes smaller ones.
        max_abs_error: largest absolute difference of two entries.
        max_rel_error: largest absolute difference, divided by the largest magnitude in the same output.
        layers: what it consists of, in order.
    """

    tensorrt: str
    device: str
    dtype: str
    batch: int
    dynamic_batch: bool
    max_abs_error: float
    max_rel_error: float
    layers: tuple[EngineLayer, ...]


def missing_tensorrt() -> list[str]:
    """What building and running engines needs that is not here, and how to come by it; empty where nothing."""
    found = importlib.util.find_spec("tensorrt") is not None
    return [*missing_gpu(), *([] if found else ['the package tensorrt (pip install "mdp-fx[tensorrt]")'])]


def export_tensorrt(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    timing_cache: Path | None = None,
    force: bool = False,
) -> EngineReport:
    """Writes a network as a TensorRT engine for this machine's GPU, checked against torch on it.

    Args:
        module: the network; exported in eval mode, left as it is.
        example_inputs: positional inputs of its forward; axis 0 is the batch to be fast at, and the largest one.
        path: file to write.
        dtype: number format of the engine, one of `ONNX_DTYPES`.
        timing_cache: folder where TensorRT keeps what it learned about kernels, for the next engine.
        force: overwrite an existing file.

    Raises:
        TargetError: TensorRT or a GPU is missing, or `dtype` is none that can be exported.
        ModelError: torch cannot export the network, or TensorRT does not take it.
        ParityError: the engine computes something else than the network.
        OutputError: the file cannot be written, or exists (without `force`).
    """
    check_output(path, force)
    if dtype not in ONNX_DTYPES:
        raise TargetError(f"cannot export to TensorRT in {dtype}; it can be {' or '.join(ONNX_DTYPES)}")
    lacking = missing_tensorrt()
    if lacking:
        raise TargetError(f"export to TensorRT needs {' and '.join(lacking)}")
    with eval_mode(module), torch.no_grad():
        model = onnx_of_any_batch(*cast_network(module, example_inputs, dtype))
        shapes = [tuple(value.shape) for value in example_inputs]
        plan = build_engine(model, shapes, timing_cache, smaller_batches=True)
        try:
            network, inputs = cast_network(module, example_inputs, dtype, "cuda")
            expected = network(*inputs)
        except RuntimeError as error:
            raise ModelError(f"torch cannot run the network on {gpu_name()} in {dtype}: {first_line(error)}") from error
        engine = Engine(plan, inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            engine.enqueue()
        stream.synchronize()
        parity = compare(expected, engine.outputs, "the engine", _ALLOWED_ERROR)
    atomic_write(path, lambda file: file.write(plan))
    return EngineReport(
        tensorrt=load_tensorrt().__version__,
        device=gpu_name(),
        dtype=dtype,
        batch=example_inputs[0].shape[0],
        dynamic_batch=engine.dynamic_batch,
        max_abs_error=parity.max_abs_error,
        max_rel_error=parity.max_rel_error,
        layers=engine.layers(),
    )


def load_tensorrt() -> Any:
    """The module tensorrt.

    Raises:
        TargetError: it cannot be imported.
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        message = f'TensorRT cannot be imported ({first_line(error)}): pip install "mdp-fx[tensorrt]"'
        raise TargetError(message) from error


def build_engine(
    model: bytes,
    shapes: Sequence[tuple[int, ...]],
    timing_cache: Path | None = None,
    *,
    smaller_batches: bool = False,
) -> bytes:
    """Builds an engine from ONNX, for this machine's GPU.

    Args:
        model: the ONNX file's content, written in the number format that the engine is to have.
        shapes: of the inputs, in order, for which the engine is tuned; dynamic axes are fixed to them.
        timing_cache: folder where TensorRT keeps what it learned about kernels, for the next engine.
        smaller_batches: a dynamic batch may be any from 1 to the one in `shapes`. That can take other kernels.

    Raises:
        TargetError: TensorRT is missing.
        ModelError: TensorRT does not take the model.
    """
    trt = load_tensorrt()
    log = _make_log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _refusal("does not take the network", reasons)
    if network.num_inputs != len(shapes):
        raise ModelError(f"the ONNX model has {network.num_inputs} inputs instead of {len(shapes)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    dynamic = False
    for index, shape in enumerate(shapes):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            smallest = _smallest(tuple(tensor.shape), shape) if smaller_batches else shape
            profile.set_shape(tensor.name, smallest, shape, shape)
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)
    cache_file = None if timing_cache is None else timing_cache / _cache_name(trt.__version__, gpu_name())
    _use_timing_cache(config, cache_file)
    log.errors.clear()  # a cache of other kernels is rejected as an error, and does no harm
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal("cannot build an engine", log.errors)
    if cache_file is not None:
        _keep_timing_cache(config, cache_file)
    return bytes(plan)


class Engine:
    """An engine on the GPU with its inputs and outputs bound: `enqueue` it as often as wanted.

    Attributes:
        inputs: what it reads, in device memory and the engine's number formats.
        outputs: what it writes, in order.
        dynamic_batch: whether it takes several batch sizes.
    """

    def __init__(self, plan: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> None:
        """Loads an engine.

        Args:
            plan: the engine's file content.
            inputs: example inputs, in order.
            outputs: where the results go, in order, in device memory; by default new tensors.

        Raises:
            TargetError: TensorRT is missing.
            ModelError: no engine of this TensorRT and GPU, or not one for these inputs and outputs.
        """
        trt = load_tensorrt()
        self._log = _make_log()
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise _refusal("cannot load the engine", self._log.errors)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise _refusal("has no memory to run the engine", self._log.errors)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        reads = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(reads) != len(inputs):
            raise ModelError(f"the engine has {len(reads)} inputs instead of {len(inputs)}")
        self.dynamic_batch = any(tuple(self._engine.get_tensor_shape(name))[:1] == (-1,) for name in reads)
        self.inputs = tuple(
            value.to("cuda", self._format(name)).contiguous() for name, value in zip(reads, inputs, strict=True)
        )
        for name, value in zip(reads, self.inputs, strict=True):
            if not self._context.set_input_shape(name, tuple(value.shape)):
                wanted = "x".join(map(str, self._engine.get_tensor_shape(name)))
                raise ModelError(f"the engine takes inputs of shape {wanted}, not {'x'.join(map(str, value.shape))}")
        writes = [name for name in names if name not in reads]
        shapes = [tuple(self._context.get_tensor_shape(name)) for name in writes]
        if any(-1 in shape for shape in shapes):
            raise ModelError("the shapes of the engine's outputs depend on what is in its inputs: it cannot be timed")
        kinds = [self._format(name) for name in writes]
        if outputs is None:
            outputs = [torch.empty(shape, dtype=kind, device="cuda") for shape, kind in zip(shapes, kinds, strict=True)]
        if [(tuple(value.shape), value.dtype) for value in outputs] != list(zip(shapes, kinds, strict=True)):
            raise ModelError(f"the engine's outputs are of shapes {shapes}")
        self.outputs = tuple(outputs)
        for name, value in zip([*reads, *writes], [*self.inputs, *self.outputs], strict=True):
            self._context.set_tensor_address(name, value.data_ptr())

    def _format(self, name: str) -> torch.dtype:
        kind: str = self._engine.get_tensor_dtype(name).name
        if kind not in _FORMATS:
            raise ModelError(f"the engine has {name!r} in {kind}, which torch has no numbers of: it cannot be run here")
        return _FORMATS[kind]

    def enqueue(self) -> None:
        """Enqueues one inference on torch's current stream.

        Raises:
            ModelError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise _refusal("cannot run the engine", self._log.errors)

    def layers(self) -> tuple[EngineLayer, ...]:
        """What the engine consists of, in order."""
        trt = load_tensorrt()
        inspector = self._engine.create_engine_inspector()
        return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the engine inspector's JSON; engines built elsewhere may tell names alone."""
    layers: list[EngineLayer] = []
    for entry in json.loads(text)["Layers"]:
        if isinstance(entry, str):
            layers.append(EngineLayer(entry))
            continue
        outputs = entry.get("Outputs") or [{}]
        output = outputs[0].get("Format/Datatype", "")
        layers.append(EngineLayer(entry["Name"], entry.get("LayerType", ""), output, entry.get("TacticName", "")))
    return tuple(layers)


def _use_timing_cache(config: trt.IBuilderConfig, file: Path | None) -> None:
    """Gives the builder what is known of kernels; what does not fit this GPU and version it rejects: then nothing."""
    known = file.read_bytes() if file is not None and file.is_file() else b""
    for data in dict.fromkeys((known, b"")):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _keep_timing_cache(config: trt.IBuilderConfig, file: Path) -> None:
    """Adds what was learned to what others have written in the meantime."""
    learned = config.get_timing_cache()
    known = config.create_timing_cache(file.read_bytes()) if file.is_file() else None
    cache = known if known is not None and known.combine(learned, False) else learned
    data = bytes(cache.serialize())
    atomic_write(file, lambda stream: stream.write(data))


def _cache_name(version: str, gpu: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"tensorrt-{version}-{gpu}.timing")


def _smallest(known: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest shape to take: a batch of one where the batch is dynamic."""
    return (1, *shape[1:]) if known[0] < 0 else shape


def _make_log() -> Any:
    """A logger that prints nothing and keeps the errors."""
    trt = load_tensorrt()

    class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Log()


def _refusal(what: str, reasons: Sequence[str]) -> ModelError:
    reason = reasons[-1].strip() if reasons else "it does not say why"
    return ModelError(f"TensorRT {what}: {' '.join(reason.split())[:200]}")
