"""ONNX models of regions at many sizes, from one or two exports each.

torch's exporter takes about a second, so a region is exported once and its graph is *resized*: weights are replaced by
those of the region built at the new sizes, under their names, and the exporter's own optimiser (5 ms) then folds and
fuses as it would have done. Where sizes are written into the graph (the group count of a depthwise convolution, the
shape of a reshape), a second export at other sizes shows which numbers follow which axis. Neither step knows any op:
whoever runs a model compares its outputs with torch's at every size (`agree`), and where they differ asks for the next
one (`RegionModels`), of which the last one is a real export.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnx_ir.passes import PassError
from onnxscript import optimizer
from torch import Tensor, nn

from mdp_fx.errors import first_line
from mdp_fx.exporters.onnx_model import quiet, to_onnx_model
from mdp_fx.exporters.parity import max_relative_error
from mdp_fx.latency.targets import RegionSpec

_log = logging.getLogger(__name__)

# Inputs of fewer channels are images: the network's own input, which comes from the user as it is.
_IMAGE_CHANNELS = 4
# All names of the context start with this, and with it the profiler's events for its nodes.
PREFIX = "mdpfx_"
AFTER = f"{PREFIX}out"

Place = tuple[int, str, int]  # node and attribute, or initializer and ""; position in its integers


@dataclass(frozen=True)
class Written:
    """An integer of a graph that follows one axis: value = size of `axis` * numerator // denominator."""

    axis: int
    numerator: int
    denominator: int


class RegionTemplate:
    """One region's ONNX graph, for any sizes."""

    def __init__(self, region: RegionSpec) -> None:
        self._region = region
        module, inputs = region.build(region.dense_sizes)
        self._model = _without_weights(to_onnx_model(module, inputs, optimize=False), module)
        self._names = _weights(module).keys()
        self._rules: dict[Place, Written] = {}
        self._learned = False
        self.exact = True  # False once resizing has turned out not to work for this region

    def fits(self, module: nn.Module) -> bool:
        """Whether `module` names its tensors as the exported one did: equal regions of two networks may not."""
        return _weights(module).keys() == self._names

    def resize(self, module: nn.Module, inputs: tuple[Tensor, ...], sizes: tuple[int, ...]) -> onnx.ModelProto:
        """The graph with the weights of `module` and the sizes `sizes`, optimised; its outputs are to be checked."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for place, rule in self._rules.items():
            _write(model, place, sizes[rule.axis] * rule.numerator // rule.denominator)
        weights = _weights(module)
        for initializer in model.graph.initializer:
            if initializer.name in weights:
                initializer.CopyFrom(numpy_helper.from_array(weights[initializer.name], initializer.name))
        for value, example in zip(model.graph.input, inputs, strict=True):
            for dimension, size in zip(value.type.tensor_type.shape.dim, example.shape, strict=True):
                dimension.dim_value = size
        for value in model.graph.output:
            for dimension in value.type.tensor_type.shape.dim:
                dimension.Clear()
        return optimized(model)

    def learn(self) -> bool:
        """Find the integers that follow the sizes, from a second export; False where that was done or fails."""
        if self._learned or not self._region.dense_sizes:
            return False
        self._learned = True
        dense = self._region.dense_sizes
        # a different ratio per axis tells the axes apart
        other = tuple(max(1, size // (axis + 2)) for axis, size in enumerate(dense))
        module, inputs = self._region.build(other)
        model = _without_weights(to_onnx_model(module, inputs, optimize=False), module)
        if [node.op_type for node in model.graph.node] != [node.op_type for node in self._model.graph.node]:
            return False
        ours, theirs = dict(_integers(self._model)), dict(_integers(model))
        if ours.keys() != theirs.keys():
            return False
        for place, value in ours.items():
            if value == theirs[place]:
                continue
            axis = next((a for a in range(len(dense)) if value * other[a] == theirs[place] * dense[a]), None)
            if axis is None:
                return False
            self._rules[place] = Written(axis, value, dense[axis])
        return bool(self._rules)


class RegionModels:
    """ONNX models of regions; what one export of a region has taught serves all of its sizes."""

    def __init__(self) -> None:
        self._templates: dict[str, RegionTemplate] = {}

    def of(
        self, region: RegionSpec, sizes: tuple[int, ...], module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> Iterator[onnx.ModelProto]:
        """The region as ONNX, the quickest way first; the next one is for when that does not compute the same.

        Args:
            region: that has been built as `module` with `inputs` at `sizes`.
            sizes: one per axis.
            module: on the processor.
            inputs: positional inputs of its forward.

        Raises:
            ModelError: torch cannot export the region.
        """
        template = self._templates.get(region.key)
        if template is None or not template.fits(module):
            template = self._templates[region.key] = RegionTemplate(region)
        while template.exact:
            try:
                resized = template.resize(module, inputs, sizes)
            except PassError as error:
                _log.debug("region %s cannot be resized to %s: %s", region.key, sizes, first_line(error))
            else:
                yield resized
            template.exact = template.learn()
        _log.debug("region %s is exported at %s: it cannot be resized", region.key, sizes)
        yield direct(module, inputs)


def agree(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    allowed: float | None = None,
    averaged: Sequence[bool] | None = None,
) -> bool:
    """Whether a runtime computed what torch did.

    Args:
        found: the runtime's results.
        expected: torch's.
        allowed: largest error, relative to the largest value of its output; by default that of the number format.
        averaged: per output whether the runtime gives its average over axis 1; by default none.
    """
    if len(found) != len(expected):
        return False
    for ours, theirs, average in zip(found, expected, averaged or [False] * len(found), strict=True):
        a, b = ours.to(torch.float64), theirs.to(torch.float64)
        wanted = b.mean(1, keepdim=True) if average else b
        if a.shape != wanted.shape or not a.isfinite().all():
            return False
        if a.numel() == 0:
            continue
        # an average of large terms may be small: the terms set the scale of the rounding
        limit = (max_relative_error(theirs.dtype) if allowed is None else allowed) * max(float(b.abs().max()), 1e-6)
        if not (a - wanted).abs().max() <= limit:
            return False
    return True


def direct(module: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """A region exported at its sizes, and optimised."""
    return optimized(to_onnx_model(module, inputs, optimize=False))


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` as the exporter leaves a deployed network: constants folded, normalisations fused."""
    graph = ir.serde.deserialize_model(model)
    with quiet():
        optimizer.optimize_ir(graph)
    return ir.serde.serialize_model(graph)


@dataclass(frozen=True)
class InContext:
    """A region's graph between neighbours as it has in a network.

    ONNX Runtime keeps activations in a blocked layout from one convolution to the next. A region alone would pay for
    reordering its input and output, which it does not do in a network (or, where a size does not fit the blocks, does:
    then the reordering is the region's own). So inputs come out of a convolution (a product after it, since a
    convolution alone would fuse with what follows) and outputs go into one; the profiler tells their time from the
    region's.

    Attributes:
        model: the ONNX model.
        feeds: its inputs.
        inputs: what the region itself is given then: torch tensors, for a check against torch.
        averaged: per output whether it is averaged over axis 1 before it is returned.
    """

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    inputs: tuple[Tensor, ...]
    averaged: tuple[bool, ...]


def in_context(model: onnx.ModelProto, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> InContext:
    """Put a region's graph between neighbours; changes `model`."""
    graph = model.graph
    feeds: dict[str, np.ndarray] = {}
    given: list[Tensor] = []
    before: list[onnx.NodeProto] = []
    random = np.random.default_rng(0)
    names = {value.name: f"{PREFIX}x{index}" for index, value in enumerate(graph.input)}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    for index, (value, example) in enumerate(zip(graph.input, inputs, strict=True)):
        value.name = names[value.name]
        if example.ndim != 4 or example.shape[1] <= _IMAGE_CHANNELS or example.dtype != torch.float32:
            feeds[value.name] = example.detach().numpy()
            given.append(example)
            continue
        batch, channels, height, width = example.shape
        source, weight, between = (f"{PREFIX}{part}{index}" for part in ("in", "weight", "mid"))
        feeds[source] = random.uniform(0.5, 1.5, (batch, 1, height, width)).astype(np.float32)
        factors = random.uniform(0.5, 1.0, (channels, 1, 1, 1)).astype(np.float32)
        given.append(torch.from_numpy(np.square(feeds[source] * factors.reshape(1, -1, 1, 1))))
        graph.initializer.append(numpy_helper.from_array(factors, weight))
        before.append(onnx.helper.make_node("Conv", [source, weight], [between], name=between))
        before.append(onnx.helper.make_node("Mul", [between, between], [value.name], name=value.name))
        value.CopyFrom(onnx.helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, feeds[source].shape))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *nodes])
    averaged = []
    for index, (value, example) in enumerate(zip(graph.output, outputs, strict=True)):
        averaged.append(example.ndim == 4 and example.dtype == torch.float32)
        if averaged[-1]:
            channels = example.shape[1]
            weight, result = f"{PREFIX}share{index}", f"{AFTER}{index}"
            graph.initializer.append(
                numpy_helper.from_array(np.full((1, channels, 1, 1), 1 / channels, np.float32), weight)
            )
            graph.node.append(onnx.helper.make_node("Conv", [value.name, weight], [result], name=result))
            value.CopyFrom(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    return InContext(model, feeds, tuple(given), tuple(averaged))


def _weights(module: nn.Module) -> dict[str, np.ndarray]:
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().numpy() for name, tensor in tensors}


def _without_weights(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Drop the contents of the module's own tensors (a template may wait long) and all inferred shapes."""
    weights = _weights(module)
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            initializer.CopyFrom(onnx.TensorProto(name=initializer.name))
    del model.graph.value_info[:]
    return model


def _integers(model: onnx.ModelProto) -> Iterator[tuple[Place, int]]:
    """Every integer that is written into the graph: attributes, constants, small initializers."""
    for index, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.INT:
                yield (index, attribute.name, -1), attribute.i
            elif attribute.type == onnx.AttributeProto.INTS:
                for position, value in enumerate(attribute.ints):
                    yield (index, attribute.name, position), value
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == onnx.TensorProto.INT64:
                for position, value in enumerate(numpy_helper.to_array(attribute.t).reshape(-1)):
                    yield (index, attribute.name, position), int(value)
    for index, initializer in enumerate(model.graph.initializer):
        if initializer.data_type == onnx.TensorProto.INT64:
            for position, value in enumerate(numpy_helper.to_array(initializer).reshape(-1)):
                yield (index, "", position), int(value)


def _write(model: onnx.ModelProto, place: Place, value: int) -> None:
    index, name, position = place
    if name == "":
        _write_tensor(model.graph.initializer[index], position, value)
        return
    attribute = next(attribute for attribute in model.graph.node[index].attribute if attribute.name == name)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = value
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[position] = value
    else:
        _write_tensor(attribute.t, position, value)


def _write_tensor(tensor: onnx.TensorProto, position: int, value: int) -> None:
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[position] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
