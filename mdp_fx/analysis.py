"""The analysis passes in order: what a network offers to prune."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, NothingToPruneError, ParityError
from mdp_fx.exporters.parity import compare
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.base import Compilation, Pass, Stage, batch_of, run_passes, silent
from mdp_fx.passes.build_space import Analysis, Choices, option_sizes
from mdp_fx.passes.channel_groups import ChannelGroup, FindChannelGroups, find_frozen, owner
from mdp_fx.passes.cost_regions import FindCostRegions
from mdp_fx.passes.drop_blocks import DropBlocks
from mdp_fx.passes.front_end import InferAxisTypes, TraceModel
from mdp_fx.passes.normalize import Normalize
from mdp_fx.passes.residual_blocks import FindResidualBlocks, ResidualBlock
from mdp_fx.passes.search_space import Dimension
from mdp_fx.passes.slice_channels import SliceChannels, slice_channels

FRONT_END: tuple[Pass, ...] = (TraceModel(), Normalize(), InferAxisTypes())
ANALYSES: tuple[Pass, ...] = (FindChannelGroups(), FindResidualBlocks(), FindCostRegions())
REWRITES: tuple[Pass, ...] = (SliceChannels(), DropBlocks())


def as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as positional arguments; a single tensor may be given bare."""
    return tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)


def analyse(model: nn.Module, example_inputs: Any, *, stage: Stage = silent) -> Analysis:
    """Runs every analysis pass.

    Args:
        model: the dense network, left unchanged.
        example_inputs: positional arguments of its forward; axis 0 is the batch that latency is asked for.
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
    state = run_passes(FRONT_END, asked, stage=stage)
    assert state.traced is not None
    assert state.graph is not None
    if state.traced.batch is not None and not _batch_is_open(state):
        # Something ties the batch to a constant: it must be the user's batch then, not the doubled one.
        state = run_passes((TraceModel(open_batch=False), *FRONT_END[1:]), asked, stage=stage)
    state = run_passes(ANALYSES, state, stage=stage)
    assert state.graph is not None
    assert state.groups is not None
    assert state.blocks is not None
    assert state.regions is not None
    return Analysis(state.graph, state.groups, state.blocks, state.regions)


def _batch_is_open(state: Compilation) -> bool:
    """Whether the graph takes any batch: its types say so, and a batch of one gives what the model gives.

    That is run only where the forward looked at sizes: numbers that it made of the batch's size are baked in.
    """
    assert state.traced is not None
    assert state.graph is not None
    if state.graph.batch is None or not state.traced.reads_batch:
        return state.graph.batch is not None
    single = pytree.tree_map(lambda leaf: leaf[:1] if isinstance(leaf, torch.Tensor) else leaf, state.inputs)
    network = slice_channels(state.graph, {})
    with torch.no_grad():
        expected = copy.deepcopy(state.model).eval()(*copy.deepcopy(single))
        try:
            found = fx.Interpreter(network).run(*copy.deepcopy(single))
            compare(expected, found)
        except (ParityError, RuntimeError, ValueError, IndexError, TypeError):
            return False
    numbers = [[leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, int)] for value in (expected, found)]
    return numbers[0] == numbers[1]


def choose(analysis: Analysis, step: int, keep: Sequence[str] = (), only: Sequence[str] = ()) -> Choices:
    """What may be pruned.

    Args:
        analysis: the analysed network.
        step: channel step; a group of no more units is held.
        keep: patterns of module names to leave alone.
        only: patterns of module names to prune; all where empty.

    Raises:
        InputError: a step below 1, or a pattern that no module matches.
        NothingToPruneError: nothing is left; the message says why.
    """
    if not isinstance(step, int) or step < 1:
        msg = f"the channel step must be a whole number of at least 1, not {step!r}"
        raise InputError(msg)
    names = [str(node.target) for node in analysis.graph.module.graph.nodes if node.op in ("call_module", "get_attr")]
    for pattern in [*keep, *only]:
        if not any(_matches(name, pattern) for name in names):
            msg = f"no module of the network matches {pattern!r}: see `mdp-fx inspect` for their names"
            raise InputError(msg)

    def open_to(modules: Sequence[str]) -> bool:
        if any(_matches(name, pattern) for name in modules for pattern in keep):
            return False
        return not only or all(any(_matches(name, pattern) for pattern in only) for name in modules)

    dimensions = tuple(Dimension(group.name, option_sizes(group.size, step)) for group in analysis.groups)
    held = frozenset(group.name for group in analysis.groups if not open_to(_makers(group)))
    blocks = frozenset(
        block.name for block in analysis.blocks.removable if open_to(_block_modules(analysis.graph, block))
    )
    if not blocks and all(len(d.sizes) == 1 or d.name in held for d in dimensions):
        raise NothingToPruneError(_why_nothing(analysis, step, bool(keep or only)))
    return Choices(dimensions, held, blocks)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _makers(group: ChannelGroup) -> list[str]:
    """Modules that make the group's units, rather than read them: a norm's tensors have no other axis."""
    made = [owner(member.tensor) for member in group.members if member.axis == 0 and member.rank > 1]
    return list(dict.fromkeys(made)) or list(group.modules)


def _block_modules(graph: PruneGraph, block: ResidualBlock) -> list[str]:
    inside = set(block.nodes)
    return [str(n.target) for n in graph.module.graph.nodes if n.name in inside and n.op in ("call_module", "get_attr")]


def _why_nothing(analysis: Analysis, step: int, patterns: bool) -> str:
    if patterns:
        return "nothing is left to prune: --keep and --only exclude every channel group and block"
    if analysis.groups:
        largest = max(group.size for group in analysis.groups)
        return f"nothing to prune: the largest channel group has {largest} units, --step {step} offers no smaller size"
    frozen = find_frozen(analysis.graph)
    if not frozen:
        return "nothing to prune: the network has no layer with prunable channels"
    return f"nothing to prune: every channel is frozen, as {frozen[0].where} is ({frozen[0].reason})"


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
