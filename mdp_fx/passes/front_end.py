"""The front end as passes: from a model to a graph with axis types."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from mdp_fx.errors import InputError, ModelError, first_line
from mdp_fx.graph.prune_graph import infer_types
from mdp_fx.graph.trace import FrontEnd, Traced, trace
from mdp_fx.graph.verify import check_types
from mdp_fx.passes.base import Compilation, Pass, PassResult

Choice: TypeAlias = Literal["auto"] | FrontEnd
FRONT_ENDS: tuple[str, ...] = ("auto", *get_args(FrontEnd))
"""What may be asked for; "auto" takes the first of the others that can follow the network."""


@dataclass(frozen=True)
class TraceModel(Pass):
    """Makes a graph of the model with the values of the example inputs.

    Attributes:
        open_batch: False bakes the batch of the inputs in.
        front_end: what makes it.
    """

    open_batch: bool = True
    front_end: Choice = "auto"

    ensures = ("traced",)

    def call(self, state: Compilation) -> PassResult:
        """Traces or exports a copy of the model.

        Raises:
            InputError: there is no such front end.
            ModelError: the one that was asked for cannot follow the model, or none can.
        """
        if self.front_end not in FRONT_ENDS:
            msg = f"unknown front end {self.front_end!r}: use one of {', '.join(FRONT_ENDS)}"
            raise InputError(msg)
        if self.front_end == "export":
            return PassResult(replace(state, traced=replace(self._export(state), why="as asked")))
        try:
            traced = trace(state.model, state.inputs, open_batch=self.open_batch)
        except ModelError as error:
            if self.front_end == "symbolic":
                raise
            traced = self._export_instead(state, error)
        if self.front_end == "symbolic":
            traced = replace(traced, why="as asked")
        return PassResult(replace(state, traced=traced))

    def _export(self, state: Compilation) -> Traced:
        # It takes a second to import, and most networks do without.
        from mdp_fx.graph.exported import export

        return export(state.model, state.inputs, open_batch=self.open_batch)

    def _export_instead(self, state: Compilation, failure: ModelError) -> Traced:
        try:
            traced = self._export(state)
        except ModelError as error:
            reasons = [first_line(found.__cause__) for found in (failure, error)]
            msg = f"{failure}; torch.export fails too" + (f": {reasons[1]}" if reasons[0] != reasons[1] else "")
            raise ModelError(msg) from error
        return replace(traced, why=f"symbolic tracing fails: {first_line(failure.__cause__)}")


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
