"""Layer masks, as HALP and MDP write them: which output channels of every layer stay, turned into a slim network.

A mask file is a pickled dictionary from a layer's name to a tensor of zeros and ones, one per output channel. HALP's
group masks, whose keys are tuples of the names of coupled layers, are read as well. A layer without a mask keeps what
the layers that it is coupled with keep.

A layer whose mask is all zero lets nothing through. Where that closes every path through a block that can be removed,
the block goes, as in the networks that HALP and MDP build; the channels that it adds to live on by their other layers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from mdp_fx.detectors.subject import subject_of
from mdp_fx.errors import RecipeError
from mdp_fx.graph.axes import Axis, BoolArray, Dim
from mdp_fx.graph.axis_sizes import kept_mask, occurrences
from mdp_fx.mask_file import MaskFile, load_mask_file, named_masks
from mdp_fx.passes.base import Stage, silent
from mdp_fx.passes.channel_groups import find_frozen, owner
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.front_end import Choice
from mdp_fx.passes.importance import find_layers
from mdp_fx.passes.residual_blocks import ResidualBlock
from mdp_fx.passes.space_blocks import outermost
from mdp_fx.pipeline import analyse, as_inputs, rewrite
from mdp_fx.recipe import Recipe, fingerprint
from mdp_fx.report.facts import Change, GroupRow, MaskReport
from mdp_fx.run_report import versions

METHOD = "layer masks"
"""What a recipe made from masks says in place of a method: nothing was scored, measured or optimised here."""

_NEEDED = "the rest of the network needs it"
_PREFIX = "module."  # of a network in DataParallel


@dataclass(frozen=True)
class MaskedResult:
    """What `apply_masks` returns.

    Attributes:
        module: the slim network.
        recipe: what was kept and removed; `apply` repeats it on the same dense network.
        report: the facts.
    """

    module: nn.Module
    recipe: Recipe
    report: MaskReport


def apply_masks(
    model: nn.Module,
    masks: Mapping[Any, Tensor] | MaskFile | str | os.PathLike[str],
    example_inputs: Any,
    *,
    front_end: Choice = "auto",
    stage: Stage = silent,
) -> MaskedResult:
    """Makes the slim network that layer masks describe.

    It equals the dense network with the channels that the masks drop set to zero, norms included; what blocks that are
    removed would still add as a constant is in the report's warnings.

    Args:
        model: the dense network; left unchanged.
        masks: a mask file, or zeros and ones by layer name, with or without a leading "module."; a tuple of names
            stands for each of its layers.
        example_inputs: a tensor, or the positional arguments of its forward.
        front_end: "symbolic", "export", or "auto": the first of them that can follow the model.
        stage: called with the name of each stage as it starts.

    Raises:
        InputError: the file is no mask file.
        RecipeError: the masks do not fit the network, or one another; the message names the layers.
    """
    if isinstance(masks, str | os.PathLike):
        masks = load_mask_file(masks)
    if isinstance(masks, MaskFile):
        found, source = masks.masks, {"source": masks.name, "sha256": masks.sha256}
    else:
        found, source = named_masks(masks, "the masks"), {"source": "Python"}
    inputs = as_inputs(example_inputs)
    subject = subject_of(model, inputs)
    analysis = analyse(subject.module, subject.inputs, front_end=front_end, stage=stage)
    stage("fit the masks")
    fit = _Fit(analysis, _by_layer(analysis, model, found))
    removed = fit.removed_blocks()
    kept = fit.kept(removed)
    stage("rewrite")
    graph = rewrite(analysis, kept, [block.name for block in removed], training=model.training)
    slim = subject.returned(analysis, graph)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    sizes = {group.name: group.size for group in analysis.groups}
    recipe = Recipe(
        kept=kept,
        removed_blocks=[block.name for block in removed],
        group_sizes=sizes,
        method=METHOD,
        target="",
        budgets={},
        predicted={},
        certificate={"method": METHOD, "layers": len(found), **source},
        importance="none",
        step=1,
        input_shapes=[list(value.shape) for value in tensors],
        input_dtypes=[str(value.dtype).removeprefix("torch.") for value in tensors],
        fingerprint=fingerprint(model),
        versions=versions(),
        front_end=analysis.graph.front_end,
    )
    report = MaskReport(
        source=source["source"],
        layers=len(found),
        params=Change(_count(model), _count(slim)),
        groups=tuple(GroupRow(g.name, g.size, len(kept[g.name]), g.modules) for g in analysis.groups),
        removed_blocks=tuple(block.name for block in removed),
        warnings=(*fit.warnings(removed), *(fit.unnamed() if "sha256" in source else ())),
    )
    return MaskedResult(slim, recipe, report)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class _Layer:
    """A layer with prunable channels.

    Attributes:
        name: its name in the network.
        out: the type of its output channels.
        nodes: the nodes that call it.
        mask: which of its output channels stay, shape (channels,); None where the masks do not say.
    """

    name: str
    out: Axis
    nodes: frozenset[str]
    mask: BoolArray | None

    @property
    def closed(self) -> bool:
        """Whether its mask leaves nothing."""
        return self.mask is not None and not self.mask.any()


def _by_layer(analysis: Analysis, model: nn.Module, masks: Mapping[str, Tensor]) -> tuple[_Layer, ...]:
    """Every layer with prunable channels, with its mask.

    Raises:
        RecipeError: the masks belong to another network.
    """
    owners = {id(tensor): owner(name) for name, tensor, _ in analysis.graph.stored()}
    outs: dict[str, Axis] = {}
    nodes: dict[str, set[str]] = {}
    for layer in find_layers(analysis.graph):
        name = owners[id(layer.weight)]
        outs.setdefault(name, layer.out)
        nodes.setdefault(name, set()).add(layer.node)
    names = {name for name, _ in model.named_modules() if name}
    own: dict[str, BoolArray] = {}
    for given, mask in masks.items():
        name = given if given in names else given.removeprefix(_PREFIX)
        if name in own:
            raise RecipeError(f"the masks name layer {name!r} twice, with and without {_PREFIX!r}")
        if name not in names:
            raise RecipeError(f"the network has no layer {given!r}: the masks belong to another network")
        own[name] = mask.cpu().numpy()
        _check_size(model.get_submodule(name), name, own[name], outs.get(name))
        if name not in outs and not own[name].all():
            why = next((row.reason for row in find_frozen(analysis.graph) if row.where == name), "they are not its own")
            raise RecipeError(f"layer {name!r} cannot lose the channels that its mask drops: {why}")
    return tuple(_Layer(name, out, frozenset(nodes[name]), own.get(name)) for name, out in outs.items())


def _check_size(module: nn.Module, name: str, mask: BoolArray, out: Axis | None) -> None:
    size = out.size if out is not None else getattr(module, "out_channels", getattr(module, "out_features", None))
    if size is None:
        raise RecipeError(f"{name!r} has a mask, and is a {type(module).__name__}, which makes no channels of its own")
    if size != mask.size:
        raise RecipeError(
            f"the mask of layer {name!r} has {mask.size} entries and the layer {size} output channels: "
            "the masks belong to another network"
        )


class _Fit:
    """How masks fit a network.

    Args:
        analysis: of the dense network.
        layers: all its layers with prunable channels.
    """

    def __init__(self, analysis: Analysis, layers: tuple[_Layer, ...]) -> None:
        self._analysis = analysis
        self._blocks = analysis.blocks
        self._layers = layers
        self._nodes = {node.name: node for node in analysis.graph.module.graph.nodes}
        self._closed = {node for layer in layers if layer.closed for node in layer.nodes}
        self._groups = {group.dim: group.name for group in analysis.groups}

    def removed_blocks(self) -> tuple[ResidualBlock, ...]:
        """The outermost removable blocks that layers without channels close.

        Raises:
            RecipeError: they are all operands of an addition, or all that is joined.
        """
        names = [block.name for block in self._blocks.removable if self._behind(block) is not None]
        removed = outermost(self._blocks.removable, names)
        for together in self._blocks.exclusive:
            if {block.name for block in removed}.issuperset(together):
                which = " and ".join(map(repr, together))
                raise RecipeError(f"the masks leave nothing of blocks {which}: one of them must stay")
        return removed

    def warnings(self, removed: Iterable[ResidualBlock]) -> Iterable[str]:
        """What the removed blocks add even so, as far as their masks say."""
        for block in removed:
            behind = self._behind(block) or set()
            alive = [layer.name for layer in self._layers if layer.nodes & behind]
            if alive:
                yield (
                    f"block {block.name} is removed because nothing passes it; what {', '.join(alive)} would still add "
                    "as a constant, from norms and biases, goes with it"
                )

    def unnamed(self) -> Iterable[str]:
        """That groups have no mask: a file of HALP or MDP has one for every convolution, unless the network is another.

        Masks from Python may name what they like.
        """
        named = {dim for layer in self._layers if layer.mask is not None for dim, _ in occurrences(layer.out)}
        rest = [name for dim, name in self._groups.items() if dim not in named]
        if rest:
            what = f"the masks say nothing of {len(rest)} of {len(self._groups)} channel groups"
            yield f"{what}, such as {rest[0]!r}, which keep all: were they made for another network?"

    def kept(self, removed: Iterable[ResidualBlock]) -> dict[str, list[int]]:
        """The units that every channel group keeps.

        Raises:
            RecipeError: a layer without channels stays, layers of one group disagree, or a mask parts what cannot be.
        """
        removed = tuple(removed)
        gone = {node for block in removed for node in block.nodes}
        there = [layer for layer in self._layers if not layer.nodes <= gone]
        chosen: dict[Dim, tuple[str, BoolArray]] = {}
        for layer in there:
            if layer.mask is None:
                continue
            if layer.closed:
                raise self._left_empty(layer, there)
            for dim, units in self._units(layer, layer.mask).items():
                name, other = chosen.setdefault(dim, (layer.name, units))
                if not units.any():
                    raise RecipeError(f"the masks leave nothing of channel group {self._groups[dim]!r}: {_NEEDED}")
                if not np.array_equal(units, other):
                    differ = f"differ in {(units != other).sum()} of {dim.size} channels"
                    raise RecipeError(
                        f"the masks of layers {name!r} and {layer.name!r} {differ}, but both make channel group "
                        f"{self._groups[dim]!r}: they must agree"
                    )
        kept = {self._groups[dim]: np.flatnonzero(units).tolist() for dim, (_, units) in chosen.items()}
        emptied = self._blocks.emptied(block.name for block in removed)
        return {
            group.name: [] if group.name in emptied else kept.get(group.name, list(range(group.size)))
            for group in self._analysis.groups
        }

    def _units(self, layer: _Layer, mask: BoolArray) -> dict[Dim, BoolArray]:
        """The units that a layer's mask keeps, of every dimension that its channels are made of.

        Raises:
            RecipeError: it drops a part of what can only go together.
        """
        found: dict[Dim, BoolArray] = {}
        for dim, units in occurrences(layer.out):
            if dim in self._groups:
                found.setdefault(dim, np.zeros(dim.size, dtype=bool))[units[(units >= 0) & mask]] = True
        parted = int((kept_mask(layer.out, found) & ~mask).sum())
        if parted:
            what = f"the mask of layer {layer.name!r} drops {parted} of the channels that can only go together"
            raise RecipeError(f"{what}, as in the groups of a grouped convolution, and keeps others of them")
        return found

    def _behind(self, block: ResidualBlock) -> set[str] | None:
        """The nodes between a block's output and the layers that close it; None where a path leads through it."""
        inside = set(block.nodes)
        waiting, seen, met = [self._nodes[block.nodes[-1]]], set[str](), False
        while waiting:
            node = waiting.pop()
            if node.name in seen:
                continue
            if node.name in self._closed:
                met = True
                continue
            seen.add(node.name)
            sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
            if any(source.name not in inside for source in sources):
                return None
            waiting.extend(sources)
        return seen if met else None

    def _left_empty(self, layer: _Layer, there: Collection[_Layer]) -> RecipeError:
        dims = {dim for dim, _ in occurrences(layer.out) if dim in self._groups}
        mates = [other for other in there if dims & {dim for dim, _ in occurrences(other.out)}]
        alive = [other.name for other in mates if not other.closed]
        group = self._groups[next(dim for dim, _ in occurrences(layer.out) if dim in dims)]
        if not alive:
            names = ", ".join(repr(other.name) for other in mates[:3]) + (", ..." if len(mates) > 3 else "")
            return RecipeError(f"the masks leave nothing of channel group {group!r} (layers {names}): {_NEEDED}")
        staying = [block for block in self._blocks.kept if layer.nodes & set(block.nodes)]
        why = f"; block {staying[0].name!r} must stay: {staying[0].reason}" if staying else ""
        return RecipeError(
            f"the mask of layer {layer.name!r} is all zero, but {alive[0]!r} of the same channel group {group!r} stays "
            f"and no block that can be removed goes with the layer{why}"
        )
