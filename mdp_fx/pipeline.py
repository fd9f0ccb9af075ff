"""The pipeline: the passes in order, and running them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, ModelError
from mdp_fx.passes.arguments import check_whole
from mdp_fx.passes.base import Compilation, Pass, Stage, batch_of, run_passes, silent
from mdp_fx.passes.channel_groups import FindChannelGroups
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.cost_regions import FindCostRegions
from mdp_fx.passes.drop_blocks import DropBlocks
from mdp_fx.passes.front_end import Choice, InferAxisTypes, TraceModel
from mdp_fx.passes.normalize import Normalize
from mdp_fx.passes.residual_blocks import FindResidualBlocks
from mdp_fx.passes.slice_channels import SliceChannels
from mdp_fx.trace_check import difference, resized

FRONT_END: tuple[Pass, ...] = (TraceModel(), Normalize(), InferAxisTypes())
ANALYSES: tuple[Pass, ...] = (FindChannelGroups(), FindResidualBlocks(), FindCostRegions())
REWRITES: tuple[Pass, ...] = (SliceChannels(), DropBlocks())


def as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as positional arguments; a single tensor may be given bare."""
    return tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)


def analyse(
    model: nn.Module,
    example_inputs: Any,
    *,
    front_end: Choice = "auto",
    all_examples: bool = True,
    step: int = 1,
    stage: Stage = silent,
) -> Analysis:
    """Runs every analysis pass.

    Args:
        model: the dense network, left unchanged.
        example_inputs: positional arguments of its forward; axis 0 is the batch that latency is asked for.
        front_end: "symbolic" tracing, torch.export ("export"), or "auto": the first of them that can follow the model.
        all_examples: False runs the model on the first example alone, where it leaves the batch open: what it costs at
            the batch of the inputs is then only counted.
        step: channel step: what `choose` offers keeps axes multiples of so many entries, and regions that join tensors
            are measured at such sizes.
        stage: called with the name of each pass as it starts.
    """
    if not isinstance(model, nn.Module):
        msg = f"the model must be a torch.nn.Module, not {type(model).__name__}"
        raise InputError(msg)
    check_whole("step", step, 1)
    inputs = as_inputs(example_inputs)
    if batch_of(inputs) == 0:
        msg = "the example inputs hold an empty batch: give at least one example"
        raise InputError(msg)
    typed = None if all_examples else _typed_by_one(model, inputs, front_end, stage)
    typed = typed or _typed(Compilation(model, inputs), front_end, stage)
    state = run_passes(ANALYSES, replace(typed, step=step), stage=stage)
    assert state.graph is not None
    assert state.groups is not None
    assert state.blocks is not None
    assert state.regions is not None
    return Analysis(state.graph, state.groups, state.blocks, state.regions, step)


def first_example(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first example of a batch of them."""
    batch = batch_of(inputs)

    def first(leaf: Any) -> Any:
        return leaf[:1] if isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == batch else leaf

    return cast("tuple[Any, ...]", pytree.tree_map(first, inputs))


def _typed_by_one(model: nn.Module, inputs: tuple[Any, ...], front_end: Choice, stage: Stage) -> Compilation | None:
    """What `_typed` makes of the first example; None where that says nothing of all of them."""
    asked = Compilation(model, first_example(inputs), costed_batch=batch_of(inputs))
    try:
        typed = _typed(asked, front_end, stage)
    except InputError:
        return None  # A network may be made for one number of examples: what it says of all of them counts.
    assert typed.graph is not None
    return typed if typed.graph.batch is not None else None


def _typed(asked: Compilation, front_end: Choice, stage: Stage) -> Compilation:
    """The model as a graph with axis types, its batch open unless something ties it to the number of examples given.

    Raises:
        ModelError: the graph is another network than the model.
    """
    fault: str | None = None
    for open_batch in (True, False):
        passes = (TraceModel(open_batch=open_batch, front_end=front_end), *FRONT_END[1:])
        state = run_passes(passes, asked, stage=stage)
        assert state.traced is not None
        assert state.graph is not None
        is_open = state.graph.batch is not None
        if state.traced.batch is not None and not is_open:
            # A constant in the graph is the batch's size: it must be the user's then, not the doubled one.
            continue
        stage("compare with the model")
        fault = difference(asked.model, state.graph, asked.inputs)
        # What was computed of the batch's size, or taken for it, shows with another one: a small one is as good as any.
        others = resized(asked.inputs, 3 if batch_of(asked.inputs) != 3 else 5)
        if fault is None and (not is_open or difference(asked.model, state.graph, others) is None):
            return state
    msg = f"the graph of {type(asked.model).__name__} is another network: {fault}"
    raise ModelError(msg)


def rewrite(
    analysis: Analysis, kept: Mapping[str, Sequence[int]], removed_blocks: Sequence[str], *, training: bool = False
) -> fx.GraphModule:
    """The slim network: kept units sliced, removed blocks dropped.

    Raises:
        RecipeError: units or blocks that this network does not have.
    """
    state = Compilation(
        analysis.graph.module,
        analysis.graph.example_inputs,
        graph=analysis.graph,
        groups=analysis.groups,
        blocks=analysis.blocks,
        kept=kept,
        removed_blocks=removed_blocks,
    )
    slim = run_passes(REWRITES, state).slim
    assert slim is not None
    return slim.train(training)


class Stopwatch:
    """Seconds per stage, in order."""

    def __init__(self, forward: Stage) -> None:
        self.seconds: dict[str, float] = {}
        self._forward = forward
        self._name = ""
        self._since = 0.0

    def __call__(self, name: str) -> None:
        """Ends the stage before and starts `name`."""
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now
        if name:
            self._forward(name)
