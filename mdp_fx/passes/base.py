"""The pass: one arrow of the flow. What it needs and what it gives are data, and the base class checks both."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, MdpFxError

if TYPE_CHECKING:
    from mdp_fx.graph.prune_graph import PruneGraph
    from mdp_fx.graph.trace import Traced
    from mdp_fx.passes.channel_groups import ChannelGroup
    from mdp_fx.passes.cost_regions import CostRegion
    from mdp_fx.passes.residual_blocks import Blocks

VERIFY_VARIABLE = "MDP_FX_VERIFY"
"""Environment variable that switches the verifier on after every pass."""

Stage = Callable[[str], None]


def silent(_name: str) -> None:
    """A stage listener that does nothing."""


def batch_of(inputs: tuple[Any, ...]) -> int:
    """Size of axis 0 of the first tensor."""
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    msg = "the example inputs hold no tensor with a batch axis"
    raise InputError(msg)


@dataclass(frozen=True)
class Compilation:
    """All that is known of a network between two passes; None where no pass has found it yet.

    Attributes:
        model: the dense network, never edited.
        inputs: positional example inputs; axis 0 is the batch that latency is asked for, unless `costed_batch` is.
        costed_batch: the batch that latency is asked for, where the inputs hold only some of the examples.
        step: the channel step of the sizes that latency is asked for.
        traced: the traced network.
        graph: the traced network with axis types.
        groups: its channel groups.
        blocks: its residual blocks.
        regions: its cost regions.
        kept: kept units by channel group, from a recipe; groups that are missing keep all.
        removed_blocks: names of the blocks to remove, from a recipe.
        slim: the rewritten network.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    costed_batch: int | None = None
    step: int = 1
    traced: Traced | None = None
    graph: PruneGraph | None = None
    groups: tuple[ChannelGroup, ...] | None = None
    blocks: Blocks | None = None
    regions: tuple[CostRegion, ...] | None = None
    kept: Mapping[str, Sequence[int]] | None = None
    removed_blocks: Sequence[str] | None = None
    slim: fx.GraphModule | None = None

    @property
    def batch(self) -> int:
        """The batch that latency is asked for."""
        return self.costed_batch if self.costed_batch is not None else batch_of(self.inputs)

    @property
    def module(self) -> fx.GraphModule | None:
        """The graph that the next rewriting pass would edit."""
        if self.slim is not None:
            return self.slim
        return self.traced.module if self.traced is not None else None


@dataclass(frozen=True)
class PassResult:
    """What a pass found.

    Attributes:
        state: everything known after it.
        modified: whether it edited the network; a second run of the same pass does not.
    """

    state: Compilation
    modified: bool = False


class PassError(Exception):
    """A fault of ours: a pass failed, or broke what it promises."""


class Pass(ABC):
    """One pass.

    Attributes:
        requires: fields of the Compilation that must be known before.
        ensures: fields that are known after it.
        rewrites: whether it may edit the network; an analysis never does.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()
    rewrites: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The class's name in words: "find channel groups"."""
        return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in type(self).__name__).strip()

    @abstractmethod
    def call(self, state: Compilation) -> PassResult:
        """Does the work."""

    def verify(self, state: Compilation) -> None:
        """Checks the result in depth; on in tests, and wherever MDP_FX_VERIFY is set.

        Raises:
            AssertionError, RuntimeError: what is wrong, and where.
        """
        if state.module is not None:
            state.module.graph.lint()

    @final
    def __call__(self, state: Compilation) -> PassResult:
        """Runs the pass between its checks.

        Raises:
            PassError: something it needs is missing, or it did not do what it promises.
            MdpFxError: what the pass itself has to tell the user.
        """
        if missing := _unknown(state, self.requires):
            msg = f"{self.name} needs {', '.join(missing)}, which no pass before it gave"
            raise PassError(msg)
        verifying = bool(os.environ.get(VERIFY_VARIABLE))
        before = _snapshot(state.module) if verifying else None
        result = self.call(state)
        if missing := _unknown(result.state, self.ensures):
            msg = f"{self.name} promises {', '.join(missing)} and did not give it"
            raise PassError(msg)
        if result.modified and not self.rewrites:
            msg = f"{self.name} is an analysis and says that it edited the network"
            raise PassError(msg)
        if verifying:
            if not result.modified and before is not None and _snapshot(result.state.module) != before:
                msg = f"{self.name} edited the network and does not say so"
                raise PassError(msg)
            self.verify(result.state)
        return result


def run_passes(passes: Sequence[Pass], state: Compilation, *, stage: Stage = silent) -> Compilation:
    """Runs passes in order, after a check that each gets what it needs.

    Args:
        passes: the pipeline.
        state: what is known before it.
        stage: called with the name of each pass as it starts.

    Raises:
        PassError: with the pass that failed and those before it; the cause is chained.
        MdpFxError: what a pass has to tell the user.
    """
    known = {name for name in Compilation.__dataclass_fields__ if getattr(state, name) is not None}
    for step in passes:
        if missing := [name for name in step.requires if name not in known]:
            msg = f"{step.name} comes before a pass that gives {', '.join(missing)}"
            raise PassError(msg)
        known.update(step.ensures)
    done: list[str] = []
    for step in passes:
        stage(step.name)
        try:
            # A caller in inference mode would get a network that cannot be trained.
            with torch.inference_mode(False):
                state = step(state).state
        except MdpFxError:
            raise
        except Exception as error:
            msg = f"{step.name} failed, after {', '.join(done) or 'no other pass'}: {error}"
            raise PassError(msg) from error
        done.append(step.name)
    return state


def _unknown(state: Compilation, names: Sequence[str]) -> list[str]:
    return [name for name in names if getattr(state, name) is None]


def _snapshot(module: fx.GraphModule | None) -> object:
    """What an edit would change: the graph as text, and the shapes of what is stored."""
    if module is None:
        return None
    stored: dict[str, torch.Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
    return str(module.graph), {name: tensor.shape for name, tensor in stored.items()}
