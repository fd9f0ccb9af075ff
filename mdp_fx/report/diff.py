"""Graph diff: two networks compared module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from mdp_fx.errors import InputError
from mdp_fx.graph.forward import run_once


@dataclass(frozen=True)
class DiffRow:
    """One module in both networks.

    Attributes:
        module: its name.
        op: its class.
        before: shape of its weight in the first network, None where it is not there.
        after: shape of its weight in the second network, None where it was removed.
        params_before: its parameters; `params_after` likewise.
        macs_before: its multiply-accumulates on the example inputs; `macs_after` likewise.
        ms_before: predicted milliseconds of the cost region it starts, where a target was named; `ms_after` likewise.
    """

    module: str
    op: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    ms_before: float | None = None
    ms_after: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the two differ in shape or presence."""
        return self.before != self.after

    @property
    def removed(self) -> bool:
        """Whether the second network does not have it."""
        return self.after is None

    @property
    def is_matrix(self) -> bool:
        """Whether its weight has more than one axis, as those of convolutions and linear layers."""
        return len(self.before or self.after or ()) > 1


@dataclass(frozen=True)
class Diff:
    """Two networks compared.

    Attributes:
        rows: modules with parameters, in the order of the first network.
        removed: outermost module paths of the first network that the second has nothing of.
        params: parameters of both.
        macs: multiply-accumulates of both.
        ms: predicted milliseconds of both, where a target was named.
    """

    rows: tuple[DiffRow, ...]
    removed: tuple[str, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    ms: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {
            "rows": [asdict(row) | {"changed": row.changed, "removed": row.removed} for row in self.rows]
        }


@dataclass(frozen=True)
class _Entry:
    op: str
    shape: tuple[int, ...]
    params: int
    macs: int


def diff(
    a: nn.Module,
    b: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    latency: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
) -> Diff:
    """Compares two networks whose modules have the same names.

    Args:
        a: the first network, normally the dense one.
        b: the second network.
        example_inputs: inputs on which multiply-accumulates are counted.
        latency: seconds by module name in a and in b.

    Raises:
        InputError: the networks share no module name, or one rejects the inputs.
    """
    first, second = _entries(a, example_inputs), _entries(b, example_inputs)
    if first and second and not first.keys() & second.keys():
        msg = "the two networks share no module name: diff compares a network with its own slim one"
        raise InputError(msg)
    names = [*first, *(name for name in second if name not in first)]
    rows = tuple(_row(name, first.get(name), second.get(name), latency) for name in names)
    times = None
    if latency is not None:
        times = (1e3 * sum(latency[0].values()), 1e3 * sum(latency[1].values()))
    return Diff(
        rows,
        _outermost_removed(first, second),
        (_params(a), _params(b)),
        (sum(entry.macs for entry in first.values()), sum(entry.macs for entry in second.values())),
        times,
    )


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _row(
    name: str,
    before: _Entry | None,
    after: _Entry | None,
    latency: tuple[Mapping[str, float], Mapping[str, float]] | None,
) -> DiffRow:
    either = before or after
    assert either is not None
    times = [1e3 * side[name] if name in side else None for side in latency or ({}, {})]
    return DiffRow(
        name,
        either.op,
        before.shape if before else None,
        after.shape if after else None,
        before.params if before else 0,
        after.params if after else 0,
        before.macs if before else 0,
        after.macs if after else 0,
        times[0],
        times[1],
    )


def _entries(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, _Entry]:
    """Modules that hold parameters, with multiply-accumulates counted in one forward."""
    macs: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        weight = _largest(module)
        # Every entry of a transposed convolution's weight meets every input position, of others every output position.
        met = args[0] if getattr(module, "transposed", False) else output
        macs[module] = macs.get(module, 0) + weight.numel() * (met.numel() // max(1, weight.shape[0]))

    holders = {name or "(root)": part for name, part in network.named_modules() if [*part.parameters(recurse=False)]}
    multiplying = [part for part in holders.values() if hasattr(part, "out_channels") or hasattr(part, "out_features")]
    hooks = [part.register_forward_hook(count) for part in multiplying]
    try:
        run_once(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: _Entry(
            type(module).__name__,
            tuple(_largest(module).shape),
            sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            macs.get(module, 0),
        )
        for name, module in holders.items()
    }


def _largest(module: nn.Module) -> torch.Tensor:
    """Its weight: of its own parameters the one with most axes."""
    return max(module.parameters(recurse=False), key=lambda parameter: parameter.ndim)


def _outermost_removed(first: Mapping[str, _Entry], second: Mapping[str, _Entry]) -> tuple[str, ...]:
    left = [name.split(".") for name in second]
    removed: dict[str, None] = {}
    for name in first:
        if name in second:
            continue
        path = name.split(".")
        depth = next(d for d in range(1, len(path) + 1) if not any(other[:d] == path[:d] for other in left))
        removed[".".join(path[:depth])] = None
    return tuple(removed)
