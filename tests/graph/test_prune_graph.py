"""The typed graph: the batch, what is fixed at its borders, stored tensors, what is baked in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.axes import Axis, Dim, constant, free_dims, fresh
from mdp_fx.graph.axis_sizes import occurrences
from mdp_fx.graph.ops.op import Inference
from mdp_fx.graph.ops.registry import infer_node
from mdp_fx.graph.prune_graph import PruneGraph, infer, infer_types
from mdp_fx.graph.trace import trace
from mdp_fx.graph.unify import frozen_reasons
from tests.graph.small import Body, images, net, parameter, tokens, vectors
from tests.zoo import ZOO, Specimen


def typed(body: Body, x: Any, **layers: nn.Module | nn.Parameter) -> PruneGraph:
    return infer_types(trace(net(body, **layers), (x,)))


def two_layers(x: Tensor) -> PruneGraph:
    return typed(lambda net, x: net.b(torch.relu(net.a(x))), x, a=nn.Linear(3, 8), b=nn.Linear(8, 5))


def test_axis_zero_of_the_input_is_the_batch_and_the_rest_is_constant() -> None:
    graph = two_layers(tokens())
    assert graph.batch is not None
    assert (graph.batch.size, graph.batch.rigid, graph.batch.exp) == (2, True, None)
    assert graph.types["x"] == (Axis((graph.batch,)), constant(7), constant(3))
    assert graph.batch_source == "x"


def test_types_of_a_chain() -> None:
    graph = two_layers(vectors())
    batch, unit = graph.types["relu"]
    (dim,) = free_dims(unit)
    assert batch == Axis((graph.batch,)) if graph.batch is not None else False
    stored = {name: types for name, _, types in graph.stored()}
    assert {name: [axis.normal for axis in types] for name, types in stored.items()} == {
        "a.weight": [Axis((dim,)), Axis((3,))],
        "a.bias": [Axis((dim,))],
        "b.weight": [Axis((5,)), Axis((dim,))],
        "b.bias": [Axis((5,))],
    }


def test_outputs_are_frozen_but_for_the_batch() -> None:
    graph = typed(lambda net, x: {"a": net.a(x), "b": [net.b(x)]}, vectors(), a=nn.Linear(3, 8), b=nn.Linear(3, 5))
    for name in ("a", "b"):
        batch, features = graph.types[name]
        assert list(frozen_reasons(features)) == [(features.size, "output of the network")]
        assert free_dims(features) == []
        assert batch == Axis((graph.batch,) if graph.batch is not None else ())


def test_a_batch_that_meets_a_constant_is_fixed() -> None:
    graph = typed(lambda net, x: net.a(x) * net.w, vectors(), a=nn.Linear(3, 8), w=parameter(2, 1))
    assert graph.batch is None or graph.batch.exp is None
    graph = typed(lambda net, x: net.a(x) + torch.cumsum(net.w, 0), vectors(), a=nn.Linear(3, 8), w=parameter(2, 8))
    assert graph.batch is None
    assert graph.batch_source is None
    assert "the batch size: another one may fail" in graph.baked_in


def test_a_network_of_one_example_has_no_batch_dimension() -> None:
    graph = infer_types(trace(nn.Linear(3, 5), (vectors()[:1],), open_batch=False))
    assert graph.batch is None
    assert graph.types["input_1"] == (constant(1), constant(3))
    assert "the batch size: another one may fail" in graph.baked_in


def test_stored_tensors_are_listed_once_with_buffers_after_parameters() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.head(net.n(net.b(net.a(x)) + net.a(x)))

    a = nn.Linear(3, 8)
    b = nn.Linear(8, 8)
    b.bias = a.bias
    graph = typed(body, vectors(), a=a, b=b, n=nn.BatchNorm1d(8), head=nn.Linear(8, 5), unused=nn.Linear(4, 4))
    assert [name for name, _, _ in graph.stored()] == [
        "a.weight",
        "a.bias",
        "b.weight",
        "n.weight",
        "n.bias",
        "head.weight",
        "head.bias",
        "n.running_mean",
        "n.running_var",
    ]
    for _, tensor, types in graph.stored():
        assert [axis.size for axis in types] == list(tensor.shape)


def test_a_shared_tensor_has_one_type() -> None:
    layer = nn.Linear(8, 8)
    graph = typed(
        lambda net, x: net.head(net.b(net.b(net.a(x)))), vectors(), a=nn.Linear(3, 8), b=layer, head=nn.Linear(8, 5)
    )
    types = graph.tensors[id(layer.weight)]
    assert types[0].normal == types[1].normal
    assert len(free_dims(types[0])) == 1


def test_what_the_trace_decided_is_listed() -> None:
    graph = typed(
        lambda net, x: net.b(net.a(x) * torch.ones(8) + torch.tensor(2.0)),
        vectors(),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 5),
    )
    assert graph.baked_in == (
        "a tensor that the forward makes (8, read by mul)",
        "a tensor that the forward makes (scalar, read by add)",
    )
    assert two_layers(vectors()).baked_in == ()


def test_a_graph_can_be_typed_from_given_inputs() -> None:
    module = trace(net(lambda net, x: net.a(torch.relu(x)), a=nn.Linear(8, 5)), (vectors(8),)).module
    units = fresh(8)
    state = infer(module, {"x": (constant(2), units)})
    assert state.types["relu"] == (constant(2), units)
    weight = module.get_parameter("a.weight")
    assert state.tensors[id(weight)][1].normal == units.normal
    assert len(free_dims(units)) == 1
    assert "output" not in state.types


def signature(graph: PruneGraph) -> list[Any]:
    """What all types say, with Dims numbered as they are met."""
    numbers: dict[Dim, int] = {}
    return [
        (name, i, [(numbers.setdefault(dim, len(numbers)), units.tolist()) for dim, units in occurrences(axis)])
        for name, _, types in graph.stored()
        for i, axis in enumerate(types)
    ]


def infer_again(graph: PruneGraph) -> Inference:
    """Visits every node a second time."""
    state = Inference(graph.module, dict(graph.types), graph.tensors, dict(graph.emissions))
    for node in graph.module.graph.nodes:
        if node.op not in ("placeholder", "output"):
            infer_node(node, state)
    return state


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_visiting_every_node_twice_changes_nothing(specimen: Specimen) -> None:
    graph = infer_types(trace(specimen.make(), specimen.inputs()))
    before = signature(graph)
    state = infer_again(graph)
    assert signature(graph) == before
    assert state.emissions.keys() == graph.emissions.keys()


def test_what_freezes_an_axis_may_come_before_or_after_it_is_padded() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        padded = F.pad(y, (0, 3)) * net.w
        return net.b(padded) + net.c(torch.cumsum(y, 1))

    layers = {"a": nn.Linear(3, 8), "b": nn.Linear(11, 5), "c": nn.Linear(8, 5)}
    graph = typed(body, vectors(), **layers, w=parameter(11))
    before = signature(graph)
    infer_again(graph)
    assert signature(graph) == before


def test_images_keep_constant_places() -> None:
    graph = typed(lambda net, x: net.b(torch.relu(net.a(x))), images(), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 5, 1))
    assert [axis.normal for axis in graph.types["a"][2:]] == [Axis((2,)), Axis((2,))]
    assert [axis.normal for axis in graph.tensors[id(graph.module.get_parameter("a.weight"))][2:]] == [Axis((3,))] * 2
