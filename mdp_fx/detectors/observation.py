"""One run of a detector, seen from outside: what each of its modules is given, what it gives, and when that is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mdp_fx.errors import InputError, first_line
from mdp_fx.graph.forward import copied_tensors
from mdp_fx.graph.trace import shadow_of

_TRANSFORM = "torchvision.models.detection.transform.GeneralizedRCNNTransform"
_FEW = 10
_TOO_SMALL = re.compile(r"Kernel size can't be greater|[Oo]utput size is too small|should be at least|too small")


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        path: the module's name.
        given: (positional, keyword) arguments.
        result: what it returned.
        start: how many calls had started before it.
        copies: of the tensors that it was given and of those that it gave, as they were then; empty unless asked for.
    """

    path: str
    given: tuple[tuple[Any, ...], dict[str, Any]]
    result: Any
    start: int
    copies: tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Read:
    """An op that reads a tensor's entries.

    Attributes:
        open: the calls that it is part of, by their start, outer ones first; none in the detector's own forward.
        after: how many calls had started before it.
        writes: whether it writes entries as well.
    """

    open: tuple[int, ...]
    after: int
    writes: bool


@dataclass
class Observation:
    """What a run showed.

    Attributes:
        network: a copy of the detector in eval mode, with its parameters.
        shape: of the batch of images.
        calls: by module name, in the order in which they ended.
        result: what the detector returned.
        reads: of the results of modules and of the network's parameters and buffers, by `memory`.
    """

    network: nn.Module
    shape: torch.Size
    calls: dict[str, list[Call]] = field(default_factory=dict)
    result: Any = None
    reads: dict[int, set[Read]] = field(default_factory=dict)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a nested value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> int:
    """What tells the memory of a tensor from others: its views, and what was detached from it, have the same."""
    address = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    return address or id(tensor)


def stored_in(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network by name, each once."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def is_detector(result: Any) -> bool:
    """Whether a model in eval mode gave one dictionary of results for each image, as torchvision's detectors do."""
    return isinstance(result, list | tuple) and bool(result) and all(isinstance(each, dict) for each in result)


def gives_boxes(result: Any) -> bool:
    """Whether a model gave one record of boxes for all images, as the detectors of transformers do."""
    return isinstance(result, Mapping) and "pred_boxes" in result


def first_result(model: nn.Module, images: tuple[Any, ...]) -> Any:
    """What a model gives in eval mode; None where it rejects the images."""
    for resizing in (False, True):
        network = shadow_of(model)
        _find_few(network)
        if not resizing:
            _keep_size(network, images)  # A run at the size that was asked for is the shorter one.
        try:
            with torch.no_grad():
                return network(*copied_tensors(images))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - the user's own forward: who traces it says what is wrong
            continue
    return None


def observe(model: nn.Module, images: tuple[Any, ...], only: Collection[str] | None = None) -> Observation:
    """Runs a detector in eval mode on images that reach its backbone at their own size.

    Args:
        model: the detector, left unchanged.
        images: the arguments of its forward; a batch of images as one tensor, shape (B, C, height, width).
        only: names of the modules whose calls are noted, with copies of their tensors; by default all, without copies.

    Raises:
        InputError: it does not take images of this size; the message names the module.
    """
    network = shadow_of(model)
    _find_few(network)
    _keep_size(network, images)
    watch = _Watch(network, tensors_of(images)[0].shape, only)
    with torch.no_grad(), watch.watching():
        try:
            watch.seen.result = network(*copied_tensors(images))
        except Exception as error:
            # A user's forward may raise anything.
            raise InputError(_refusal(model, images, watch.where, error)) from error
    return watch.seen


def own_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) to which a detector of torchvision brings square images; None for other networks."""
    for transform in filter(_is_transform, model.modules()):
        module: Any = transform
        if module.fixed_size is not None:
            width, height = module.fixed_size
            return int(height), int(width)
        side = min(int(module.min_size[-1]), int(module.max_size))
        return side, side
    return None


def is_a(module: nn.Module, name: str) -> bool:
    """Whether a module is of a class, or of one made from it, that is known by its full name."""
    return any(f"{each.__module__}.{each.__qualname__}" == name for each in type(module).__mro__)


def _is_transform(module: nn.Module) -> bool:
    return is_a(module, _TRANSFORM)


def _keep_size(network: nn.Module, images: tuple[Any, ...]) -> None:
    """Keeps torchvision's transform from resizing: the size that was asked for is the one that counts."""
    sizes = {tuple(leaf.shape[-2:]) for leaf in tensors_of(images) if leaf.ndim >= 3}
    if len(sizes) == 1:
        ((height, width),) = sizes
        for transform in filter(_is_transform, network.modules()):
            vars(transform)["fixed_size"] = (width, height)


def _find_few(network: nn.Module) -> None:
    """Keeps torchvision's R-CNNs from heads on many boxes: a few show what they do."""
    for module in network.modules():
        if isinstance(vars(module).get("detections_per_img"), int):
            vars(module)["detections_per_img"] = min(_FEW, vars(module)["detections_per_img"])


def _refusal(model: nn.Module, images: tuple[Any, ...], where: str, error: Exception) -> str:
    shapes = ", ".join("x".join(map(str, leaf.shape)) for leaf in tensors_of(images))
    at = f" at {where}" if where else ""
    if _TOO_SMALL.search(str(error)):
        what = f"images of shape {shapes} are too small for {type(model).__name__}: too little is left of them{at}"
        return f"{what} ({first_line(error)}); set a larger size with --input CxHxW"
    return (
        f"{type(model).__name__} rejects images of shape {shapes}{at}: {first_line(error)}; "
        "set the shape with --input CxHxW"
    )


@dataclass(frozen=True)
class _Open:
    """A call that has not ended: the first part of a `Call`."""

    path: str
    start: int
    given: tuple[tuple[Any, ...], dict[str, Any]]
    copies: list[Tensor]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the calls of a network's modules while it runs, and the ops that read what they give."""

    def __init__(self, network: nn.Module, shape: torch.Size, only: Collection[str] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Observation(network, shape)
        self._only = only
        self._open: list[_Open] = []
        self._count = 0
        # Parameters live as long as the network, results as long as their calls: no other tensor gets their memory.
        self._known = set(map(memory, stored_in(network).values()))

    @property
    def where(self) -> str:
        """The module that runs."""
        return self._open[-1].path if self._open else ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = {id(leaf) for leaf in _written(func, args, kwargs)}
        for leaf in tensors_of((args, kwargs)):
            if memory(leaf) in self._known:
                read = Read(tuple(call.start for call in self._open), self._count, id(leaf) in written)
                self.seen.reads.setdefault(memory(leaf), set()).add(read)
        return func(*args, **kwargs)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while it is open."""
        handles = []
        for path, module in self.seen.network.named_modules():
            if path and (self._only is None or path in self._only):
                handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leaving()))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _copies(self, value: Any) -> list[Tensor]:
        return [] if self._only is None else copied_tensors(tensors_of(value))

    def _entering(self, path: str) -> Any:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A forward may add to a list that it was given.
            given = pytree.tree_map(lambda leaf: leaf, (args, kwargs))
            self._open.append(_Open(path, self._count, given, self._copies(given)))
            self._count += 1

        return enter

    def _leaving(self) -> Any:
        def leave(_module: nn.Module, _args: Any, result: Any) -> None:
            ended = self._open.pop()
            call = Call(ended.path, ended.given, result, ended.start, (ended.copies, self._copies(result)))
            self.seen.calls.setdefault(call.path, []).append(call)
            self._known.update(map(memory, tensors_of(result)))

        return leave


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    mutable = [each.name for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    return tensors_of([named.get(name) for name in mutable])
