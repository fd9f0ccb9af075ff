"""The collapse guard: which layer of a network has stopped telling inputs apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.graph.modes import eval_mode

DEAD_SHARE = 0.95
"""A layer has collapsed where at least this share of its units gives the same for every example."""

_TINY = 1e-4
"""Share of the layer's values (as root mean square) below which a unit's spread over the examples is none."""

_CHANNELS = 1


@dataclass(frozen=True)
class Collapse:
    """A layer whose output has collapsed.

    Attributes:
        layer: name of the module, or of the node where it is no module.
        dead: units that give the same for every example; `units` how many it has.
        finite: whether its output is finite.
    """

    layer: str
    dead: int
    units: int
    finite: bool

    def __str__(self) -> str:
        if not self.finite:
            return f"{self.layer} gives values that are not finite"
        return f"{self.layer} has collapsed: {self.dead} of its {self.units} units give the same for every example"


def find_collapse(module: nn.Module, inputs: tuple[Any, ...]) -> Collapse | None:
    """The first layer at which the network collapses on a batch, in eval mode; None where none does.

    A layer is blamed where its output has collapsed and what flows into it has not. A layer of which one unit is left
    to fluctuate has not collapsed.

    Args:
        module: the network; one that is no graph is not looked into.
        inputs: a batch of at least two examples, where the network is.
    """
    images = inputs[0]
    if not isinstance(module, fx.GraphModule) or not isinstance(images, Tensor) or len(images) < 2:
        return None
    watch = _Watch(module, len(images))
    with eval_mode(module), torch.no_grad():
        watch.run(*inputs)
    return watch.found


class _Watch(fx.Interpreter):
    """Runs a graph and looks at every value that has one entry per example and comes from the examples.

    A class token that is repeated for every example has such entries too, and they are the same by intention.
    """

    def __init__(self, module: fx.GraphModule, examples: int) -> None:
        super().__init__(module)
        self.found: Collapse | None = None
        self._examples = examples
        self._bad: set[str] = set()
        self._from_examples: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, looked at on the way."""
        value = super().run_node(n)
        fed = n.op == "placeholder" or any(source.name in self._from_examples for source in n.all_input_nodes)
        if not fed or not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):  # a size is no example
            return value
        self._from_examples.add(n.name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return value
        if len(value) != self._examples or n.op not in ("call_module", "call_function", "call_method"):
            return value
        state = _look(n, value)
        if state is not None:
            if self.found is None and not any(source.name in self._bad for source in n.all_input_nodes):
                self.found = state
            self._bad.add(n.name)
        return value


def _look(node: fx.Node, value: Tensor) -> Collapse | None:
    layer, units = str(node.target) if node.op == "call_module" else node.name, value.shape[_CHANNELS]
    value = value.float()
    if not bool(torch.isfinite(value).all()):
        return Collapse(layer, 0, units, finite=False)
    spread = value.std(dim=0).reshape(units, -1).amax(dim=1)
    scale = float(value.square().mean().sqrt())
    dead = int((spread <= _TINY * scale).sum())
    return Collapse(layer, dead, units, finite=True) if dead >= DEAD_SHARE * units else None
