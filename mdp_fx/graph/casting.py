"""A network in another number format, or on another device, as a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdp_fx.graph.copies import copy_network

# nn.Module.to would make complex numbers real; these leave all that is no floating-point number alone.
_CASTS = {"float32": nn.Module.float, "float16": nn.Module.half, "bfloat16": nn.Module.bfloat16}

DTYPES = tuple(_CASTS)
"""Number formats that a network can be brought to."""


def cast_network(
    module: nn.Module, inputs: tuple[Any, ...], dtype: str, device: str = "cpu"
) -> tuple[nn.Module, tuple[Any, ...]]:
    """A network and its inputs with every floating-point number in `dtype`, on `device`.

    Args:
        module: left as it is, and returned itself where nothing is to change.
        inputs: tensors are cast and moved; integers, masks and what is no tensor stay what they are.
        dtype: one of `DTYPES`.
        device: "cpu" or "cuda".
    """
    wanted = getattr(torch, dtype)

    def fits(value: Tensor) -> bool:
        return value.device.type == device and (value.dtype == wanted or not value.is_floating_point())

    if not all(fits(value) for value in (*module.parameters(), *module.buffers())):
        module = _CASTS[dtype](copy_network(module, {})).to(device)
    return module, tuple(_cast(value, wanted, device) for value in inputs)


def _cast(value: Any, dtype: torch.dtype, device: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)
