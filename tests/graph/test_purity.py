"""Purity: which nodes may go when nobody reads them, and that exactly those do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.graph.purity import IN_PLACE_OPERATORS, WRITES, is_pure, remove_dead_nodes, target_name
from mdp_fx.graph.trace import trace
from tests.graph.small import net, parameter, vectors

Make = Callable[[fx.Graph, fx.Node], fx.Node]


def made(make: Make) -> fx.Node:
    graph = fx.Graph()
    return make(graph, graph.placeholder("x"))


PURE: dict[str, Make] = {
    "module": lambda g, x: g.call_module("layer", (x,)),
    "attribute": lambda g, x: g.get_attr("weight"),
    "function": lambda g, x: g.call_function(torch.relu, (x,)),
    "method": lambda g, x: g.call_method("mul", (x, 2)),
    "operator": lambda g, x: g.call_function(operator.add, (x, 1)),
    "getitem": lambda g, x: g.call_function(operator.getitem, (x, 0)),
    "getattr": lambda g, x: g.call_function(getattr, (x, "T")),
    "not in place": lambda g, x: g.call_function(F.relu, (x,), {"inplace": False}),
    "no out": lambda g, x: g.call_function(torch.add, (x, x), {"out": None}),
    "double underscores": lambda g, x: g.call_method("__and__", (x, x)),
    "a flag of the tensor": lambda g, x: g.call_method("requires_grad_", (x,)),
    "overload": lambda g, x: g.call_function(torch.ops.aten.add.Tensor, (x, x)),
}

IMPURE: dict[str, Make] = {
    "placeholder": lambda g, x: x,
    "output": lambda g, x: g.output(x),
    "method in place": lambda g, x: g.call_method("mul_", (x, 2)),
    "function in place": lambda g, x: g.call_function(torch.relu_, (x,)),
    "asked in place": lambda g, x: g.call_function(F.relu, (x,), {"inplace": True}),
    "given memory": lambda g, x: g.call_function(torch.add, (x, x), {"out": x}),
    "assignment": lambda g, x: g.call_function(operator.setitem, (x, 0, 1)),
    "assignment method": lambda g, x: g.call_method("__setitem__", (x, 0, 1)),
    "augmented method": lambda g, x: g.call_method("__iadd__", (x, 1)),
    "overload in place": lambda g, x: g.call_function(torch.ops.aten.add_.Tensor, (x, x)),
    "overload that updates": lambda g, x: g.call_function(torch.ops.aten._native_batch_norm_legit.default, (x,)),
    **{
        function.__name__: lambda g, x, function=function: g.call_function(function, (x, 2))  # type: ignore[misc]
        for function in IN_PLACE_OPERATORS
    },
}


@pytest.mark.parametrize("make", PURE.values(), ids=PURE)
def test_what_only_computes_is_pure(make: Make) -> None:
    assert is_pure(made(make))


@pytest.mark.parametrize("make", IMPURE.values(), ids=IMPURE)
def test_what_writes_or_is_an_interface_is_not(make: Make) -> None:
    assert not is_pure(made(make))


def test_an_overload_has_the_name_of_its_operator() -> None:
    assert target_name(torch.ops.aten.add_.Tensor) == "add_"
    assert target_name(torch.add) == target_name("add") == "add"


@pytest.mark.parametrize("make", PURE.values(), ids=PURE)
def test_a_node_that_is_marked_as_writing_is_not_pure(make: Make) -> None:
    node = made(make)
    node.meta[WRITES] = True
    assert not is_pure(node)


@pytest.mark.parametrize("in_place", IN_PLACE_OPERATORS, ids=lambda function: function.__name__)
def test_in_place_operators_have_a_pure_spelling_of_the_same_value(in_place: Callable[..., Tensor]) -> None:
    bitwise = in_place in (operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift)
    x = torch.tensor([6, 3], dtype=torch.int64 if bitwise else torch.float64)
    before = x.clone()
    expected = IN_PLACE_OPERATORS[in_place](x, 2)
    assert torch.equal(x, before)
    assert torch.equal(in_place(x, 2), expected)
    assert torch.equal(x, expected)


def test_a_chain_that_nobody_reads_goes() -> None:
    def body(net: Any, x: Tensor) -> Any:
        torch.relu(net.b(x) * net.scale).sum()
        return net.a(x)

    module = trace(net(body, a=nn.Linear(3, 4), b=nn.Linear(3, 4), scale=parameter(4)), (vectors(),)).module
    assert remove_dead_nodes(module.graph)
    assert [node.name for node in module.graph.nodes] == ["x", "a", "output"]
    assert not remove_dead_nodes(module.graph)


def writes_a_slice(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    y[:, :2].mul_(0)
    return y


def assigns_a_slice(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    y[:, 1] = 0.5
    return y


def activates_in_place(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    F.relu(y, inplace=True)
    return y


@pytest.mark.parametrize("body", [writes_a_slice, assigns_a_slice, activates_in_place], ids=lambda body: body.__name__)
def test_writes_that_nobody_reads_stay(body: Callable[..., Any]) -> None:
    model = net(body, a=nn.Linear(3, 4))
    module = trace(model, (vectors(),)).module
    count = len(module.graph.nodes)
    assert not remove_dead_nodes(module.graph)
    assert len(module.graph.nodes) == count
    module.recompile()
    with torch.no_grad():
        assert torch.equal(module(vectors()), model(vectors()))


def test_the_input_stays_even_where_nobody_reads_it() -> None:
    module = trace(net(lambda net, x: net.w * 2, w=parameter(3)), (vectors(),)).module
    remove_dead_nodes(module.graph)
    assert [node.name for node in module.graph.nodes] == ["x", "w", "mul", "output"]
