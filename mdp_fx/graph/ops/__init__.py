"""Typing rules, by family; importing this package registers them all."""

from mdp_fx.graph.ops import elementwise, indexing, layers, products, reductions, resampling, shape

__all__ = ["elementwise", "indexing", "layers", "products", "reductions", "resampling", "shape"]
