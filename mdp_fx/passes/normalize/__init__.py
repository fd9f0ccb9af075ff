"""One canonical spelling per idea, with the same numerics: what the typing rules need not know about."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from mdp_fx.graph.purity import remove_dead_nodes
from mdp_fx.passes.base import Compilation, Pass, PassResult
from mdp_fx.passes.normalize.attention import split_attention
from mdp_fx.passes.normalize.constants import fold_constants
from mdp_fx.passes.normalize.edit import forget_unread
from mdp_fx.passes.normalize.fused_projections import split_projections
from mdp_fx.passes.normalize.in_place import write_out_of_place
from mdp_fx.passes.normalize.shuffles import gather_orders, gather_shuffles
from mdp_fx.passes.normalize.slices import count_from_front
from mdp_fx.passes.normalize.training_mode import follow_training_mode
from mdp_fx.passes.normalize.written_norms import name_layer_norms

STEPS: tuple[Callable[[fx.GraphModule], bool], ...] = (
    follow_training_mode,
    write_out_of_place,
    count_from_front,
    fold_constants,
    split_attention,
    split_projections,
    gather_shuffles,
    gather_orders,
    name_layer_norms,
)
"""The normalisations: each edits a network in place, once those before it find nothing, and says whether it did."""


def normalize(module: fx.GraphModule) -> bool:
    """Runs all normalisations in place until none changes anything and all nodes are read; returns whether one did."""
    changed = False
    while any(step(module) for step in STEPS) or remove_dead_nodes(module.graph):
        changed = True
    if changed:
        forget_unread(module)
        module.graph.lint()
        module.recompile()
    return changed


class Normalize(Pass):
    """Gives every idea its canonical spelling, with the same numerics."""

    requires = ("traced",)
    rewrites = True

    def call(self, state: Compilation) -> PassResult:
        """Edits the traced graph in place."""
        assert state.traced is not None
        return PassResult(state, normalize(state.traced.module))
