"""Importance: what every unit of every channel group is worth, layer by layer."""

from __future__ import annotations

from mdp_fx.passes.importance.accumulator import ImportanceAccumulator
from mdp_fx.passes.importance.activations import observe, taken
from mdp_fx.passes.importance.batches import guarded
from mdp_fx.passes.importance.kinds import KINDS, NEEDS, SMALLEST, check_kind
from mdp_fx.passes.importance.layers import FloatArray, Layer, LayerImportance, find_layers, find_readers
from mdp_fx.passes.importance.score import Loss, batch_gradients, cross_entropy, score

__all__ = [
    "KINDS",
    "NEEDS",
    "SMALLEST",
    "FloatArray",
    "ImportanceAccumulator",
    "Layer",
    "LayerImportance",
    "Loss",
    "batch_gradients",
    "check_kind",
    "cross_entropy",
    "find_layers",
    "find_readers",
    "guarded",
    "observe",
    "score",
    "taken",
]
