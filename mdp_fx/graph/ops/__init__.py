"""Typing rules, by family; importing this package registers them all."""

from mdp_fx.graph.ops import elementwise, layers, shape

__all__ = ["elementwise", "layers", "shape"]
