"""Where the modules of a traced network begin and end in its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from mdp_fx.graph.proxy import ValueProxy


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
