"""The wiring of regions: which call is given what, and what leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mdp_fx.detectors.observation import Call, Observation, Read, is_a, memory, stored_in, tensors_of

_POOLING = "torchvision.ops.poolers.MultiScaleRoIAlign"


@dataclass(frozen=True)
class Value:
    """A tensor of the tensor part.

    Attributes:
        step: the number of the step that gives it, from 1 on; 0 for a constant, None for an input.
        index: its place among the constants, the inputs, or the tensors that the step gives.
        joined: whether axes 0 and 1 are to be joined: rows that are not examples come as (batch, rows of each).
    """

    step: int | None
    index: int
    joined: bool = False


@dataclass(frozen=True)
class Step:
    """A call of a region.

    Attributes:
        path: the region's name.
        leaves: what its (positional, keyword) arguments hold; a `Value` for every tensor.
        spec: how they are nested.
        kept: which of the leaves of its result are tensors.
    """

    path: str
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    kept: tuple[bool, ...]


def is_pooling(module: nn.Module) -> bool:
    """Whether a module pools boxes from the maps of a pyramid, as torchvision's does."""
    return is_a(module, _POOLING) and type(module).forward.__qualname__ == "MultiScaleRoIAlign.forward"


def boxes_allowed(network: nn.Module, share: float) -> dict[str, int]:
    """How many boxes of an image the poolings of torchvision's R-CNNs are given at most, by their names.

    Args:
        network: the detector, in eval mode.
        share: of its settings that counts.
    """
    asked = [module for module in network.modules() if callable(getattr(module, "post_nms_top_n", None))]
    found: dict[str, int] = {}
    for path, heads in network.named_modules():
        for name, module in heads.named_children():
            if is_pooling(module) and hasattr(heads, "detections_per_img"):
                proposals = name == "box_roi_pool" and asked
                allowed: Any = asked[0].post_nms_top_n() if proposals else heads.detections_per_img  # type: ignore[operator]
                found[f"{path}.{name}"] = max(1, round(int(allowed) * share))
    return found


class Joint:
    """Wires the calls of regions.

    A tensor that code outside of them writes to comes from elsewhere from then on. What that code reads leaves the
    regions: parameters and buffers too.

    Args:
        seen: a run of the detector.
        paths: the names of the regions.
        boxes: how many boxes of an image a pooling is given, by its name; elsewhere as many as were found, at least
            one. None leaves everything as it was found, for a batch of one.
        all_leave: whether code that was not seen may read any result.

    Attributes:
        inputs: examples of what comes from elsewhere.
        constants: what does not vary with the images, or is one number: no example of a batch has a part in it.
        calls: those that were wired, in order; without those that hold nothing and give nothing to later ones.
        steps: how, one for each.
        outputs: what leaves the regions, by name.
        stored: names of parameters and buffers that leave them.
    """

    def __init__(
        self,
        seen: Observation,
        paths: Sequence[str],
        boxes: Mapping[str, int] | None,
        *,
        all_leave: bool = False,
    ) -> None:
        self.inputs: list[Tensor] = []
        self.constants: list[Tensor] = []
        self.steps: list[Step] = []
        self.outputs: dict[str, Value] = {}
        self._seen = seen
        self._boxes = boxes
        found = (call for path in paths for call in seen.calls.get(path, ()))
        self.calls = _useful(seen, sorted(found, key=lambda call: call.start))
        self._starts = {call.start for call in self.calls}
        self._network = set(map(memory, stored_in(seen.network).values()))
        self._left = {key for key, reads in seen.reads.items() if any(map(self._is_outside, reads))}
        self._left.update(map(memory, tensors_of(seen.result)))
        self._places: dict[int, tuple[Value, int]] = {}
        used = {value for call in self.calls for value in self._wire(call)}
        for number, call in enumerate(self.calls, 1):
            for index, (name, leaf) in enumerate(_named(call)):
                value = Value(number, index)
                if all_leave or memory(leaf) in self._left or value not in used:
                    self._leaves(name, value)
        regions = ((path, seen.network.get_submodule(path)) for path in paths)
        self.stored = tuple(
            f"{path}.{name}"
            for path, region in regions
            for name, tensor in stored_in(region).items()
            if memory(tensor) in self._left
        )

    def _is_outside(self, read: Read) -> bool:
        return self._starts.isdisjoint(read.open)

    def _wire(self, call: Call) -> Iterator[Value]:
        """Adds a call as a step: the values that it is given."""
        copies = dict(zip(map(id, tensors_of(call.given)), call.copies[0], strict=False))
        given = _arguments(self._seen, call, lambda boxes: self._example_boxes(call.path, boxes))
        leaves, spec = pytree.tree_flatten(given)
        wired = [self._wired(call, leaf, copies) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        results = pytree.tree_leaves(call.result)
        for index, leaf in enumerate(tensors_of(results)):
            self._places[id(leaf)] = Value(len(self.steps) + 1, index), call.start
        self.steps.append(Step(call.path, tuple(wired), spec, tuple(isinstance(leaf, Tensor) for leaf in results)))
        yield from (leaf for leaf in wired if isinstance(leaf, Value))

    def _wired(self, call: Call, leaf: Tensor, copies: Mapping[int, Tensor]) -> Value:
        """Where a tensor that a call is given comes from."""
        if id(leaf) in self._places:
            value, since = self._places[id(leaf)]
            reads = self._seen.reads.get(memory(leaf), set())
            if not any(read.writes and self._is_outside(read) and since < read.after <= call.start for read in reads):
                return value
        example = copies.get(id(leaf), leaf)
        if not leaf.ndim or memory(leaf) in self._network:
            value = Value(0, len(self.constants))
            self.constants.append(example.detach())
            self._left.add(memory(leaf))
            if leaf.ndim:
                self._leaves(f"{call.path}.given", value)  # The detector's own is not sliced.
            return value
        joined = leaf.shape[:1] != self._seen.shape[:1]
        value = Value(None, len(self.inputs), joined)
        self.inputs.append(self._by_example(example) if joined else example)
        self._places[id(leaf)] = value, call.start
        return value

    def _leaves(self, name: str, value: Value) -> None:
        while name in self.outputs:
            name += "_"
        self.outputs[name] = value

    def _example_boxes(self, path: str, found: Sequence[Tensor]) -> Tensor:
        """Boxes of every image, shape (batch, boxes, 4)."""
        boxes = torch.cat(list(found))
        if not len(boxes) and self._boxes is not None:
            boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).to(boxes)
        return self._by_example(boxes, None if self._boxes is None else self._boxes.get(path))

    def _by_example(self, rows: Tensor, each: int | None = None) -> Tensor:
        """Rows as (batch, rows of each, ...); where they do not share out, the first ones come again."""
        batch = self._seen.shape[0]
        if each is None:
            each = max(0 if self._boxes is None else 1, -(-len(rows) // batch))
        if not len(rows):
            return rows.new_zeros(batch, each, *rows.shape[1:])
        return rows[torch.arange(each * batch) % len(rows)].reshape(batch, each, *rows.shape[1:])


def _named(call: Call) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a call gives, by the names of the region and of their places in its result."""
    for keys, leaf in pytree.tree_flatten_with_path(call.result)[0]:
        if isinstance(leaf, Tensor):
            yield ".".join([call.path, *(pytree.keystr((key,)).strip("[]'.") for key in keys)]), leaf


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


def _arguments(seen: Observation, call: Call, example_boxes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a step gives to its module; a pooling of boxes gets its maps as a list, and the boxes as one tensor."""
    pooling: Any = seen.network.get_submodule(call.path)
    if not is_pooling(pooling):
        return call.given
    args, kwargs = call.given
    features, boxes, *_ = *args, *kwargs.values()
    maps = [value for name, value in features.items() if name in pooling.featmap_names]
    return (maps, example_boxes(boxes)), {}
