"""The front end as passes: from a model to a graph with axis types."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mdp_fx.graph.prune_graph import infer_types
from mdp_fx.graph.trace import trace
from mdp_fx.graph.verify import check_types
from mdp_fx.passes.base import Compilation, Pass, PassResult


@dataclass(frozen=True)
class TraceModel(Pass):
    """Traces the model with the values of the example inputs.

    Attributes:
        open_batch: False bakes the batch of the inputs in.
    """

    open_batch: bool = True

    ensures = ("traced",)

    def call(self, state: Compilation) -> PassResult:
        """Traces a copy of the model."""
        return PassResult(replace(state, traced=trace(state.model, state.inputs, open_batch=self.open_batch)))


class InferAxisTypes(Pass):
    """Types every axis of every tensor."""

    requires = ("traced",)
    ensures = ("graph",)

    def call(self, state: Compilation) -> PassResult:
        """Types the traced graph."""
        assert state.traced is not None
        return PassResult(replace(state, graph=infer_types(state.traced)))

    def verify(self, state: Compilation) -> None:
        """Every type has the shape of its tensor."""
        assert state.graph is not None
        check_types(state.graph)
