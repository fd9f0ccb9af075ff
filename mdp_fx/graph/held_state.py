"""Which tensors the attributes of a model hold: what a forward sets among them, a graph does not keep."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mdp_fx.graph.proxy import ValueProxy

_REGISTRIES = frozenset(vars(nn.Module()))
"""Attributes of every module, in which it keeps its parameters, buffers, modules and hooks."""


def version(tensor: torch.Tensor) -> int:
    """The number of writes that a tensor has seen; those made in inference mode are not counted."""
    return 0 if tensor.is_inference() else tensor._version


def held_tensors(model: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """The tensors in buffers and plain attributes, by name: which ones they are, and how often they were written to.

    Writes to buffers are not counted: a graph makes them too.
    """
    held: dict[str, list[tuple[int, int]]] = {}
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if name not in _REGISTRIES}
        for name, value in (dict(module.named_buffers(recurse=False)) | plain).items():
            found = [
                (id(leaf), version(leaf) if name in plain and isinstance(leaf, torch.Tensor) else 0)
                for leaf in pytree.tree_leaves(value)
                if isinstance(leaf, torch.Tensor | ValueProxy)
            ]
            if found:
                held[f"{path}.{name}".lstrip(".")] = found
    return held
