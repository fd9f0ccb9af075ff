"""Rules of ops that work entry by entry: everything passes through, operands are unified with broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.axes import Axis, Dim, constant, free_dims, fresh
from mdp_fx.graph.ops.elementwise import broadcast, zero_by_place
from mdp_fx.graph.ops.op import Op
from mdp_fx.graph.ops.registry import has_rule
from tests.graph.small import (
    FLOAT64_LIMIT,
    analysed,
    calls,
    frozen,
    images,
    members,
    net,
    parameter,
    sizes,
    slimmed,
    tokens,
    vectors,
)
from tests.pruning import parity_error

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "method": lambda x: x.tanh(),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "module": nn.Hardswish(),
    "softplus": nn.Softplus(),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "negative": lambda x: -x,
    "exponential": torch.exp,
    "a number on the left": lambda x: 1.5 - x,
    "a number on the right": lambda x: (x + 1) / 2,
    "a power": lambda x: x**2,
    "a size of the tensor": lambda x: x * x.shape[1] ** -0.5,
    "a copy": lambda x: x.clone().contiguous(),
    "dropout": nn.Dropout(),
    "another type and back": lambda x: x.to(torch.float32).type_as(x),
    "in place": lambda x: x.mul_(2).relu_(),
}


@pytest.mark.parametrize("function", UNARY.values(), ids=UNARY)
def test_one_operand_passes_through(function: Callable[[Tensor], Tensor]) -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.fc((net.f if isinstance(function, nn.Module) else function)(net.a(x)))

    layers: dict[str, nn.Module] = {"f": function} if isinstance(function, nn.Module) else {}
    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5), **layers)
    analysis = analysed(model, vectors())
    assert sizes(analysis) == [8]
    assert frozen(analysis) == []
    assert parity_error(model, (vectors(),), 0) <= (
        1e-6 if function is UNARY["another type and back"] else FLOAT64_LIMIT
    )


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda x, y: x / (2 + y.sigmoid()),
    "torch.add": lambda x, y: torch.add(x, y, alpha=2),
    "torch.mul": torch.mul,
    "method": lambda x, y: x.sub(y),
    "maximum": torch.maximum,
    "atan2": torch.atan2,
    "keyword": lambda x, y: torch.add(input=x, other=y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "in place": lambda x, y: x.add_(y),
}


@pytest.mark.parametrize("function", BINARY.values(), ids=BINARY)
def test_two_operands_are_coupled(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = net(
        lambda net, x: net.fc(function(net.a(x), net.b(x))), a=nn.Linear(3, 8), b=nn.Linear(3, 8), fc=nn.Linear(8, 5)
    )
    analysis = analysed(model, vectors())
    assert sizes(analysis) == [8]
    (group,) = analysis.groups
    assert {tensor for tensor, _ in members(analysis, group.name)} == {
        "a.weight",
        "a.bias",
        "b.weight",
        "b.bias",
        "fc.weight",
    }
    assert parity_error(model, (vectors(),), 1) <= FLOAT64_LIMIT


@pytest.mark.parametrize(
    ("shape", "mentions"),
    [
        pytest.param((1, 8, 1, 1), {("scale", 1): list(range(8))}, id="a channel each"),
        pytest.param((8, 1, 1), {("scale", 0): list(range(8))}, id="axes are counted from the last"),
        pytest.param((1, 1, 4, 4), {}, id="axes of one entry stretch"),
        pytest.param((1,), {}, id="one for all"),
    ],
)
def test_operands_are_broadcast(shape: tuple[int, ...], mentions: dict[tuple[str, int], list[int]]) -> None:
    model = net(
        lambda net, x: net.fc((net.scale * net.a(x)).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1),
        scale=parameter(*shape),
        fc=nn.Linear(8, 5),
    )
    analysis = analysed(model, images())
    assert sizes(analysis) == [8]
    (group,) = analysis.groups
    found = members(analysis, group.name)
    assert {key: units for key, units in found.items() if key[0] == "scale"} == mentions
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


@pytest.mark.parametrize("function", [torch.addcmul, torch.where], ids=["addcmul", "where"])
def test_three_operands_are_coupled(function: Callable[..., Tensor]) -> None:
    def body(net: Any, x: Tensor) -> Any:
        a, b, c = net.a(x), net.b(x), net.c(x)
        return net.fc(function(net.mask, a, b + c) if function is torch.where else function(a, b, c))

    layers = {name: nn.Linear(3, 8) for name in "abc"}
    mask = nn.Parameter(torch.arange(8) % 2 == 0, requires_grad=False)
    model = net(body, **layers, mask=mask, fc=nn.Linear(8, 5))
    analysis = analysed(model, vectors())
    assert sizes(analysis) == [8]
    if function is torch.addcmul:
        assert parity_error(model, (vectors(),), 2) <= FLOAT64_LIMIT


def test_what_is_added_to_a_frozen_axis_is_frozen_for_its_reason() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).softmax(1) + net.b(x)), a=nn.Linear(3, 8), b=nn.Linear(3, 8), fc=nn.Linear(8, 5)
    )
    reason = "softmax over the axis at softmax (node softmax)"
    assert frozen(analysed(model, vectors())) == [("a", 8, reason), ("b", 8, reason)]


def test_the_input_freezes_what_is_added_to_it() -> None:
    model = net(lambda net, x: net.fc(net.a(x) + x), a=nn.Linear(3, 3), fc=nn.Linear(3, 5))
    assert frozen(analysed(model, vectors())) == [("a", 3, "added or multiplied at add (node add)")]


def test_half_of_an_axis_added_to_the_other_half_couples_them() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        return net.fc(y[:, :4] * y[:, 4:])

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(4, 5))
    analysis = analysed(model, vectors())
    assert sizes(analysis) == [4]
    assert members(analysis, "a")["a.weight", 0] == [0, 1, 2, 3] * 2
    slim = slimmed(analysis, {"a": [1, 3]})
    assert slim.get_submodule("a").weight.shape == (4, 3)
    assert [index for ((_, index),) in calls(slim, operator.getitem)] == [slice(0, 2), slice(2, 4)]


def test_outer_sums_keep_both_axes_apart() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x).unsqueeze(2) + net.b(x).unsqueeze(1)
        return net.fc(y.flatten(1))

    model = net(body, a=nn.Linear(3, 4), b=nn.Linear(3, 6), fc=nn.Linear(24, 5))
    analysis = analysed(model, vectors())
    assert sizes(analysis) == [4, 6]
    assert members(analysis, "a")["fc.weight", 1] == [unit for unit in range(4) for _ in range(6)]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


class _Fake(Op):
    """Stands for a node where only its name is read; keeps where it is zero."""

    def __init__(self) -> None:
        self.zeros: list[Dim] = []

    def zero_at(self, *axes: Axis) -> None:
        self.zeros = [dim for axis in axes for dim in free_dims(axis)]

    @property
    def where(self) -> str:
        return "here"


def test_broadcast_types() -> None:
    a, b, c = fresh(4), fresh(4), Axis((Dim(3),))
    assert broadcast(_Fake(), [(a,)]) == (a,)
    result = broadcast(_Fake(), [(c, constant(1), a), (constant(1), b)])
    assert result == (c, constant(1), a)
    assert a.normal == b.normal
    assert len(free_dims(a)) == 1


def test_rules_know_functions_methods_and_modules_alike() -> None:
    known: list[Any] = [
        F.relu,
        torch.relu,
        "relu",
        nn.ReLU,
        operator.add,
        torch.add,
        "add",
        operator.neg,
        F.silu,
        nn.SiLU,
    ]
    for target in known:
        assert has_rule(target), target
    unknown: list[Any] = ["no_such_method", torch.cummax, nn.RNN, len, [], None]
    for target in unknown:
        assert not has_rule(target), target


# Where values are zero: a sum over units is right without the dropped ones if they add nothing ------------------------


def summed(function: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """A network that sums a function of 8 units, and scales 6 others by that."""
    return net(
        lambda net, x: net.fc(net.b(x) * function(net, net.a(x)).flatten(1).sum(1, keepdim=True)),
        a=nn.Linear(3, 8),
        b=nn.Linear(3, 6),
        c=nn.Linear(3, 8),
        n=nn.BatchNorm1d(8),
        bare=nn.BatchNorm1d(8, affine=False),
        p=parameter(8),
        one=parameter(1),
        k=nn.Buffer(torch.rand(8)),
        fc=nn.Linear(6, 5),
    )


ZERO: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "linear": lambda n, x: x,
    "batch norm with scale and shift": lambda n, x: n.n(x),
    "relu": lambda n, x: F.relu(x),
    "parameter added": lambda n, x: x + n.p,
    "two summands": lambda n, x: torch.sub(x, x.tanh(), alpha=2),
    "scaled by what is not": lambda n, x: x.sigmoid() * x,
    "scaled by a buffer": lambda n, x: n.k * x,
    "scaled by a number": lambda n, x: 2 * x,
    "masked by itself": lambda n, x: x * (x > 0),
    "dividend": lambda n, x: x / (2 + x.sigmoid()),
    "square": lambda n, x: x**2,
    "between bounds around zero": lambda n, x: x.clamp(-0.1, 0.1),
    "below a bound": lambda n, x: torch.clamp_max(x, 0.1),
    "above a negative bound": lambda n, x: x.clamp_min(-0.1),
    "power by name": lambda n, x: torch.pow(x, exponent=2),
    "between bounds of another function": lambda n, x: F.hardtanh(x, -0.1, 0.2),
    "filled with zeros": lambda n, x: x.masked_fill(x > 0.1, 0.0),
    "larger of two": lambda n, x: torch.maximum(x, -x),
    "stacked": lambda n, x: torch.stack([x, x.tanh()], 1),
    "outer product": lambda n, x: x.unsqueeze(1) * x.unsqueeze(2),
    "matrix product": lambda n, x: x.unsqueeze(2) @ x.unsqueeze(1),
}

NOT_ZERO: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sigmoid": lambda n, x: x.sigmoid(),
    "cosine": lambda n, x: x.cos(),
    "batch norm without them": lambda n, x: n.bare(x),
    "number added": lambda n, x: x + 1,
    "subtracted from a number": lambda n, x: 1 - x,
    "buffer added": lambda n, x: x + n.k,
    "one parameter added to all units": lambda n, x: x + n.one,
    "what is not zero added": lambda n, x: x + x.sigmoid(),
    "their mean subtracted": lambda n, x: (x - x.mean(1, keepdim=True)) ** 2,
    "their sum added": lambda n, x: x + x.sum(1, keepdim=True).expand_as(x),
    "their sum spread": lambda n, x: x.sum(1, keepdim=True).expand(-1, 8) * x.sigmoid(),
    "larger than the mean": lambda n, x: torch.maximum(x, x.mean(1, keepdim=True)),
    "divisor": lambda n, x: 2 / (2 + x),
    "power of nothing": lambda n, x: x**0,
    "exponent": lambda n, x: 2**x,
    "angle": lambda n, x: torch.atan2(x, x + 1),
    "compared": lambda n, x: (x <= 0) * n.k,
    "above one bound": lambda n, x: x.clamp_min(0.1),
    "power by a tensor": lambda n, x: torch.pow(x.abs(), exponent=n.k),
    "above a bound": lambda n, x: x.clamp(0.1, 1),
    "above a bound of another function": lambda n, x: F.hardtanh(x, 0.1, 1),
    "filled with ones": lambda n, x: x.masked_fill(x > 0.1, 1.0),
    "chosen": lambda n, x: torch.where(x > 0, x, n.k),
    "one of a stack": lambda n, x: torch.stack([x, x.sigmoid()], 1),
    "outer sum": lambda n, x: x.unsqueeze(1) + x.unsqueeze(2),
    "outer product with what is not": lambda n, x: x.unsqueeze(1) * x.sigmoid().unsqueeze(2),
    "outer quotient": lambda n, x: x.unsqueeze(1) / (2 + x.sigmoid().unsqueeze(2)),
    "matrix product with what is not": lambda n, x: x.unsqueeze(2) @ x.sigmoid().unsqueeze(1),
    "products written as letters": lambda n, x: torch.einsum("bi,bj->bij", x, x.sigmoid()),
    "masked along another axis": lambda n, x: x.unsqueeze(1).masked_fill(x.unsqueeze(2) > 0, 0.0).expand(-1, 8, -1),
}


@pytest.mark.parametrize("name", [*ZERO, *NOT_ZERO])
def test_a_sum_over_units_is_followed_where_the_dropped_ones_are_zero(name: str) -> None:
    model = summed((ZERO | NOT_ZERO)[name])
    analysis = analysed(model, vectors())
    assert sizes(analysis) == ([6, 8] if name in ZERO else [6])
    for seed in (0, 1):
        assert parity_error(model, (vectors(),), seed) <= FLOAT64_LIMIT


@pytest.mark.parametrize(("activation", "groups"), [(nn.ReLU, [6, 8]), (nn.Sigmoid, [6])])
def test_an_activation_inside_of_a_norm_decides_where_it_is_zero(activation: Any, groups: list[int]) -> None:
    norm = pytest.importorskip("timm.layers.norm_act").BatchNormAct2d(8, act_layer=activation)
    model = net(
        lambda net, x: net.fc(net.b(x).mean((2, 3)) * net.n(net.a(x)).mean((2, 3)).sum(1, keepdim=True)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(3, 6, 1),
        n=norm,
        fc=nn.Linear(6, 5),
    )
    assert sizes(analysed(model, images())) == groups
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


def test_zeros_are_known_by_place() -> None:
    a, b = Dim(4), Dim(4)
    op = _Fake()
    row, column = (Axis((a,)), constant(1)), (constant(1), Axis((b,)))
    both = (Axis((a,)), Axis((b,)))
    zero_by_place(op, both, [((Axis((a,)),), row)])
    assert op.zeros == [a]
    b.exp = Axis((a,))
    zero_by_place(op, both, [((Axis((a,)),), row)])
    assert op.zeros == []
    zero_by_place(op, both, [((Axis((a,)),), row), ((Axis((a,)),), column)])
    assert op.zeros == [a]
    zero_by_place(op, both, [((Axis((a,)),), row), ((Axis((a,)),), column)], all)
    assert op.zeros == []
    zero_by_place(op, both, [((Axis((a,)),), both)] * 2, all)
    assert op.zeros == [a]
    # An operand with fewer axes lacks the first ones.
    zero_by_place(op, both, [((Axis((a,)),), both[1:])])
    assert op.zeros == []


# Faults that were found ----------------------------------------------------------------------------------------------


def test_a_bound_that_is_a_tensor_is_coupled_with_what_it_bounds() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).clamp(min=net.low)), a=nn.Linear(3, 8), low=parameter(8), fc=nn.Linear(8, 5)
    )
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


def test_a_bound_for_every_token_passes() -> None:
    model = net(lambda net, x: net.fc(net.a(x).clamp(min=0.1)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert parity_error(model, (tokens(),), 0) <= FLOAT64_LIMIT


def test_axes_that_turn_out_to_be_one_are_zero_where_both_are() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y, z = net.a(x), net.b(x)
        table = y.unsqueeze(2) * z.sigmoid().unsqueeze(1)
        # Only now y and z have the same units; the columns of the table are not zero for dropped ones.
        return net.fc((y + z) * table.sum(2))

    model = net(body, a=nn.Linear(3, 8), b=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT
