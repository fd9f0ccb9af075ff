"""Distillation: the dense network teaches the slim one, by its outputs and by its features at the kept units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from mdp_fx.errors import InputError
from mdp_fx.graph.axes import Axis, free_dims
from mdp_fx.graph.axis_sizes import kept_mask
from mdp_fx.graph.forward import run_once
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.slice_channels import unit_masks
from mdp_fx.train.objective import first_tensor

_CHANNELS = 1
"""Axis of a feature map's channels."""


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over the examples; both of shape (N, classes).

    Hinton et al., arXiv 1503.02531, section 2: T^2 keeps the size of the gradients.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def feature_loss(student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """The squared distance of features, divided by the teacher's own mean square so that all groups count alike.

    Romero et al. (FitNets, arXiv 1412.6550, eq. 3) without its regressor: pruning has told which units correspond.

    Args:
        student: shape (N, kept units, ...).
        teacher: shape (N, units, ...).
        kept: indices of the kept units.
    """
    wanted = teacher.float().index_select(_CHANNELS, kept.to(teacher.device))
    scale = wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (student.float() - wanted).square().mean() / scale


@dataclass(frozen=True)
class Correspondence:
    """Where the features of a channel group are, in both networks.

    Attributes:
        group: name of the group.
        module: name of the module whose output they are.
        kept: indices of the kept units among the module's output channels.
    """

    group: str
    module: str
    kept: Tensor


def correspondences(
    dense: Analysis, slim: nn.Module, kept: Mapping[str, Sequence[int]], sizes: Mapping[str, int]
) -> tuple[Correspondence, ...]:
    """For every channel group, the last module of both networks whose output has the group's units as channels.

    Args:
        dense: the teacher, analysed.
        slim: the pruned network.
        kept: units that stay, by group.
        sizes: units that each group had before.

    Raises:
        InputError: the teacher has other groups or sizes, or no module of both networks makes a group's features.
    """
    for group in dense.groups:
        if group.name not in kept:
            msg = f"the teacher has a channel group {group.name} that the slim network was not pruned from"
            raise InputError(msg)
        if group.size != sizes[group.name]:
            msg = (
                f"the teacher's channel group {group.name} has {group.size} units, and {sizes[group.name]} in the "
                "network that is pruned: its features do not correspond, set distill.features to 0"
            )
            raise InputError(msg)
    stays = {group.name: kept[group.name] for group in dense.groups}
    masks = unit_masks(dense.groups, stays, [name for name, units in stays.items() if not len(units)])
    called = {str(node.target) for node in _nodes(slim) if node.op == "call_module"}
    counts: dict[str, int] = {}
    for node in dense.graph.module.graph.nodes:
        if node.op == "call_module":
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    names = {group.dim: group.name for group in dense.groups}
    found: dict[str, Correspondence] = {}
    for node in dense.graph.module.graph.nodes:
        types = dense.graph.types.get(node.name)
        target = str(node.target)
        if node.op != "call_module" or target not in called or counts[target] != 1 or not isinstance(types, tuple):
            continue
        if len(types) <= _CHANNELS or not isinstance(types[_CHANNELS], Axis):
            continue
        axis = types[_CHANNELS]
        units = torch.from_numpy(np.flatnonzero(kept_mask(axis, masks)))
        if not len(units):
            continue
        for dim in free_dims(axis):
            if dim in names:
                found[names[dim]] = Correspondence(names[dim], target, units)
    if not found:
        msg = "no module of the teacher and the slim network has the same features: set distill.features to 0"
        raise InputError(msg)
    return tuple(found.values())


def _nodes(module: nn.Module) -> Sequence[fx.Node]:
    return list(module.graph.nodes) if isinstance(module, fx.GraphModule) else []


class Teacher:
    """The dense network, which adds its part to the student's loss.

    The loss is (1 - a) L + a L_logits + b L_features, where a and b are the weights and L_features is the mean over the
    channel groups.

    Args:
        teacher: the dense network; set to eval mode.
        student: the network that is trained (not a wrapper of it), whose modules are listened to.
        logits: weight a.
        temperature: of the logits.
        features: weight b.
        pairs: where the features are; empty without them.
        autocast: context that both networks run in.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        logits: float,
        temperature: float,
        features: float = 0.0,
        pairs: Sequence[Correspondence] = (),
        autocast: Callable[[], Any],
    ) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._logits, self._temperature, self._features = logits, temperature, features
        self._pairs = {pair.module: pair.kept for pair in pairs} if features else {}
        self._autocast = autocast
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._handles: list[RemovableHandle] = []
        for side, network in enumerate((teacher, student)):
            for name in self._pairs:
                self._handles.append(network.get_submodule(name).register_forward_hook(self._listen(side, name)))

    def _listen(self, side: int, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen[side][name] = output

        return hook

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, loss: Tensor) -> Tensor:
        """The loss of the student with the teacher's part.

        Args:
            inputs: of the network.
            outputs: the student's, just computed on these inputs.
            loss: the student's on the labels.
        """
        with torch.no_grad(), self._autocast():
            taught = self._teacher(*inputs)
        if self._logits:
            soft = logits_loss(first_tensor(outputs), first_tensor(taught), self._temperature)
            loss = (1 - self._logits) * loss + self._logits * soft
        if self._pairs:
            teacher, student = self._seen
            parts = [feature_loss(student[name], teacher[name], kept) for name, kept in self._pairs.items()]
            loss = loss + self._features * torch.stack(parts).mean()
        for seen in self._seen:
            seen.clear()
        return loss

    def close(self) -> None:
        """Stops listening."""
        for handle in self._handles:
            handle.remove()


def check_teacher(teacher: nn.Module, student: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Checks that both networks give outputs of one shape.

    Raises:
        InputError: the teacher rejects the inputs, or has other outputs, such as other classes.
        DataError: a network gives no tensor.
    """
    networks = ((teacher, "the teacher"), (student, "the network"))
    shapes = [tuple(first_tensor(run_once(network, inputs, name, None)).shape) for network, name in networks]
    if shapes[0] != shapes[1]:
        mine, its = shapes[1][-1], shapes[0][-1]
        msg = f"the teacher has {its} outputs, the network has {mine}: a teacher must have the same classes"
        raise InputError(msg)
