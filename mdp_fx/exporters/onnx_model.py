"""One place that turns a module into ONNX: the exporter and the latency targets both call it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from google.protobuf.message import EncodeError  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mdp_fx.errors import ModelError, first_line

if TYPE_CHECKING:
    import onnx

ONNX_DTYPES = ("float32", "float16")
"""Number formats to export networks in: ONNX convolutions take bfloat16 in later opsets than torch writes."""

_ATTENTION = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, loggers and progress lines of the exporter; errors still raise."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY_LOGGERS}
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Builds torch's table of ONNX operators once: torch does for every export, half of the time of a region's.

    It is no public part of torch; where it is not found, every export builds its own.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        build: Any = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return

    def kept(**options: Any) -> Any:
        key = tuple(sorted(options.items()))
        if key not in _registries:
            _registries[key] = build(**options)
        return _registries[key]

    own = vars(ONNXRegistry)["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(kept)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]


_registries: dict[tuple[tuple[str, Any], ...], Any] = {}


class _AttentionOnFourAxes(TorchFunctionMode):
    """Joins the leading axes of attention over windows, or adds one: torch's exporter takes four of them alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ATTENTION and len(args) >= 3 and all(value.ndim == 3 for value in args[:3]):
            return func(*(value.unsqueeze(0) for value in args[:3]), *args[3:], **kwargs).squeeze(0)
        if func in _ATTENTION and len(args) >= 3 and args[0].ndim > 4:
            lead = args[0].shape[:-3]
            if all(value.shape[:-3] == lead for value in args[1:3]):
                joined = [value.flatten(0, -4) for value in args[:3]]
                given = {**dict(zip(("attn_mask", "dropout_p", "is_causal"), args[3:], strict=False)), **kwargs}
                mask = given.get("attn_mask")
                if mask is not None and mask.ndim > 3:
                    given["attn_mask"] = mask.broadcast_to((*lead, *mask.shape[-3:])).flatten(0, -4)
                return func(*joined, **given).unflatten(0, lead)
        return func(*args, **kwargs)


def to_onnx_model(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool = False, optimize: bool = True
) -> onnx.ModelProto:
    """Export `module` with torch's graph-based exporter, weights inside the model.

    Args:
        module: module in the mode it is to be exported in (normally eval).
        inputs: example inputs; with `dynamic_batch` those whose axis 0 equals that of the first one are batched.
        dynamic_batch: make axis 0 of the batched inputs symbolic.
        optimize: let the exporter fold and fuse. False keeps every parameter under its own name.

    Raises:
        ModelError: torch cannot export the module, or it is larger than protobuf's 2 GB.
    """
    shapes: tuple[dict[int, object] | None, ...] | None = None
    if dynamic_batch and inputs:
        batch = inputs[0].shape[0] if inputs[0].ndim else 0
        batched = [value.ndim > 0 and value.shape[0] == batch for value in inputs]
        shapes = tuple({0: torch.export.Dim("batch")} if flag else None for flag in batched)
        if batch == 1:  # torch.export takes an axis of size 1 for a constant
            inputs = tuple(
                torch.cat([value, value]) if flag else value for value, flag in zip(inputs, batched, strict=True)
            )
    try:
        with quiet(), torch.no_grad(), _AttentionOnFourAxes(), _one_registry():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                optimize=optimize,
                verbose=False,
                external_data=False,
            )
            assert program is not None  # only the TorchScript-based exporter returns None
            return program.model_proto
    except (ValueError, EncodeError) as error:
        # protobuf reports its 2 GB limit as an EncodeError or a ValueError, depending on its implementation
        size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
        if size < 2**31 - 2**20:
            raise _refusal(error) from error
        message = f"cannot export to ONNX: {size / 2**30:.1f} GiB of weights exceed the 2 GiB that one ONNX file holds"
        raise ModelError(message) from error
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError) as error:
        raise _not_tensors(module, inputs) or _refusal(error) from error


def to_onnx_bytes(module: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool = False) -> bytes:
    """`to_onnx_model`, serialised: one self-contained ONNX file as bytes.

    Raises:
        ModelError: torch cannot export the module, or it is larger than protobuf's 2 GB.
    """
    model = to_onnx_model(module, inputs, dynamic_batch)
    try:
        data: bytes = model.SerializeToString()
    except (ValueError, EncodeError) as error:
        message = "cannot export to ONNX: the model exceeds the 2 GiB that one ONNX file holds"
        raise ModelError(message) from error
    return data


def _not_tensors(module: nn.Module, inputs: tuple[Tensor, ...]) -> ModelError | None:
    """What is wrong with the outputs of a module that cannot be exported, if they are that."""
    try:
        with torch.no_grad():
            leaves, _ = pytree.tree_flatten_with_path(module(*inputs))
    except Exception:  # noqa: BLE001 - the network's own forward: that it fails is what the exporter has said
        return None
    for path, leaf in leaves:
        if leaf is not None and not isinstance(leaf, Tensor):
            what = f"its output{pytree.keystr(path)} is of type {type(leaf).__name__}"
            return ModelError(f"cannot export to ONNX: {what}, and ONNX has tensors alone: leave it out")
    return None


def _refusal(error: BaseException) -> ModelError:
    """What lies at the root of an exporter's error."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return ModelError(f"cannot export to ONNX: {first_line(cause)}")
