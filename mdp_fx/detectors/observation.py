"""One run of a detector, seen from outside: what each of its modules is given, what it gives, and who reads that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mdp_fx.errors import InputError, first_line
from mdp_fx.graph.trace import copied_tensors, shadow_of

_TRANSFORM = "torchvision.models.detection.transform.GeneralizedRCNNTransform"
_TOO_SMALL = re.compile(r"Kernel size can't be greater|[Oo]utput size is too small|should be at least|too small")


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        path: the module's name.
        given: (positional, keyword) arguments.
        result: what it returned.
        start: how many calls had started before it.
    """

    path: str
    given: tuple[tuple[Any, ...], dict[str, Any]]
    result: Any
    start: int


@dataclass
class Observation:
    """What a run showed.

    Attributes:
        network: a copy of the detector in eval mode, with its parameters.
        calls: by module name, in the order in which they started.
        result: what the detector returned.
        readers: for results of modules, by identity, the names of the modules in which an op read their entries; the
            empty name is the detector's own forward.
    """

    network: nn.Module
    calls: dict[str, list[Call]] = field(default_factory=dict)
    result: Any = None
    readers: dict[int, set[str]] = field(default_factory=dict)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a nested value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def is_detector(model: nn.Module, images: tuple[Any, ...]) -> bool:
    """Whether a model in eval mode gives one dictionary of results for each image, as torchvision's detectors do.

    A model that rejects the images is none.
    """
    for resizing in (False, True):
        network = shadow_of(model)
        if not resizing:
            _keep_size(network, images)  # A run at the size that was asked for is the shorter one.
        try:
            with torch.no_grad():
                result = network(*copied_tensors(images))
        except Exception:  # noqa: BLE001 - the user's own forward: who traces it says what is wrong
            continue
        return isinstance(result, list | tuple) and bool(result) and all(isinstance(each, dict) for each in result)
    return False


def observe(model: nn.Module, images: tuple[Any, ...]) -> Observation:
    """Runs a detector in eval mode on images that reach its backbone at their own size.

    Args:
        model: the detector, left unchanged.
        images: the arguments of its forward; a batch of images as one tensor, shape (B, C, height, width).

    Raises:
        InputError: it does not take images of this size; the message names the module.
    """
    network = shadow_of(model)
    _keep_size(network, images)
    watch = _Watch(network)
    with torch.no_grad(), watch.watching():
        try:
            watch.seen.result = network(*copied_tensors(images))
        except Exception as error:
            # A user's forward may raise anything.
            raise InputError(_refusal(model, images, watch.inside[-1] if watch.inside else "", error)) from error
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


def _is_transform(module: nn.Module) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == _TRANSFORM


def _keep_size(network: nn.Module, images: tuple[Any, ...]) -> None:
    """Keeps torchvision's transform from resizing: the size that was asked for is the one that counts."""
    sizes = {tuple(leaf.shape[-2:]) for leaf in tensors_of(images) if leaf.ndim >= 3}
    if len(sizes) == 1:
        ((height, width),) = sizes
        for transform in filter(_is_transform, network.modules()):
            vars(transform)["fixed_size"] = (width, height)


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


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the calls of a network's modules while it runs, and which ops read what they give."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Observation(network)
        self.inside: list[str] = []
        self._known: set[int] = set()
        self._starts: list[tuple[int, Any]] = []
        self._count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tensors_of((args, kwargs)):
            if id(leaf) in self._known:
                self.seen.readers.setdefault(id(leaf), set()).add(self.inside[-1] if self.inside else "")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while it is open."""
        handles = []
        for path, module in self.seen.network.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leaving(path)))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Any:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inside.append(path)
            # A forward may add to a list that it was given.
            self._starts.append((self._count, pytree.tree_map(lambda leaf: leaf, (args, kwargs))))
            self._count += 1

        return enter

    def _leaving(self, path: str) -> Any:
        def leave(_module: nn.Module, _args: Any, result: Any) -> None:
            self.inside.pop()
            start, given = self._starts.pop()
            self.seen.calls.setdefault(path, []).append(Call(path, given, result, start))
            # They live as long as the calls, so no other tensor gets their identity.
            self._known.update(map(id, tensors_of(result)))

        return leave
