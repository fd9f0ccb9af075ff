"""The slim tensor part put back: a copy of the detector, of its own classes, that holds the slim layers.

A module whose own forward does with the slim layers what the slim graph does stays what it is, so that it takes images
of every size. One whose forward does not (a block was removed from it, a size is written in it) becomes its part of the
graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.detectors.boundaries import Boundary, NodeName
from mdp_fx.detectors.graph_part import Elsewhere, cut
from mdp_fx.detectors.observation import tensors_of
from mdp_fx.detectors.tensor_part import TensorPart, join
from mdp_fx.errors import InputError, ModelError, ParityError, first_line
from mdp_fx.exporters.parity import compare
from mdp_fx.graph.ops.box_pooling import BoxPooling
from mdp_fx.graph.trace import detached_copy, trace
from mdp_fx.graph.tracer import SHAPE, attribute
from mdp_fx.passes.choices import Analysis

_COUNTS = ("channels", "features")
_AGREED = 1e-4
"""Largest difference of two computations of one map, over its largest value."""


def put_back(
    detector: nn.Module,
    part: TensorPart,
    analysis: Analysis,
    slim: fx.GraphModule,
) -> nn.Module:
    """A copy of the detector with the slim layers.

    Args:
        detector: the dense detector, left unchanged.
        part: its tensor part, and `analysis` what was found of it.
        analysis: of the tensor part.
        slim: the slim tensor part; the copy shares its parameters.

    Raises:
        ModelError: a module, named in the message, cannot take the sizes that were chosen.
    """
    return _Return(detector, part, analysis, slim).made


class _Gone(nn.Module):
    """In place of a layer that was removed."""

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        msg = "it was removed"
        raise RuntimeError(msg)


class _Values(fx.Interpreter):
    """Runs a graph, and keeps every value as it was when it was made."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value.clone() if isinstance(value, Tensor) else value
        return value


class _Return:
    """Puts slim layers into a copy of a detector.

    Attributes:
        made: the copy.
    """

    def __init__(
        self,
        detector: nn.Module,
        part: TensorPart,
        analysis: Analysis,
        slim: fx.GraphModule,
    ) -> None:
        self.made = detached_copy(detector)
        self._slim = slim
        self._calls = part.boundaries.calls
        self._dense = {node.name: node for node in analysis.graph.module.graph.nodes}
        self._flows = _flows(analysis, slim)
        self._elsewhere = Elsewhere(self._dense, lambda: _traced_larger(detector, part.image_shape))
        modes = {path: module.training for path, module in self.made.named_modules()}
        self.made.eval()
        self._replace(analysis)
        reader = _Values(slim.eval())
        with torch.no_grad():
            reader.run(*analysis.graph.example_inputs)  # Several examples, where the batch is open.
            self._values = reader.values
            for path in part.regions:
                for inner, module in self.made.get_submodule(path).named_modules():
                    self._count_again(f"{path}.{inner}" if inner else path, module)
            # Afterwards: a forward may compute with these counts.
            for path in part.regions:
                fault = None if isinstance(part.get_submodule(path), BoxPooling) else self._mend(path)
                if fault is not None:
                    kind = type(detector.get_submodule(path)).__name__
                    what = f"{path} ({kind}) needs channels of a fixed number: {fault}"
                    raise ModelError(f"{what}; leave it alone with --keep '{path}*'")
        for path, module in self.made.named_modules():
            while path not in modes:
                path = _owner(path)
            module.training = modes[path]

    def _replace(self, analysis: Analysis) -> None:
        """Puts every slim module, parameter and buffer in the place of the dense one."""
        names = {str(n.target) for n in self._slim.graph.nodes if n.op in ("call_module", "get_attr")}
        dense = {str(n.target) for n in analysis.graph.module.graph.nodes if n.op in ("call_module", "get_attr")}
        own: dict[str, Any] = dict(self.made.named_modules(remove_duplicate=False))
        own |= dict(self.made.named_parameters(remove_duplicate=False))
        own |= dict(self.made.named_buffers(remove_duplicate=False))
        new: dict[int, Any] = {}
        for name in sorted(dense, key=names.__contains__):
            if isinstance(attribute(analysis.graph.module, name), BoxPooling) or name not in own:
                continue
            if name in names:
                new[id(own[name])] = attribute(self._slim, name)
            elif isinstance(own[name], nn.Module):
                new[id(own[name])] = _Gone()
        self._exchange(new)

    def _exchange(self, new: dict[int, Any]) -> None:
        """Puts others in the place of modules, parameters and buffers, under every name that they have."""
        for module in list(self.made.modules()):
            for table in (module._modules, module._parameters, module._buffers):
                for key, value in table.items():
                    if id(value) in new:
                        table[key] = new[id(value)]

    def _mend(self, path: str) -> str | None:
        """Makes a module compute what the slim graph computes, as few modules as possible becoming graphs.

        Returns:
            None where it does; else what it does otherwise: it cannot be taken out of the graph.
        """
        fault = self._fault(path)
        if fault is None:
            return None
        self._mend_children(path)  # Where one cannot be mended, this one may.
        fault = self._fault(path)
        if fault is None:
            return None
        calls = self._calls.get(path, [])
        made = self._cut(path, calls[0]) if calls else None
        if made is not None:
            self._exchange({id(self.made.get_submodule(path)): made})
            fault = self._fault(path)
        return fault

    def _cut(self, path: str, call: Boundary) -> fx.GraphModule | None:
        return cut(self.made.get_submodule(path), self._slim, path, self._resolved(call), self._elsewhere)

    def _mend_children(self, path: str) -> None:
        for name, _ in list(self.made.get_submodule(path).named_children()):
            inner = f"{path}.{name}"
            if self._is_there(inner):
                self._mend(inner)
            elif inner not in self._calls:
                self._mend_children(inner)  # A list, which is not called itself.

    def _is_there(self, path: str) -> bool:
        """Whether what a module gives is in the slim graph."""
        calls = map(self._resolved, self._calls.get(path, []))
        results = [leaf for call in calls for leaf in call.result if isinstance(leaf, NodeName)]
        return bool(results) and all(leaf in self._values for leaf in results)

    def _fault(self, path: str) -> str | None:
        """What a module does otherwise than the graph, None where that is nothing that is known."""
        module = self.made.get_submodule(path)
        for call in self._calls.get(path, []):
            call = self._resolved(call)
            needed = [leaf for leaf in (*call.given, *call.result) if isinstance(leaf, NodeName)]
            if any(name not in self._values for name in needed):
                return "its graph was rewritten"
            args, kwargs = pytree.tree_unflatten(self._read(call.given), call.given_spec)
            expected = [leaf for leaf in self._read(call.result) if isinstance(leaf, Tensor)]
            try:
                compare(expected, tensors_of(module(*args, **kwargs)), path, limit=_AGREED)
            except ParityError as error:
                return str(error)
            except Exception as error:  # noqa: BLE001 - the user's own forward, on layers of other sizes
                return first_line(error)
        return None

    def _read(self, leaves: tuple[Any, ...]) -> list[Any]:
        values = [self._values[leaf] if isinstance(leaf, NodeName) else leaf for leaf in leaves]
        return [value.clone() if isinstance(value, Tensor) else value for value in values]

    def _resolved(self, call: Boundary) -> Boundary:
        """A call with what flows on in place of the additions that are gone."""

        def there(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(self._flows.get(leaf, leaf) if isinstance(leaf, NodeName) else leaf for leaf in leaves)

        return Boundary(there(call.given), call.given_spec, there(call.result), call.result_spec)

    def _count_again(self, path: str, module: nn.Module) -> None:
        """Corrects what a module says of its channels: `in_channels`, `out_channels` and the like, numbers or lists."""
        for call in self._calls.get(path, [])[:1]:
            resolved = self._resolved(call)
            for prefix, before, after in (("in_", call.given, resolved.given), ("out_", call.result, resolved.result)):
                pairs = [
                    (self._dense[old].meta[SHAPE][1], self._values[new].shape[1])
                    for old, new in zip(before, after, strict=True)
                    if isinstance(old, NodeName) and old in self._dense and new in self._values
                    if len(self._dense[old].meta[SHAPE]) > 1
                ]
                for name in (prefix + count for count in _COUNTS):
                    value = vars(module).get(name)
                    if pairs and isinstance(value, int) and {old for old, _ in pairs} == {value}:
                        setattr(module, name, pairs[0][1])
                    elif pairs and isinstance(value, list | tuple) and list(value) == [old for old, _ in pairs]:
                        setattr(module, name, type(value)(new for _, new in pairs))


def _traced_larger(detector: nn.Module, shape: torch.Size) -> fx.GraphModule | None:
    """The tensor part traced on images of another size, in both directions; None where there is no other size."""
    batch, channels, height, width = shape
    images = torch.full((batch, channels, height + 64, width + 128), 0.5).to(next(detector.parameters()))
    try:
        return trace(*join(detector, (images,))).module
    except InputError:
        return None


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _flows(analysis: Analysis, slim: fx.GraphModule) -> dict[str, NodeName]:
    """By the name of an addition that is gone, what flows on in its place."""
    there = {node.name for node in slim.graph.nodes}
    kept = {block.join: block.kept for block in analysis.blocks.removable if block.join not in there and block.kept}
    found: dict[str, NodeName] = {}
    for addition in kept:
        name: str = addition
        while name in kept:
            name = kept[name]
        found[addition] = NodeName(name)
    return found
