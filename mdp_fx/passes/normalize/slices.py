"""Bounds of slices: counted from the front of an axis, for what lies behind them may shrink."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from mdp_fx.graph.tracer import DTYPE, SHAPE
from mdp_fx.passes.normalize.edit import argument, is_tensor, op_name


def count_from_front(module: fx.GraphModule) -> bool:
    """Writes negative bounds of slices as those from the front that the traced sizes make of them.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in module.graph.nodes:
        name, x = op_name(node), argument(node, 0, "input")
        if name not in ("getitem", "setitem", "narrow") or not is_tensor(x):
            continue
        if name == "narrow":
            start, size = argument(node, 2, "start"), x.meta[SHAPE][argument(node, 1, "dim")]
            if isinstance(start, int) and start < 0:
                _write(node, 2, "start", start + size)
                changed = True
            continue
        index = node.args[1]
        keys = tuple(_from_front(index if isinstance(index, tuple) else (index,), x.meta[SHAPE]))
        if keys != (index if isinstance(index, tuple) else (index,)):
            _write(node, 1, "index", keys)
            changed = True
    return changed


def _write(node: fx.Node, position: int, name: str, value: Any) -> None:
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _from_front(keys: tuple[Any, ...], shape: torch.Size) -> Iterator[Any]:
    """The parts of an index, slices without negative bounds."""
    axes = sum(_axes_of(key) for key in keys)
    place = 0
    for key in keys:
        size = shape[place] if place < len(shape) else 0
        place += len(shape) - axes if key is Ellipsis else _axes_of(key)
        yield slice(_bound(key.start, size), _bound(key.stop, size), key.step) if _is_plain(key) else key


def _axes_of(key: Any) -> int:
    """How many axes a part of an index is about."""
    if key is None or key is Ellipsis:
        return 0
    is_mask = is_tensor(key) and key.meta[DTYPE] in (torch.bool, torch.uint8)
    return len(key.meta[SHAPE]) if is_mask else 1


def _is_plain(key: Any) -> bool:
    return isinstance(key, slice) and not any(isinstance(bound, fx.Node) for bound in (key.start, key.stop, key.step))


def _bound(bound: int | None, size: int) -> int | None:
    return max(0, bound + size) if bound is not None and bound < 0 else bound
