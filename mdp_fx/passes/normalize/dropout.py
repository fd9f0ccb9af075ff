"""Dropout that follows the mode: modules instead of functions."""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from mdp_fx.graph.tracer import is_eval_flag

_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def make_dropout_modules(module: fx.GraphModule) -> bool:
    """Turns calls of dropout functions that follow `self.training` into modules, which follow it in the traced network.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in module.graph.nodes:
        flagged = [name for name, value in node.kwargs.items() if is_eval_flag(value)]
        if not flagged and not any(is_eval_flag(value) for value in node.args):
            continue
        changed = True
        if node.target in _DROPOUTS and isinstance(node.target, type(F.dropout)):
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            module.add_submodule(node.name, _DROPOUTS[node.target](bound.arguments.get("p", 0.5)).eval())
            node.op, node.target, node.args, node.kwargs = "call_module", node.name, (bound.args[0],), {}
            continue
        node.args = tuple(False if is_eval_flag(value) else value for value in node.args)
        node.kwargs = {name: False if is_eval_flag(value) else value for name, value in node.kwargs.items()}
    return changed
