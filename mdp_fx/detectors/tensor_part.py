"""The tensor part of a detector: its largest traceable modules, joined where one's output is another's input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mdp_fx.detectors.boundaries import Boundaries
from mdp_fx.detectors.joint import Joint, Value, boxes_allowed, is_pooling
from mdp_fx.detectors.observation import Call, Observation, memory, observe, own_size, tensors_of
from mdp_fx.errors import MdpFxError, ModelError, ParityError, first_line
from mdp_fx.exporters.parity import compare
from mdp_fx.graph.ops.box_pooling import BoxPooling
from mdp_fx.graph.trace import shadow_of, trace
from mdp_fx.graph.tracer import attribute, is_leaf
from mdp_fx.pipeline import first_example

_PLAIN = (Tensor, bool, int, float, str, type(None))


class TensorPart(nn.Module):
    """Calls the regions of a detector as its own forward does, with what lies between them as inputs.

    Its modules have their names in the detector, and the detector's own parameters.

    Attributes:
        image_shape: of the batch of images that the detector was given.
        regions: the names of its regions.
        boundaries: where the modules inside of it begin and end in its trace.
        refused: (channels, reason) of modules around regions, which cannot be traced as a whole, by name.
    """

    def __init__(self, seen: Observation, joint: Joint, refused: dict[str, tuple[int, str]] | None = None) -> None:
        super().__init__()
        self.image_shape = seen.shape
        self._steps = tuple(joint.steps)
        self._outputs = joint.outputs
        self._stored = joint.stored
        self._constants = tuple(f"constant_{i}" for i in range(len(joint.constants)))
        for name, value in zip(self._constants, joint.constants, strict=True):
            self.register_buffer(name, value)
        self.boundaries = Boundaries()
        self.refused = refused or {}
        self.regions = tuple(dict.fromkeys(step.path for step in joint.steps))
        for path in self.regions:
            region = seen.network.get_submodule(path)
            _place(self, path, BoxPooling(region) if is_pooling(region) else region)
            for inner, module in self.get_submodule(path).named_modules():
                if not is_leaf(module):
                    name = f"{path}.{inner}" if inner else path
                    self.boundaries.watch(name, module)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What leaves the regions: maps by the names of the regions and of their results, and what is stored."""
        if torch.compiler.is_exporting():
            msg = "the regions of a detector are joined by symbolic tracing alone: leave --front-end"
            raise TypeError(msg)
        results = [self._given(), *self.run(inputs)]
        maps = {name: _read(inputs, results, value) for name, value in self._outputs.items()}
        return maps | {name: attribute(self, name) for name in self._stored}

    def _given(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._constants]

    def run(self, inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """What its steps give, one after the other."""
        results = [self._given()]
        for step in self._steps:
            leaves = [_read(inputs, results, leaf) if isinstance(leaf, Value) else leaf for leaf in step.leaves]
            args, kwargs = pytree.tree_unflatten(leaves, step.spec)
            result = pytree.tree_leaves(self.get_submodule(step.path)(*args, **kwargs))
            results.append([leaf for leaf, kept in zip(result, step.kept, strict=True) if kept])
            yield results[-1]


def _read(inputs: Sequence[Tensor], results: Sequence[Sequence[Tensor]], value: Value) -> Tensor:
    found = inputs[value.index] if value.step is None else results[value.step][value.index]
    return found.flatten(0, 1) if value.joined else found


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


def join(model: nn.Module, images: tuple[Any, ...]) -> tuple[TensorPart, tuple[Tensor, ...]]:
    """The tensor part of a detector, and example inputs for it.

    As many boxes are pooled from every image as the detector's settings allow at its own size, from smaller images
    fewer, in proportion to their area: how many it finds in the example says nothing.

    Args:
        model: the detector, left unchanged.
        images: the arguments of its forward.

    Raises:
        InputError: it does not take images of this size.
        ModelError: nothing of it can be traced, or the part computes something else than the detector.
    """
    seen = observe(model, images)
    refused: dict[str, tuple[int, str]] = {}
    paths = list(_regions(seen, "", refused))
    _check(model, images, paths)
    unread = any(not any(name.startswith(f"{path}.") for path in paths) for name in _unread(seen, ""))
    joint = Joint(seen, paths, boxes_allowed(shadow_of(model), _share(model, seen.shape)), all_leave=unread)
    if not joint.calls:
        why = next((f"; {path} {reason}" for path, (_, reason) in refused.items()), "")
        raise ModelError(f"{type(model).__name__} runs, but none of its modules can be traced{why}")
    return TensorPart(seen, joint, refused), tuple(joint.inputs)


def _share(model: nn.Module, shape: torch.Size) -> float:
    """Area of the images over that of the detector's own size, at most 1."""
    own = own_size(model)
    height, width = shape[-2:]
    return 1.0 if own is None else min(1.0, height * width / (own[0] * own[1]))


def _regions(seen: Observation, path: str, refused: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Names of the outermost modules below one that can be traced; notes why others with parameters cannot."""
    for name, child in seen.network.get_submodule(path).named_children():
        inner = f"{path}.{name}" if path else name
        calls = seen.calls.get(inner, [])
        if calls and is_pooling(child):
            yield inner
            continue
        fault = _fault(seen, inner) if calls and all(map(_is_plain, calls)) else ""
        if fault is None:
            yield inner
            continue
        if fault:
            shape = tensors_of(calls[0].result)[0].shape
            refused[inner] = shape[1] if len(shape) > 1 else 1, f"taken apart: {fault}"
        yield from _regions(seen, inner, refused)


def _is_plain(call: Call) -> bool:
    """Whether a call takes and gives tensors, in containers that torch knows."""
    if not tensors_of(call.given) or not tensors_of(call.result):
        return False
    return all(isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves((call.given, call.result)))


def _fault(seen: Observation, path: str) -> str | None:
    """Why a module cannot be a region, empty where that is no news; None where it can."""
    module = seen.network.get_submodule(path)
    if next(module.parameters(), None) is None:
        return None if is_leaf(module) else ""  # It only joins others.
    joint = Joint(seen, [path], {})
    part = TensorPart(seen, joint)
    try:
        traced = trace(part, tuple(joint.inputs))
    except MdpFxError as error:
        return first_line(error.__cause__ or error)
    finally:
        part.boundaries.close()
    unread = _unread(seen, path)
    if unread and traced.training_reads:
        # What train mode gives to it is no result of this module: it must not be pruned.
        return f"only train mode uses {unread[0]} ({traced.training_reads[0]})"
    return None


def _unread(seen: Observation, path: str) -> list[str]:
    """Names of parameters in a module that the run did not use."""
    module = seen.network.get_submodule(path)
    return [name for name, parameter in module.named_parameters() if memory(parameter) not in seen.reads]


def _check(model: nn.Module, images: tuple[Any, ...], paths: Sequence[str]) -> None:
    """Holds the joined regions against a run of the detector on its first image.

    Raises:
        ModelError: they give something else.
    """
    seen = observe(model, first_example(images), paths)
    joint = Joint(seen, paths, None)
    part = TensorPart(seen, joint)
    try:
        with torch.no_grad():
            for call, found in zip(joint.calls, part.run(joint.inputs), strict=True):
                compare(call.copies[1], found, call.path)
    except ParityError as error:
        msg = (
            f"{type(model).__name__} cannot be taken apart: its modules called one by one give something else ({error})"
        )
        raise ModelError(msg) from error
    finally:
        part.boundaries.close()
