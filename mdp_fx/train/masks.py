"""Masks that a training loop prunes with: which units and blocks are in force, and the slim network they stand for."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, one_of
from mdp_fx.exporters.parity import compare
from mdp_fx.graph.axes import BoolArray, Dim
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.importance import NEEDS, SMALLEST, LayerImportance
from mdp_fx.passes.slice_channels import unit_masks
from mdp_fx.passes.soft_mask import masked_network
from mdp_fx.pipeline import rewrite

MaskKind = Literal["hard", "soft"]
MASK_KINDS: tuple[str, ...] = get_args(MaskKind)

PARITY = 1e-5
"""Largest difference of the masked to the slim network in float64, over the largest output."""

RETURNING = 0.1
"""What the gradient score of a softly masked unit counts, over that of a kept one.

Training brings w g of a kept unit near to zero; of a masked one, whose weights move by -g with every update and to no
effect, it only grows. At face value masked and kept units take turns at every step, and accuracy is lost each time.
"""

PRODUCED = ("taylor", "taylor-filter", "taylor-squared", "fisher")
"""Kinds that look at gradients of what makes a channel: softly masked ones have none there."""


def check_masks(kind: str, importance: str, steps: int) -> None:
    """Checks the kind of masks, and that softly masked channels can come back at a later step.

    Raises:
        InputError: there is no such kind, or the importance says nothing of what is masked.
    """
    if kind not in MASK_KINDS:
        raise InputError(f"unknown masks {kind!r}{one_of(kind, MASK_KINDS, 'there are')}")
    if kind == "soft" and importance in PRODUCED and steps > 1:
        raise InputError(
            f"{importance} importance says nothing of softly masked channels, which could never come back: "
            "take taylor-input, activation or a norm of the weights, or hard masks"
        )


def check_trained(importance: str, model: nn.Module) -> None:
    """Checks that the importance says something while a network is trained.

    Raises:
        InputError: it looks at what batch norms hide.
    """
    if importance == "taylor-filter" and any(
        isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules()
    ):
        raise InputError(
            "taylor-filter importance says nothing while batch norms train: they undo any scale of a filter, so that "
            "gradient times weight adds up to zero; take taylor, which looks at the norms"
        )


class Masks:
    """A dense network under masks.

    Args:
        analysis: of the dense network, on the CPU; its tensors are this object's to overwrite.
        kind: one of `MASK_KINDS`: what is masked hard is zero and never comes back, what is masked softly may.

    Attributes:
        network: the masked network, to train.
        kept: indices of the kept units, by group.
        removed: names of the removed blocks, those inside of a removed block included.
    """

    def __init__(self, analysis: Analysis, kind: str) -> None:
        self.soft = kind == "soft"
        self.kept: dict[str, list[int]] = {group.name: list(range(group.size)) for group in analysis.groups}
        self.removed: tuple[str, ...] = ()
        self.network = masked_network(analysis.graph, analysis.blocks, soft=self.soft)
        self._analysis = analysis

    @property
    def module(self) -> fx.GraphModule:
        """The masked network."""
        return self.network.module

    def choose(self, kept: Mapping[str, Sequence[int]], removed: Sequence[str], unused: Collection[str] = ()) -> int:
        """Puts a structure in force; hard masks also set what they mask to zero.

        Args:
            kept: indices of the kept units, by group.
            removed: names of the removed blocks.
            unused: groups that nothing uses without these blocks; how many units they have says nothing.

        Returns:
            How many units come back that were masked.
        """
        used = {name: units for name, units in kept.items() if name not in unused}
        back = sum(len(set(units) - set(self.kept[name])) for name, units in used.items())
        self.restore(kept, removed)
        if not self.soft:
            self.network.zero()
        return back

    def restore(self, kept: Mapping[str, Sequence[int]], removed: Sequence[str]) -> None:
        """Puts a structure in force that was in force already; the arguments are those of `choose`."""
        self.kept = {name: sorted(units) for name, units in kept.items()}
        self.removed = tuple(removed)
        self.network.set(self._in_force(), self.removed)

    def at_most(self) -> dict[str, int]:
        """Units that each group can have from now on: hard masks give none back."""
        return {} if self.soft else {name: len(units) for name, units in self.kept.items() if units}

    def gone(self) -> tuple[str, ...]:
        """Blocks that are removed for good."""
        return () if self.soft else self.removed

    def standing(self, scores: Sequence[LayerImportance], kind: str) -> tuple[LayerImportance, ...]:
        """Scores as the next choice is to see them.

        Units that are masked for good are worth nothing, and all others something; those of softly masked units and
        removed blocks are discounted (`RETURNING`), where gradients made them.

        Args:
            scores: of all units, as they were gathered.
            kind: of importance.
        """
        if not self.soft:
            return tuple(replace(each, values=self._standing(each)) for each in scores)
        if NEEDS[kind] != "gradients":
            return tuple(scores)
        in_force = self._in_force()
        kept = {group.name: in_force[group.dim] for group in self._analysis.groups}
        removed = (block for block in self._analysis.blocks.removable if block.name in self.removed)
        closed = {node for block in removed for node in block.nodes}
        return tuple(
            replace(each, values=np.where(kept[each.group] & (each.layer not in closed), 1.0, RETURNING) * each.values)
            for each in scores
        )

    def _in_force(self) -> dict[Dim, BoolArray]:
        emptied = self._analysis.blocks.emptied(self.removed)
        return unit_masks(self._analysis.groups, self.kept, emptied)

    def _standing(self, score: LayerImportance) -> Any:
        kept = self.kept[score.group]
        values = np.zeros_like(score.values)
        if kept:
            least = SMALLEST * float(score.values.max(initial=0.0)) or SMALLEST
            values[kept] = np.maximum(score.values[kept], least)
        return values

    def slim(self) -> fx.GraphModule:
        """The slim network, on the CPU in eval mode, with the weights as they are; checked against the masked one.

        Raises:
            ParityError: the two compute something else.
        """
        self._take_over()
        slim = rewrite(self._analysis, self.kept, self.removed)
        self._check(slim)
        return slim

    @torch.no_grad()
    def _take_over(self) -> None:
        """Copies the weights and statistics of the trained network to the one that is sliced."""
        stored = self._analysis.graph.module
        for named in (stored.named_parameters(), stored.named_buffers()):
            for name, tensor in named:
                if name in self.network.paths:
                    tensor.copy_(self.network.tensor(name))

    @torch.no_grad()
    def _check(self, slim: fx.GraphModule) -> None:
        # A new copy: whoever trains may have wrapped the forward of the network itself.
        fresh = masked_network(self._analysis.graph, self._analysis.blocks, soft=self.soft).module
        state = self.module.state_dict()
        fresh.load_state_dict({name: state[name].cpu() for name in fresh.state_dict()})
        inputs = pytree.tree_map(_double, self._analysis.graph.example_inputs)
        masked, sliced = fresh.double().eval()(*inputs), copy.deepcopy(slim).double().eval()(*inputs)
        compare(masked, sliced, "the slim network, beside the masked one,", PARITY)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
