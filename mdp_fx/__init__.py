"""mdp-fx: structured pruning of vision networks under a measured latency budget.

result = mdp_fx.prune(model, example_inputs, latency="50%", target="onnxruntime:cpu")
mdp_fx.save(result, "slim.pt")
slim = mdp_fx.load("slim.pt")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdp_fx import detection, models
    from mdp_fx.api import PruneResult, apply, diff, inspect, load, profile, prune, save, search_space
    from mdp_fx.checkpoint import SlimCheckpoint, load_slim
    from mdp_fx.comparison import bench
    from mdp_fx.decision import Decision, solve
    from mdp_fx.detectors.onnx import export_onnx
    from mdp_fx.errors import MdpFxError
    from mdp_fx.exporters.tensorrt_engine import export_tensorrt
    from mdp_fx.layer_masks import MaskedResult, apply_masks
    from mdp_fx.passes.frontier import FrontierPoint, frontier
    from mdp_fx.passes.search_space import SearchSpace
    from mdp_fx.recipe import Recipe
    from mdp_fx.scores import Scores
    from mdp_fx.scoring import score
    from mdp_fx.target_list import targets
    from mdp_fx.train.pruning import Pruner
    from mdp_fx.train.schedule import Schedule
    from mdp_fx.train.steps import prune_in_steps

__version__ = "0.1.0"

# Where each public name lives: importing mdp_fx alone must not import torch.
_HOMES = {
    "Decision": "mdp_fx.decision",
    "FrontierPoint": "mdp_fx.passes.frontier",
    "MaskedResult": "mdp_fx.layer_masks",
    "MdpFxError": "mdp_fx.errors",
    "PruneResult": "mdp_fx.api",
    "Pruner": "mdp_fx.train.pruning",
    "Recipe": "mdp_fx.recipe",
    "Schedule": "mdp_fx.train.schedule",
    "Scores": "mdp_fx.scores",
    "SearchSpace": "mdp_fx.passes.search_space",
    "SlimCheckpoint": "mdp_fx.checkpoint",
    "apply": "mdp_fx.api",
    "apply_masks": "mdp_fx.layer_masks",
    "bench": "mdp_fx.comparison",
    "diff": "mdp_fx.api",
    "export_onnx": "mdp_fx.detectors.onnx",
    "export_tensorrt": "mdp_fx.exporters.tensorrt_engine",
    "frontier": "mdp_fx.passes.frontier",
    "inspect": "mdp_fx.api",
    "load": "mdp_fx.api",
    "load_slim": "mdp_fx.checkpoint",
    "profile": "mdp_fx.api",
    "prune": "mdp_fx.api",
    "prune_in_steps": "mdp_fx.train.steps",
    "save": "mdp_fx.api",
    "score": "mdp_fx.scoring",
    "search_space": "mdp_fx.api",
    "solve": "mdp_fx.decision",
    "targets": "mdp_fx.target_list",
}

_MODULES = ("detection", "models")
"""Parts of the package that are public as a whole."""

__all__ = [
    "Decision",
    "FrontierPoint",
    "MaskedResult",
    "MdpFxError",
    "PruneResult",
    "Pruner",
    "Recipe",
    "Schedule",
    "Scores",
    "SearchSpace",
    "SlimCheckpoint",
    "__version__",
    "apply",
    "apply_masks",
    "bench",
    "detection",
    "diff",
    "export_onnx",
    "export_tensorrt",
    "frontier",
    "inspect",
    "load",
    "load_slim",
    "models",
    "profile",
    "prune",
    "prune_in_steps",
    "save",
    "score",
    "search_space",
    "solve",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mdp_fx.{name}")
    if name not in _HOMES:
        msg = f"module 'mdp_fx' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
