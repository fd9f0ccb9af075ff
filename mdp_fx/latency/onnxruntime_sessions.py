"""What the targets that run ONNX Runtime share, whichever of its providers they run."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state  # type: ignore[import-untyped, unused-ignore]

_SILENT = 4  # severity "fatal": errors come as exceptions, a second time on stderr helps nobody

RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    value for value in vars(ort_state).values() if isinstance(value, type) and issubclass(value, Exception)
)
"""What it raises itself."""


def be_silent() -> None:
    """Nothing on stderr, nothing to its makers."""
    onnxruntime.set_default_logger_severity(_SILENT)
    onnxruntime.disable_telemetry_events()


def session_options(threads: int, profile: Path | None = None) -> onnxruntime.SessionOptions:
    """Options of a session.

    Args:
        threads: for the kernels on the processor.
        profile: where a profile is to be written, the beginning of its path; None for none.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def chain_model(length: int) -> bytes:
    """A model of `length` kernels in a row on a single number, from "x0" on."""
    number = (onnx.TensorProto.FLOAT, [1])
    nodes = [
        onnx.helper.make_node("Neg" if index % 2 else "Abs", [f"x{index}"], [f"x{index + 1}"])
        for index in range(length)
    ]
    first, last = (onnx.helper.make_tensor_value_info(name, *number) for name in ("x0", f"x{length}"))
    graph = onnx.helper.make_graph(nodes, "chain", [first], [last])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data
