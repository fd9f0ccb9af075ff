"""Typing rules, by family; importing this package registers them all."""

from mdp_fx.graph.ops import box_pooling, elementwise, indexing, layers, products, reductions, resampling, shape

__all__ = ["box_pooling", "elementwise", "indexing", "layers", "products", "reductions", "resampling", "shape"]
