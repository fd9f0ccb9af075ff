"""Inputs for an ONNX file, made up from its own signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mdp_fx.errors import InputError, ModelError, first_line
from mdp_fx.files import reading

if TYPE_CHECKING:
    import onnx

_TYPES = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


def onnx_inputs(path: Path, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Random inputs of the shapes and types that an ONNX file asks for, the same in every call.

    Sizes that the file leaves open are those of the input of `like` at the same place, if it has as many axes; else
    axis 0 is the batch of `like`, and others are 1. One name is one size. Numbers are normal, bytes cover their range,
    and larger whole numbers are zero: they may be positions.

    Args:
        path: the file.
        like: inputs of the networks that it is compared with; axis 0 is the batch.

    Raises:
        ModelError: it cannot be read, or is no ONNX model, or asks for something that cannot be made up.
        InputError: there is not enough memory for them.
    """
    graph = _read(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    wanted = [value for value in graph.input if value.name not in stored]
    generator = torch.Generator().manual_seed(0)
    named: dict[str, int] = {}
    made: list[Tensor] = []
    for i, value in enumerate(wanted):
        shape = _shape(value, like[i] if i < len(like) else None, int(like[0].shape[0]) if like else 1, named, path)
        try:
            made.append(_random(shape, _type(value, path), generator))
        except RuntimeError as error:
            text = "x".join(map(str, shape))
            raise InputError(f"no memory for input {value.name} of {path}, of shape {text}") from error
    return tuple(made)


def _read(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

    if path.is_dir():
        raise ModelError(f"{path} is a folder; name a file in it")
    try:
        with reading(path, ModelError):
            model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or is damaged ({first_line(error)})") from error
    if not model.graph.output:
        raise ModelError(f"{path} is not an ONNX model, or is empty")
    return model


def _shape(
    value: onnx.ValueInfoProto, like: Tensor | None, batch: int, named: dict[str, int], path: Path
) -> tuple[int, ...]:
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        raise ModelError(f"input {value.name} of {path} is no tensor of a known rank: it cannot be made up")
    axes = value.type.tensor_type.shape.dim
    fits = like is not None and like.ndim == len(axes)
    shape: list[int] = []
    for i, axis in enumerate(axes):
        if axis.WhichOneof("value") == "dim_value" and axis.dim_value >= 0:  # -1 leaves it open, as in ONNX Runtime
            if not axis.dim_value:
                raise ModelError(f"input {value.name} of {path} has no entries: its axis {i} has size 0")
            shape.append(axis.dim_value)
            continue
        size = int(like.shape[i]) if fits and like is not None else batch if i == 0 else 1
        shape.append(named.setdefault(axis.dim_param, size) if axis.dim_param else size)
    return tuple(shape)


def _type(value: onnx.ValueInfoProto, path: Path) -> torch.dtype:
    import onnx

    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if name not in _TYPES:
        raise ModelError(f"input {value.name} of {path} is of type {name}, for which no values can be made up")
    return _TYPES[name]


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if dtype in (torch.uint8, torch.int8):
        limits = torch.iinfo(dtype)
        return torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)
