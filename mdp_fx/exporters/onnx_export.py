"""A network as one ONNX file, checked in ONNX Runtime against the original."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError, ParityError, first_line
from mdp_fx.exporters.onnx_model import to_onnx_bytes
from mdp_fx.exporters.parity import ParityReport, compare
from mdp_fx.files import atomic_write, check_output
from mdp_fx.graph.modes import eval_mode

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def export_onnx(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    force: bool = False,
) -> ParityReport:
    """Writes a network as ONNX, with its weights inside the file and a dynamic batch axis.

    The file is written only after it passed ONNX's checker and computed the same as the module in ONNX Runtime, for the
    example inputs and for another batch size. A network that cannot take other batch sizes gets a fixed one.

    Args:
        module: the network; exported in eval mode, left in the mode it was in.
        example_inputs: positional inputs of its forward, on its device.
        path: file to write.
        force: overwrite an existing file.

    Returns:
        The largest errors; `dynamic_batch` is false where the batch size is fixed.

    Raises:
        ModelError: the network cannot be exported, or is larger than the 2 GB one ONNX file holds.
        ParityError: ONNX Runtime computes something else.
        OutputError: the file cannot be written, or exists (without `force`).
    """
    check_output(path, force)
    with eval_mode(module), torch.no_grad():
        data, report = _export(module, example_inputs)
    atomic_write(Path(path), lambda file: file.write(data))
    return report


def _export(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[bytes, ParityReport]:
    other = _another_batch(inputs)
    try:
        expected = module(*other)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        expected = None  # the network itself has a fixed batch size
    if expected is not None:
        data = _dynamic_model(module, inputs)
        session = None if data is None else _session(data)
        found = None if session is None else _try_run(session, other)
        if data is not None and session is not None and found is not None:
            report = compare(module(*inputs), _run(session, inputs))
            second = compare(expected, found, f"the exported model, at a batch of {other[0].shape[0]},")
            absolute = max(report.max_abs_error, second.max_abs_error)
            return data, ParityReport(absolute, max(report.max_rel_error, second.max_rel_error))
    data = to_onnx_bytes(module, inputs, dynamic_batch=False)
    report = compare(module(*inputs), _run(_session(data), inputs))
    return data, replace(report, dynamic_batch=False)


def onnx_of_any_batch(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """A network as ONNX, with a dynamic batch axis where it can have one; no runtime has checked it.

    Args:
        module: the network, in eval mode.
        inputs: positional inputs of its forward.

    Raises:
        ModelError: the network cannot be exported, or is larger than the 2 GB one ONNX file holds.
    """
    return _dynamic_model(module, inputs) or to_onnx_bytes(module, inputs)


def _dynamic_model(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes | None:
    """The model with a symbolic batch axis, or None where the exporter finds that the batch is baked in."""
    import onnx

    try:
        data = to_onnx_bytes(module, inputs, dynamic_batch=True)
    except ModelError:
        return None
    first = onnx.load_model_from_string(data).graph.input[0].type.tensor_type.shape.dim[0]
    return data if first.dim_param else None


def _another_batch(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs with one more sample, of other values, on the axes that hold the batch."""
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
    return tuple(
        torch.cat([value, value[:1] / 2 if value.is_floating_point() else value[:1]])
        if value.ndim and value.shape[0] == batch
        else value
        for value in inputs
    )


def _session(data: bytes) -> InferenceSession:
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported model is no valid ONNX: {first_line(error)}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # problems come as exceptions
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise ModelError(f"ONNX Runtime cannot load the exported model: {first_line(error)}") from error


def _run(session: InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(inputs):
        raise ModelError(f"the exported model has {len(names)} inputs instead of {len(inputs)}; drop the unused ones")
    try:
        feed = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]
    except TypeError as error:  # numpy has no bfloat16
        raise ModelError(f"cannot check the exported model: {first_line(error)}; export it in float32") from error
    except _runtime_errors() as error:
        raise ParityError(f"ONNX Runtime cannot run the exported model: {first_line(error)}") from error


def _try_run(session: InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor] | None:
    """Outputs, or None where the model turns out not to take inputs of these shapes."""
    try:
        return _run(session, inputs)
    except ParityError:
        return None


def _runtime_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "NotImplemented",
        "RuntimeException",
        "EPFail",
        "InvalidProtobuf",
    )
    found: list[Any] = [getattr(state, name) for name in names if hasattr(state, name)]
    return (*found, RuntimeError)
