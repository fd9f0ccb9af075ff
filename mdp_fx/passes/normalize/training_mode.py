"""Functions that follow the mode, which are given `self.training`, as modules that do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.eval_flag import TAKEN, EvalFlag, is_eval_flag
from mdp_fx.graph.tracer import SHAPE, attribute

_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_NORMS: dict[Any, tuple[str, dict[int, Callable[..., Any]]]] = {
    F.batch_norm: ("training", {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}),
    F.instance_norm: ("use_input_stats", {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}),
}
"""Functions that normalise channels: the argument that is the mode, and by the rank of the input what does the same."""


def follow_training_mode(module: fx.GraphModule) -> bool:
    """Turns calls of dropouts and norms that are given `self.training` into modules, which follow it in the graph.

    Any other call takes it for false from now on, and is marked with the line of the model's code.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in module.graph.nodes:
        flags: list[EvalFlag] = []
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), partial(_taken, flags))
        if not flags:
            continue
        changed = True
        layer = _layer(module, node)
        if layer is not None:
            operand = _arguments(node)["input"]
            module.add_submodule(node.name, layer.eval())
            node.op, node.target, node.args, node.kwargs = "call_module", node.name, (operand,), {}
            continue
        node.meta[TAKEN] = flags[0].line
        node.args, node.kwargs = args, kwargs
    return changed


def _taken(flags: list[EvalFlag], value: Any) -> Any:
    """False in place of a flag, which is kept in `flags`."""
    if isinstance(value, EvalFlag):
        flags.append(value)
        return False
    return value


def _arguments(node: fx.Node) -> Mapping[str, Any]:
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that does in both modes what a call does; None where there is none."""
    if node.op != "call_function":
        return None
    for kind in (_dropout, _norm):
        layer = kind(module, node)
        if layer is not None:
            return layer
    return None


def _dropout(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    if node.target not in _DROPOUTS:
        return None
    given = _arguments(node)
    return _DROPOUTS[node.target](given["p"], given["inplace"])


def _norm(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    if node.target not in _NORMS:
        return None
    mode, kinds = _NORMS[node.target]
    given = _arguments(node)
    kind = kinds.get(len(given["input"].meta[SHAPE]))
    mean, variance = (_stored(module, given[name]) for name in ("running_mean", "running_var"))
    affine = [_stored(module, given[name]) for name in ("weight", "bias") if given[name] is not None]
    tracked = mean is not None and variance is not None and not _is_parameter(mean) and not _is_parameter(variance)
    if kind is None or not is_eval_flag(given[mode]) or not tracked or not all(map(_is_parameter, affine)):
        return None
    layer: Any = kind(len(mean), given["eps"], given["momentum"], affine=False, track_running_stats=True)
    layer.running_mean, layer.running_var = mean, variance
    layer.num_batches_tracked = layer.num_batches_tracked.to(mean.device)
    layer.weight, layer.bias = (_stored(module, given[name]) for name in ("weight", "bias"))
    layer.affine = bool(affine)
    made: nn.Module = layer
    return made


def _stored(module: fx.GraphModule, value: Any) -> Any:
    """The stored tensor that an argument reads; None where it reads none."""
    return attribute(module, str(value.target)) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _is_parameter(value: object) -> bool:
    return isinstance(value, nn.Parameter)
