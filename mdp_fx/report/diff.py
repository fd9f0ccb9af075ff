"""Graph diff: two networks compared module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from mdp_fx.errors import InputError


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
        return asdict(self) | {"rows": [asdict(row) | {"changed": row.changed} for row in self.rows]}


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
    name: str, before: _Entry | None, after: _Entry | None, latency: tuple[Mapping[str, float], Mapping[str, float]] | None
) -> DiffRow:
    either = before or after
    assert either is not None
    times = [None if latency is None or name not in side else 1e3 * side[name] for side in latency or (None, None)]
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
    macs: dict[str, int] = {}
    hooks = []
    holders: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        holders[name or "(root)"] = (module, max(own, key=lambda p: p.ndim))

        def count(owner: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            weight = holders[name or "(root)"][1]
            if weight.ndim < 2 or not isinstance(output, torch.Tensor):
                return
            channels = output.shape[1] if weight.ndim > 2 else output.shape[-1]
            macs[name] = macs.get(name, 0) + weight.numel() * (output.numel() // max(1, channels))

        hooks.append(module.register_forward_hook(count))
    training = network.training
    try:
        network.eval()
        with torch.no_grad():
            network(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"the network rejects the example inputs: {first}; set their shape with --input CxHxW"
        raise InputError(msg) from error
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return {
        name: _Entry(
            type(module).__name__,
            tuple(weight.shape),
            sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            macs.get(name, 0),
        )
        for name, (module, weight) in holders.items()
    }


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
