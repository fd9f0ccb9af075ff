"""The pipeline: the passes in order, and running them."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, ParityError
from mdp_fx.exporters.parity import compare
from mdp_fx.graph.trace import detached_copy
from mdp_fx.passes.base import Compilation, Pass, Stage, batch_of, run_passes, silent
from mdp_fx.passes.channel_groups import FindChannelGroups
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.cost_regions import FindCostRegions
from mdp_fx.passes.drop_blocks import DropBlocks
from mdp_fx.passes.front_end import Choice, InferAxisTypes, TraceModel
from mdp_fx.passes.normalize import Normalize
from mdp_fx.passes.residual_blocks import FindResidualBlocks
from mdp_fx.passes.slice_channels import SliceChannels, slice_channels

FRONT_END: tuple[Pass, ...] = (TraceModel(), Normalize(), InferAxisTypes())
ANALYSES: tuple[Pass, ...] = (FindChannelGroups(), FindResidualBlocks(), FindCostRegions())
REWRITES: tuple[Pass, ...] = (SliceChannels(), DropBlocks())


def as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as positional arguments; a single tensor may be given bare."""
    return tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)


def analyse(model: nn.Module, example_inputs: Any, *, front_end: Choice = "auto", stage: Stage = silent) -> Analysis:
    """Runs every analysis pass.

    Args:
        model: the dense network, left unchanged.
        example_inputs: positional arguments of its forward; axis 0 is the batch that latency is asked for.
        front_end: "symbolic" tracing, torch.export ("export"), or "auto": the first of them that can follow the model.
        stage: called with the name of each pass as it starts.
    """
    if not isinstance(model, nn.Module):
        msg = f"the model must be a torch.nn.Module, not {type(model).__name__}"
        raise InputError(msg)
    inputs = as_inputs(example_inputs)
    if batch_of(inputs) == 0:
        msg = "the example inputs hold an empty batch: give at least one example"
        raise InputError(msg)
    asked = Compilation(model, inputs)
    state = run_passes((TraceModel(front_end=front_end), *FRONT_END[1:]), asked, stage=stage)
    assert state.traced is not None
    assert state.graph is not None
    if state.traced.batch is not None and not _batch_is_open(state):
        # Something ties the batch to a constant: it must be the user's batch then, not the doubled one.
        state = run_passes((TraceModel(open_batch=False, front_end=front_end), *FRONT_END[1:]), asked, stage=stage)
    state = run_passes(ANALYSES, state, stage=stage)
    assert state.graph is not None
    assert state.groups is not None
    assert state.blocks is not None
    assert state.regions is not None
    return Analysis(state.graph, state.groups, state.blocks, state.regions)


def _batch_is_open(state: Compilation) -> bool:
    """Whether the graph takes any batch: its types say so, and other batches give what the model gives.

    They are run only where the forward looked at sizes: numbers that it made of the batch's size are baked in.
    """
    assert state.traced is not None
    assert state.graph is not None
    if state.graph.batch is None or not state.traced.reads_batch:
        return state.graph.batch is not None
    network, model = slice_channels(state.graph, {}), detached_copy(state.model).eval()
    return all(_agree(model, network, state.inputs, rows) for rows in (1, 2 * state.batch + 1))


def _agree(model: nn.Module, network: fx.GraphModule, inputs: tuple[Any, ...], rows: int) -> bool:
    """Whether a model and its graph give the same for a number of examples, or the model does not take that many."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        several = leaf[[0] * rows]
        if leaf.is_floating_point():
            # Examples that differ show their order.
            several = several * torch.linspace(1, 2, rows, dtype=leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        return several

    batch = pytree.tree_map(resize, inputs)
    with torch.no_grad():
        try:
            expected = model(*copy.deepcopy(batch))
        except Exception:  # noqa: BLE001 - the user's own forward: what it does not take, the graph need not take
            return True
        try:
            found = fx.Interpreter(network).run(*copy.deepcopy(batch))
            compare(expected, found)
        except (ParityError, RuntimeError, ValueError, IndexError, TypeError):
            return False
    numbers = [[leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, int)] for value in (expected, found)]
    return numbers[0] == numbers[1]


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
