"""Copies of networks: what copy.deepcopy gives, without its price for the many plain attributes of every module."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx, nn

from mdp_fx.graph.tracer import attribute

_SHARED = frozenset(
    (
        int,
        float,
        complex,
        bool,
        str,
        bytes,
        type(None),
        type,
        torch.dtype,
        torch.device,
        torch.memory_format,
        FunctionType,
        BuiltinFunctionType,
    )
)
"""What copy.deepcopy gives back as it is."""


def copy_network(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of a module; `memo` names by identity what is not copied but replaced, and collects all copies.

    A module that says itself how it is copied or pickled is copied so.
    """
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    kind = type(module)
    special = hasattr(kind, "__deepcopy__") or kind.__setstate__ is not nn.Module.__setstate__
    if special or "__getstate__" in vars(kind) or kind.__reduce_ex__ is not object.__reduce_ex__:
        copied: nn.Module = copy.deepcopy(module, memo)
        return copied
    made = kind.__new__(kind)
    memo[id(module)] = made
    vars(made).update((name, _copy(value, memo)) for name, value in vars(module).items())
    return made


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _SHARED or (kind in (tuple, set) and all(type(part) in _SHARED for part in value)):
        return set(value) if kind is set else value
    if isinstance(value, nn.Module):
        return copy_network(value, memo)
    if kind in (dict, OrderedDict):
        if id(value) not in memo:
            memo[id(value)] = kind((key, _copy(part, memo)) for key, part in value.items())
        return memo[id(value)]
    return copy.deepcopy(value, memo)


def copy_stored(module: nn.Module, graph: fx.Graph, memo: dict[int, Any]) -> dict[str, Any]:
    """Copies of the modules, parameters and buffers that a graph names, by their names.

    Args:
        module: holds them.
        graph: names them.
        memo: as for `copy_network`.
    """
    named = (str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr"))
    return {name: _copy(attribute(module, name), memo) for name in dict.fromkeys(named)}
