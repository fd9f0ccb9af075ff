"""mdp-fx: structured pruning of vision networks under a measured latency budget.

result = mdp_fx.prune(model, example_inputs, latency="50%", target="onnxruntime:cpu")
mdp_fx.save(result, "slim.pt")
slim = mdp_fx.load("slim.pt")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdp_fx.api import PruneResult, apply, bench, diff, inspect, load, profile, prune, save
    from mdp_fx.checkpoint import SlimCheckpoint, load_slim
    from mdp_fx.errors import MdpFxError
    from mdp_fx.exporters.onnx_export import export_onnx
    from mdp_fx.recipe import Recipe

__version__ = "0.1.0"

# Where each public name lives: importing mdp_fx alone must not import torch.
_HOMES = {
    "MdpFxError": "mdp_fx.errors",
    "PruneResult": "mdp_fx.api",
    "Recipe": "mdp_fx.recipe",
    "SlimCheckpoint": "mdp_fx.checkpoint",
    "apply": "mdp_fx.api",
    "bench": "mdp_fx.api",
    "diff": "mdp_fx.api",
    "export_onnx": "mdp_fx.exporters.onnx_export",
    "inspect": "mdp_fx.api",
    "load": "mdp_fx.api",
    "load_slim": "mdp_fx.checkpoint",
    "profile": "mdp_fx.api",
    "prune": "mdp_fx.api",
    "save": "mdp_fx.api",
}

__all__ = [
    "MdpFxError",
    "PruneResult",
    "Recipe",
    "SlimCheckpoint",
    "__version__",
    "apply",
    "bench",
    "diff",
    "export_onnx",
    "inspect",
    "load",
    "load_slim",
    "profile",
    "prune",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'mdp_fx' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
