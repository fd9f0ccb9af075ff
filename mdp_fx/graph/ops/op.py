"""What a typing rule sees of the node it types, and what it says of it.

Where a node carries sizes as literals, its rule says through `Op.emit` how to write them from types.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from mdp_fx.graph.axes import Axis, Dim, TensorType, free_dims, fresh
from mdp_fx.graph.purity import target_name
from mdp_fx.graph.unify import freeze

Types: TypeAlias = Any
"""A TensorType, or a tuple, list or dict of Types, or None for what is no tensor."""


Zeros: TypeAlias = Literal["keep", "each", "own"]
"""At which dropped units an op's value is zero: where the first operand is ("keep"), where those operands are that have
the unit ("each"), or where the rule itself says so by `Op.zero_at`."""


@dataclass
class Emission:
    """How a node is written again after pruning; every Axis in it stands for its kept size.

    Attributes:
        node: (op, target, args, kwargs) that replace the node's own, or None.
        attributes: sizes that are attributes of the node's module.
    """

    node: tuple[str, Any, tuple[Any, ...], dict[str, Any]] | None = None
    attributes: dict[str, Axis | tuple[Axis, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EmittedCall:
    """A call inside of an emission: a node of its own before the emitted one."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptShare:
    """In an emission: the kept share of an axis, a float; where all is kept, the node stays as the model spelled it."""

    axis: Axis


@dataclass(frozen=True)
class Normalisation:
    """A node that normalises entries together, with statistics over the kept units only.

    Attributes:
        operand: name of the node that it normalises.
        places: axes of the operand that are normalised together; with groups, axis 1 is counted as (groups, rest).
        groups: number of groups that axis 1 is cut into in the dense network, None where it is not.
        centred: whether the mean is subtracted.
        eps: added to the variance.
        weight: name of the node or stored tensor that scales the result, None for none.
        bias: as `weight`, for what is added.
    """

    operand: str
    places: tuple[int, ...]
    groups: int | None
    centred: bool
    eps: float
    weight: str | None
    bias: str | None


@dataclass(frozen=True)
class ConvolutionTypes:
    """What the time of a convolution depends on; every axis stands for its kept size.

    Attributes:
        batch: axes that count examples.
        inputs: the channels it reads.
        outputs: the channels it makes.
        groups: the groups that its channels are cut into.
        input_sizes: axes of the operand that the kernel moves along, and `output_sizes` those of the result.
        kernel: size of the kernel on each of them, likewise `stride` and `dilation`.
        transposed: whether it is a transposed one.
    """

    batch: TensorType
    inputs: Axis
    outputs: Axis
    groups: Axis
    input_sizes: TensorType
    output_sizes: TensorType
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool


@dataclass
class Inference:
    """State of one inference.

    Attributes:
        module: the graph.
        types: of every node's value, by node name.
        tensors: types of stored tensors, by identity.
        emissions: how nodes are written again, by node name.
        macs: products of axes that count a node's multiply-accumulates together, by node name.
        convolutions: of the nodes that are one, by node name.
        scales: the stored scale and shift of every node that normalises, by node name.
        zeros: the axes whose dropped units are zero in a node's value, by node name.
        others: its other axes, where it has both: units of these that turn out to be the same ones need not be zero.
        norms: nodes that normalise prunable units together, by node name.
        pointers: for stored tensors that hold positions, by identity, the axis that they point into.
        modules: all modules of the network, by path.
    """

    module: fx.GraphModule
    types: dict[str, Types] = field(default_factory=dict)
    tensors: dict[int, TensorType] = field(default_factory=dict)
    emissions: dict[str, Emission] = field(default_factory=dict)
    macs: dict[str, tuple[TensorType, ...]] = field(default_factory=dict)
    convolutions: dict[str, ConvolutionTypes] = field(default_factory=dict)
    scales: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    zeros: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    others: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    norms: dict[str, Normalisation] = field(default_factory=dict)
    pointers: dict[int, Axis] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.module.named_modules(remove_duplicate=False))

    def tensor_type(self, tensor: torch.Tensor) -> TensorType:
        """The type of a parameter or buffer: a fresh Dim per axis when it is first met."""
        if id(tensor) not in self.tensors:
            self.tensors[id(tensor)] = tuple(fresh(size) for size in tensor.shape)
        return self.tensors[id(tensor)]


ARGUMENT_NAMES = {"axis": "dim", "keepdims": "keepdim"}
"""Other names that torch has for arguments."""


class Op:
    """One node, seen by its rule: module, function and method spellings look alike.

    Attributes:
        node: the node.
        shapes: the recorded shape of its value (torch.Size, or nested).
    """

    def __init__(self, node: fx.Node, state: Inference, names: tuple[str, ...], operands: int = 1) -> None:
        self.node = node
        self.shapes: Any = node.meta["shape"]
        self._state = state
        self._names = names
        self._module = state.modules[str(node.target)] if node.op == "call_module" else None
        named = {ARGUMENT_NAMES.get(name, name): value for name, value in node.kwargs.items()}
        # What else is passed to a module's forward is none of its attributes.
        positional = names[:operands] if self._module is not None else names
        self._bound: dict[str, Any] = dict(zip(positional, node.args, strict=False)) | named
        self._read: set[fx.Node] = set()

    @property
    def where(self) -> str:
        """The node as named in reasons: the module that was called, or the function and its node."""
        if self._module is not None:
            return str(self.node.target)
        return f"{target_name(self.node.target)} (node {self.node.name})"

    @property
    def unread(self) -> bool:
        """Whether the rule has not looked at some operand: it does not know this spelling."""
        return not self._read.issuperset(self.node.all_input_nodes)

    @property
    def kind(self) -> str:
        """What is called: the module's class, the function or the method."""
        return _called(self.node, self._module)

    def is_zero_at(self, value: Any, axis: Axis) -> bool:
        """Whether an argument's value is zero at the dropped units of an axis."""
        return set(free_dims(axis)) <= self._zeros_of(value)

    def zero_at(self, *axes: Axis) -> None:
        """Says that the node's value is zero at the dropped units of these axes."""
        self._state.zeros[self.node.name] = axes

    def zero_as(self, value: Any) -> tuple[Axis, ...]:
        """The axes at whose dropped units an argument's value is zero."""
        return tuple(Axis((dim,)) for dim in self._zeros_of(value))

    def _zeros_of(self, value: Any) -> set[Dim]:
        if isinstance(value, fx.Node):
            found = _dims_of(self._state.zeros.get(value.name, ()))
            others = self._state.others.get(value.name)
            return found - _dims_of(others) if others else found
        return _dims_of(self._state.tensor_type(value)) if isinstance(value, nn.Parameter) else set()

    def spread_zeros(self, how: Zeros) -> None:
        """Says where the node's value is zero, from its operands alone."""
        if how == "own":
            return
        if how == "keep":
            # Other operands only say how the first one is moved about.
            first = self.value(self._names[0])
            for facts in (self._state.zeros, self._state.others):
                if isinstance(first, fx.Node) and first.name in facts:
                    facts[self.node.name] = facts[first.name]
            return
        zeros = [self._zeros_of(operand) for operand in self.node.all_input_nodes]
        found = set().union(*zeros)
        for own, operand in zip(zeros, self.node.all_input_nodes, strict=True):
            found -= _dims_of(axis for tensor in tensor_types(self.types_of(operand)) for axis in tensor) - own
        self.zero_at(*(Axis((dim,)) for dim in found))

    def settle_zeros(self, types: Types) -> None:
        """Keeps which of the value's dimensions need not be zero, where some are."""
        claimed, others = (facts.get(self.node.name, ()) for facts in (self._state.zeros, self._state.others))
        known = _dims_of((*claimed, *others))
        more = _dims_of(axis for tensor in tensor_types(types) for axis in tensor) - known
        if claimed and more:
            self._state.others[self.node.name] = (*others, *(Axis((dim,)) for dim in more))

    @property
    def extra(self) -> tuple[Any, ...]:
        """Positional arguments beyond the named ones, as in x.view(2, 3)."""
        return tuple(self.node.args[len(self._names) :])

    def value(self, name: str, default: Any = None) -> Any:
        """The argument or module attribute `name` as written."""
        if name in self._bound:
            return self._bound[name]
        return getattr(self._module, name, default) if self._module is not None else default

    def types(self, name: str) -> Types:
        """Types of an argument or module tensor; None where it is absent."""
        return self.types_of(self.value(name))

    def types_of(self, value: Any) -> Types:
        """Types of an argument's value."""
        if isinstance(value, fx.Node):
            self._read.add(value)
            return self._state.types[value.name]
        if isinstance(value, torch.Tensor):
            return self._state.tensor_type(value)
        if isinstance(value, list | tuple):
            return [self.types_of(part) for part in value]
        return None

    def module_tensors(self) -> list[TensorType]:
        """Types of every tensor that the node's module stores."""
        if self._module is None:
            return []
        return [self._state.tensor_type(t) for t in (*self._module.parameters(), *self._module.buffers())]

    def tensor(self, name: str) -> TensorType:
        """Types of an argument that must be a tensor."""
        types: TensorType = self.types(name)
        return types

    def freeze(self, axes: Iterable[Axis], why: str, *, batch: bool = False) -> None:
        """Freezes axes with a reason that names this node; the batch too where `batch` is true."""
        for axis in axes:
            freeze(axis, f"{why} at {self.where}", batch=batch)

    def count_macs(self, *products: TensorType) -> None:
        """Says that the node does as many multiply-accumulates as the products of these axes' sizes, added up."""
        self._state.macs[self.node.name] = products

    def mark_convolution(self, types: ConvolutionTypes) -> None:
        """Says that the node is a convolution, and which."""
        self._state.convolutions[self.node.name] = types

    def mark_scales(self, *names: str) -> None:
        """Says that the node normalises, and which of its arguments scale and shift the result."""
        self._state.scales[self.node.name] = tuple(t for t in map(self.stored, names) if t is not None)

    def mark_norm(
        self, name: str, places: Sequence[int], *, groups: int | None = None, centred: bool = True, eps: float | None
    ) -> None:
        """Says that the node normalises its operand `name` over `places`: statistics see the kept units only."""
        operand = self.value(name)
        default = torch.finfo(self.dtype_of(operand)).eps
        self._state.norms[self.node.name] = Normalisation(
            operand.name,
            tuple(places),
            groups,
            centred,
            default if eps is None else eps,
            self._name_of("weight"),
            self._name_of("bias"),
        )

    def _name_of(self, name: str) -> str | None:
        value = self.value(name)
        if isinstance(value, fx.Node):
            return value.name
        return f"{self.node.target}.{name}" if isinstance(value, torch.Tensor) else None

    def stored(self, name: str) -> torch.Tensor | None:
        """The stored tensor that an argument reads, if it does."""
        value = self.value(name)
        found = stored_at(self._state.module, value) if isinstance(value, fx.Node) else value
        return found if isinstance(found, torch.Tensor) else None

    def dtype_of(self, value: fx.Node) -> Any:
        """The number type of an operand."""
        return value.meta["dtype"]

    def pointed(self, tensor: torch.Tensor) -> Axis | None:
        """The axis that a stored tensor's entries are positions on, if a rule said so."""
        return self._state.pointers.get(id(tensor))

    def point(self, tensor: torch.Tensor, axis: Axis) -> None:
        """Says that a stored tensor holds positions on an axis: they are counted again when units are dropped."""
        self._state.pointers[id(tensor)] = axis

    def emit(self, name: str, value: Any) -> None:
        """Writes an argument or module attribute again from types; Axis objects in `value` stand for kept sizes."""
        emission = self._state.emissions.setdefault(self.node.name, Emission())
        if self._module is not None:
            emission.attributes[name] = value
            return
        op, target, args, kwargs = emission.node or (
            self.node.op,
            self.node.target,
            tuple(self.node.args),
            dict(self.node.kwargs),
        )
        position = self._names.index(name)
        if name in kwargs or position >= len(args):
            kwargs = kwargs | {name: value}
        else:
            args = (*args[:position], value, *args[position + 1 :])
        emission.node = (op, target, args, kwargs)

    def emit_call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> None:
        """Writes the whole node again as a call of a function, or of the method that `target` names."""
        emission = self._state.emissions.setdefault(self.node.name, Emission())
        emission.node = ("call_method" if isinstance(target, str) else "call_function", target, args, kwargs)


def _dims_of(axes: Iterable[Axis]) -> set[Dim]:
    return {dim for axis in axes for dim in free_dims(axis)}


def _called(node: fx.Node, module: nn.Module | None) -> str:
    return type(module).__name__ if module is not None else target_name(node.target)


def stored_at(module: fx.GraphModule, node: fx.Node) -> Any:
    """What a get_attr node reads; None for another node."""
    return operator.attrgetter(str(node.target))(module) if node.op == "get_attr" else None


def tensor_types(types: Types) -> list[TensorType]:
    """Every TensorType in nested Types."""
    if types is None:
        return []
    if isinstance(types, dict):
        return [tensor for part in types.values() for tensor in tensor_types(part)]
    if isinstance(types, tuple) and all(isinstance(axis, Axis) for axis in types):
        return [types]
    return [tensor for part in types for tensor in tensor_types(part)]


def from_front(dim: int, rank: int) -> int:
    """The number of an axis of `rank`, counted from the front."""
    return dim % rank
