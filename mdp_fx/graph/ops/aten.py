"""ATen overloads in torch's own spelling, so that one typing rule, one pass, one file format reads both.

An overload has the name and the arguments of a function of torch, of torch.nn.functional, or of a method. The spelling
is found by those names and taken where it computes the same on the values at hand. Only what writes to its operands or
draws random numbers cannot be computed twice: there the names are trusted, and the graph as a whole is compared later.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from mdp_fx.graph.ops.registry import has_rule
from mdp_fx.graph.purity import target_name

Spelling: TypeAlias = tuple[str, Any, tuple[Any, ...], dict[str, Any]]
"""(kind of node, target, positional arguments, keyword arguments)."""

_SAME = {
    "_unsafe_view": "reshape",
    "alias": "positive",
    "col2im": "fold",
    "im2col": "unfold",
    "lift_fresh_copy": "clone",
    "split_with_sizes": "split",
}
"""ATen's own names of what torch calls otherwise."""

_ATTRIBUTES = {"numpy_T": "T", "mT": "mT", "matrix_H": "H", "mH": "mH"}
"""Overloads that torch spells as attributes of a tensor."""

_ARGUMENTS = {"self": "input", "indices": "input"}
"""Names of ATen's arguments that torch's functions in Python give another name."""

_IMPLIED = ("cudnn_enable", "cudnn_enabled", "layout", "pin_memory")
"""Arguments that say how to compute, not what."""


def is_check(overload: OpOverload) -> bool:
    """Whether an overload only asserts something: it gives nothing and writes to nothing."""
    return not overload._schema.returns and not overload._schema.is_mutable


def respell(
    overload: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[Spelling], Any]
) -> Spelling | None:
    """The call in torch's own spelling, one with a typing rule where there is one.

    Args:
        overload: what is called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        run: gives the value of a call.

    Returns:
        The call, or None where torch has no other spelling.
    """
    calls = sorted(_spellings(overload, args, kwargs), key=lambda call: not has_rule(call[1]))
    if overload._schema.is_mutable or torch.Tag.nondeterministic_seeded in overload.tags:
        # Running it would change what it reads, or give another value each time: its names are trusted.
        return next(iter(calls), None)
    expected = run(("call_function", overload, args, kwargs)) if calls else None
    return next((call for call in calls if _gives(call, expected, run)), None)


def _spellings(overload: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Spelling]:
    given = {argument.name: value for argument, value in zip(overload._schema.arguments, args, strict=False)} | kwargs
    name = target_name(overload)
    name = _SAME.get(name, name)
    if name == "slice":
        yield _sliced(**given)
    elif name == "index":
        keys = tuple(slice(None) if key is None else key for key in given["indices"])
        yield "call_function", operator.getitem, (given["self"], keys), {}
    elif "upsample_" in name:
        yield _interpolate(name, **given)
    elif name in _ATTRIBUTES:
        yield "call_function", getattr, (given["self"], _ATTRIBUTES[name]), {}
    elif name == "grid_sampler":
        yield _grid_sample(**given)
    elif name == "tensordot":
        dims = (given["dims_self"], given["dims_other"])
        yield "call_function", torch.tensordot, (given["self"], given["other"], dims), {}
    in_place = name.endswith("_")
    for owner in () if in_place else (F, torch, torch.linalg, torch.special):
        short = owner.__name__.rpartition(".")[2]
        function = getattr(owner, name.removeprefix(f"{short}_"), None)
        bound = _bind(function, overload, args, kwargs) if callable(function) else None
        if bound is not None:
            yield "call_function", function, *bound
    if hasattr(torch.Tensor, name) and args:
        yield "call_method", name, args, _said(kwargs)
    elif in_place and callable(getattr(F, name[:-1], None)):
        function = getattr(F, name[:-1])
        bound = _bind(function, overload, args, {**kwargs, "inplace": True})
        if bound is not None:
            yield "call_function", function, *bound


def _said(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in _IMPLIED}


def _bind(
    function: Callable[..., Any], overload: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments of an overload as a function takes them: built-in ones as they are, those in Python by name."""
    names = _parameters(function)
    if names is None:
        return args, _said(kwargs)
    bound: dict[str, Any] = {}
    theirs = [argument.name for argument in overload._schema.arguments]
    for name, value in _said(dict(zip(theirs, args, strict=False)) | kwargs).items():
        same = name if name in names else _ARGUMENTS.get(name, "")
        if same not in names:
            # Another name at the same place.
            place = theirs.index(name)
            same = names[place] if place < len(names) and names[place] not in theirs else ""
        if same not in names or same in bound:
            return None
        bound[same] = value
    positional: list[Any] = []
    for name in names:
        if name not in bound:
            break
        positional.append(bound.pop(name))
    return tuple(positional), bound


@lru_cache(maxsize=1024)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of the arguments of a function in Python; None for a built-in one, or one that takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)


def _sliced(self: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Spelling:
    part = slice(start, None if end == sys.maxsize else end, None if step == 1 else step)
    whole = slice(None)
    keys = (*[whole] * dim, part) if dim >= 0 else (Ellipsis, part, *[whole] * (-dim - 1))
    return "call_function", operator.getitem, (self, keys), {}


def _interpolate(name: str, **given: Any) -> Spelling:
    mode = name.removeprefix("_").removeprefix("upsample_").removesuffix("_aa")
    mode = mode.replace("nearest_exact", "nearest-exact")
    mode = mode if mode in ("bilinear", "trilinear", "bicubic") else mode.rstrip("123d")
    options = {
        "size": given.get("output_size"),
        "scale_factor": given.get("scale_factors"),
        "mode": mode,
        "align_corners": given.get("align_corners"),
        "antialias": name.endswith("_aa"),
    }
    return "call_function", F.interpolate, (given.get("input", given.get("self")),), _changed(options)


def _grid_sample(
    input: Any,
    grid: Any,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Spelling:
    """The modes are numbered in the order in which torch names them."""
    options = {
        "mode": ("bilinear", "nearest", "bicubic")[interpolation_mode],
        "padding_mode": ("zeros", "border", "reflection")[padding_mode],
        "align_corners": align_corners,
    }
    return "call_function", F.grid_sample, (input, grid), options


def _changed(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, False)}


def _gives(call: Spelling, expected: Any, run: Callable[[Spelling], Any]) -> bool:
    try:
        found = run(call)
    except Exception:  # noqa: BLE001 - a function of the same name may take something else altogether
        return False
    ours, spec = pytree.tree_flatten(list(found) if isinstance(found, tuple) else found)
    theirs, other = pytree.tree_flatten(list(expected) if isinstance(expected, tuple) else expected)
    return bool(spec == other) and all(map(_equal, ours, theirs))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
