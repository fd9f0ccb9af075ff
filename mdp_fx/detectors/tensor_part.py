"""The tensor part of a detector: its largest traceable modules, joined where one's output is another's input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from mdp_fx.detectors.observation import Call, Observation, observe, tensors_of
from mdp_fx.errors import MdpFxError, ModelError
from mdp_fx.graph.ops.box_pooling import BoxPooling
from mdp_fx.graph.proxy import ValueProxy
from mdp_fx.graph.trace import trace
from mdp_fx.graph.tracer import is_leaf

MOST_BOXES = 100
"""Boxes per image in the example where none were found: as many as torchvision's detectors give at most."""

_POOLING = "torchvision.ops.poolers.MultiScaleRoIAlign"
_PLAIN = (Tensor, bool, int, float, str, type(None))


@dataclass(frozen=True)
class _Value:
    """A tensor of the tensor part: an input, or a result of a step.

    Attributes:
        index: its place among all of them, inputs first.
        joined: whether axes 0 and 1 are to be joined: rows that are not examples come as (batch, rows of each).
    """

    index: int
    joined: bool = False


@dataclass(frozen=True)
class _Step:
    """A call of a region.

    Attributes:
        path: the region's name.
        leaves: what its (positional, keyword) arguments hold; a `_Value` for every tensor.
        spec: how they are nested.
        kept: which of the leaves of its result are tensors.
    """

    path: str
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    kept: tuple[bool, ...]


@dataclass(frozen=True)
class Boundary:
    """A call of a module, as the trace has seen it.

    Attributes:
        given: leaves of its (positional, keyword) arguments, the names of nodes in place of tensors: see `NodeName`.
        given_spec: how they are nested.
        result: leaves of its result, likewise.
        result_spec: how they are nested.
    """

    given: tuple[Any, ...]
    given_spec: pytree.TreeSpec
    result: tuple[Any, ...]
    result_spec: pytree.TreeSpec


class NodeName(str):
    """The name of a node, in place of its value."""

    __slots__ = ()


@dataclass
class Boundaries:
    """The calls of modules in the latest trace, by module name, inner modules before outer ones."""

    calls: dict[str, list[Boundary]] = field(default_factory=dict)
    _tracer: object = None
    _open: list[tuple[tuple[Any, ...], pytree.TreeSpec]] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Boundaries:
        return self  # Copies of the network that are traced tell the one that asked.

    def watch(self, path: str, module: nn.Module) -> None:
        """Notes the calls of a module that are given proxies."""

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            tracer = next((leaf.tracer for leaf in leaves if type(leaf) is ValueProxy), None)
            if tracer is not None and tracer is not self._tracer:
                self._tracer = tracer
                self.calls.clear()
                self._open.clear()
            # A forward may add to a list that it was given.
            self._open.append((_names(leaves), spec))

        def leave(_module: nn.Module, _args: Any, result: Any) -> None:
            given, given_spec = self._open.pop()
            if any(isinstance(leaf, NodeName) for leaf in given):
                leaves, spec = pytree.tree_flatten(result)
                self.calls.setdefault(path, []).append(Boundary(given, given_spec, _names(leaves), spec))

        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave))

    def close(self) -> None:
        """Notes no more calls."""
        for handle in self._handles:
            handle.remove()


def _names(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(NodeName(leaf.node.name) if type(leaf) is ValueProxy else leaf for leaf in leaves)


class TensorPart(nn.Module):
    """Calls the regions of a detector as its own forward does, with what lies between them as inputs.

    Its modules have their names in the detector, and the detector's own parameters.

    Attributes:
        regions: the names of its regions.
        boundaries: where the modules inside of it begin and end in its trace.
    """

    def __init__(self, network: nn.Module, steps: Sequence[_Step], outputs: dict[str, int]) -> None:
        super().__init__()
        self._steps = tuple(steps)
        self._outputs = outputs
        self.boundaries = Boundaries()
        self.regions = tuple(dict.fromkeys(step.path for step in steps))
        for path in self.regions:
            region = network.get_submodule(path)
            _place(self, path, BoxPooling(region) if _is_pooling(region) else region)
            for inner, module in self.get_submodule(path).named_modules():
                if not is_leaf(module):
                    name = f"{path}.{inner}" if inner else path
                    self.boundaries.watch(name, module)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The maps that leave the regions, by the names of the regions and of their results."""
        values: list[Tensor] = list(inputs)
        for step in self._steps:
            leaves = [_read(values, leaf) if isinstance(leaf, _Value) else leaf for leaf in step.leaves]
            args, kwargs = pytree.tree_unflatten(leaves, step.spec)
            result = pytree.tree_leaves(self.get_submodule(step.path)(*args, **kwargs))
            values.extend(leaf for leaf, kept in zip(result, step.kept, strict=True) if kept)
        return {name: values[index] for name, index in self._outputs.items()}


def _read(values: Sequence[Tensor], leaf: _Value) -> Tensor:
    value = values[leaf.index]
    return value.flatten(0, 1) if leaf.joined else value


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


def join(model: nn.Module, images: tuple[Any, ...]) -> tuple[TensorPart, tuple[Tensor, ...]]:
    """The tensor part of a detector, and example inputs for it.

    Args:
        model: the detector, left unchanged.
        images: the arguments of its forward.

    Raises:
        InputError: it does not take images of this size.
        ModelError: nothing of it can be traced.
    """
    seen = observe(model, images)
    batch = len(tensors_of(images)[0])
    paths = list(_regions(seen, "", batch))
    if not paths:
        raise ModelError(f"{type(model).__name__} runs, but none of its modules can be traced: see mdp-fx inspect")
    joint = _Joint(seen, paths, batch)
    return TensorPart(seen.network, joint.steps, joint.outputs), tuple(joint.inputs)


def _regions(seen: Observation, path: str, batch: int) -> Iterator[str]:
    """Names of the outermost modules below one that can be traced."""
    for name, child in seen.network.get_submodule(path).named_children():
        inner = f"{path}.{name}" if path else name
        calls = seen.calls.get(inner, [])
        if calls and (_is_pooling(child) or (all(map(_is_plain, calls)) and _can_trace(seen, inner, batch))):
            yield inner
        else:
            yield from _regions(seen, inner, batch)


def _is_plain(call: Call) -> bool:
    """Whether a call takes and gives tensors, in containers that torch knows."""
    if not tensors_of(call.given) or not tensors_of(call.result):
        return False
    return all(isinstance(leaf, _PLAIN) for leaf in pytree.tree_leaves((call.given, call.result)))


def _can_trace(seen: Observation, path: str, batch: int) -> bool:
    module = seen.network.get_submodule(path)
    if next(module.parameters(), None) is None:
        return is_leaf(module)  # It only joins others.
    joint = _Joint(seen, [path], batch)
    part = TensorPart(seen.network, joint.steps, joint.outputs)
    try:
        trace(part, tuple(joint.inputs))
    except MdpFxError:
        return False
    finally:
        part.boundaries.close()
    return True


def _is_pooling(module: nn.Module) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == _POOLING


class _Joint:
    """Wires the calls of regions.

    Attributes:
        inputs: examples of what comes from elsewhere.
        steps: the calls, in order.
        outputs: the places of what leaves the regions, by name.
    """

    def __init__(self, seen: Observation, paths: Sequence[str], batch: int) -> None:
        calls = _useful(
            seen, sorted((call for path in paths for call in seen.calls[path]), key=lambda call: call.start)
        )
        self.inputs: list[Tensor] = []
        self.steps: list[_Step] = []
        self.outputs: dict[str, int] = {}
        arguments = [_arguments(seen, call, batch) for call in calls]
        places: dict[int, _Value] = {}
        made: set[int] = set()
        for call, given in zip(calls, arguments, strict=True):
            for leaf in tensors_of(given):
                if id(leaf) not in made and id(leaf) not in places:
                    joined = leaf.shape[:1] != (batch,)
                    places[id(leaf)] = _Value(len(self.inputs), joined)
                    self.inputs.append(_by_example(leaf, batch) if joined else leaf)
            made.update(map(id, tensors_of(call.result)))
        count = len(self.inputs)
        for call, given in zip(calls, arguments, strict=True):
            leaves, spec = pytree.tree_flatten(given)
            wired = tuple(places[id(leaf)] if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            results = pytree.tree_leaves(call.result)
            self.steps.append(_Step(call.path, wired, spec, tuple(isinstance(leaf, Tensor) for leaf in results)))
            for leaf in tensors_of(call.result):
                places[id(leaf)] = _Value(count)
                count += 1
        self._name_outputs(seen, calls, arguments, places, paths)

    def _name_outputs(
        self,
        seen: Observation,
        calls: Sequence[Call],
        arguments: Sequence[Any],
        places: dict[int, _Value],
        paths: Sequence[str],
    ) -> None:
        """Finds the results that are not read by regions alone."""
        wired = {id(leaf) for given in arguments for leaf in tensors_of(given)}
        returned = {id(leaf) for leaf in tensors_of(seen.result)}
        for call in calls:
            for keys, leaf in pytree.tree_flatten_with_path(call.result)[0]:
                if not isinstance(leaf, Tensor):
                    continue
                readers = seen.readers.get(id(leaf), set())
                outside = any(not any(_lies_in(reader, path) for path in paths) for reader in readers)
                if outside or id(leaf) in returned or id(leaf) not in wired:
                    name = ".".join([call.path, *(pytree.keystr((key,)).strip("[]'.") for key in keys)])
                    while name in self.outputs:
                        name += "_"
                    self.outputs[name] = places[id(leaf)].index


def _useful(seen: Observation, calls: Sequence[Call]) -> list[Call]:
    """The calls without those of modules that hold nothing and give nothing to later ones."""
    kept: list[Call] = []
    wanted: set[int] = set()
    for call in reversed(calls):
        holds = next(seen.network.get_submodule(call.path).parameters(), None) is not None
        if holds or not wanted.isdisjoint(map(id, tensors_of(call.result))):
            kept.insert(0, call)
            wanted.update(map(id, tensors_of(call.given)))
    return kept


def _lies_in(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _arguments(seen: Observation, call: Call, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a step gives to its module; a pooling of boxes gets its maps as a list, and the boxes as one tensor."""
    pooling: Any = seen.network.get_submodule(call.path)
    if not _is_pooling(pooling):
        return call.given
    args, kwargs = call.given
    features, boxes, *_ = *args, *kwargs.values()
    maps = [value for name, value in features.items() if name in pooling.featmap_names]
    return (maps, _example_boxes(boxes, batch)), {}


def _example_boxes(found: Sequence[Tensor], batch: int) -> Tensor:
    """As many boxes for each image as were found on average, shape (batch, boxes, 4)."""
    boxes = torch.cat(list(found))
    if not len(boxes):
        boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).to(boxes).expand(MOST_BOXES * batch, 4)
    return _by_example(boxes, batch)


def _by_example(rows: Tensor, batch: int) -> Tensor:
    """Rows as (batch, rows of each, ...); where they do not share out, the first ones come again."""
    each = max(1, -(-len(rows) // batch))
    if not len(rows):
        return rows.new_zeros(batch, MOST_BOXES, *rows.shape[1:])
    return rows[torch.arange(each * batch) % len(rows)].reshape(batch, each, *rows.shape[1:])
