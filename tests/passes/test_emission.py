"""Emission: sizes written again from types, the batch read from the input, constants left alone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.graph.axes import Axis, Dim, constant, product
from mdp_fx.graph.ops.op import Emission
from mdp_fx.passes.channel_groups import ChannelGroup
from mdp_fx.passes.emission import emit_sizes
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import error, reference
from tests.zoo import image

Body = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Two convolutions; the forward is given."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(8 * 16, 5)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def sliced(body: Body, kept: dict[str, list[int]]) -> fx.GraphModule:
    torch.manual_seed(0)
    return rewrite(analyse(Net(body).eval(), (image(side=4),)), kept, ())


def calls(module: fx.GraphModule, target: object) -> list[tuple[Any, ...]]:
    """Arguments of the calls of one function or method, without the operand."""
    return [node.args[1:] for node in module.graph.nodes if node.target == target]


def test_a_view_follows_the_channels_and_the_batch() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.first(x)
        return net.fc(x.view(x.size(0), -1))

    slim = sliced(body, {"first": [0, 3, 5]})
    assert calls(slim, torch.reshape) == [([-1, 3 * 16],)]
    assert slim.get_submodule("fc").in_features == 48
    for batch in (1, 2, 5):
        assert slim(image(side=4, batch=batch)).shape == (batch, 5)


def test_a_view_that_splits_the_batch_off_reads_it_from_the_input() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.first(x)
        # Two open sizes cannot both be -1: one of them is read from the input.
        tokens = x.flatten(2).transpose(1, 2).reshape(x.size(0) * 16, 8)
        return tokens.reshape(x.size(0), 16, 8).mean(1)[:, :1] + net.fc(x.flatten(1))

    slim = sliced(body, {})
    for batch in (1, 3):
        assert slim(image(side=4, batch=batch)).shape == (batch, 5)


def test_a_split_is_written_with_the_sizes_of_its_parts() -> None:
    def body(net: Net, x: Tensor) -> Any:
        a, b, c = torch.split(net.first(x), [2, 4, 2], 1)
        return net.second(torch.cat([c, F.relu(b), a], 1)).mean((2, 3))

    slim = sliced(body, {"first": [0], "first#2": [1, 2, 3], "first#3": [0, 1]})
    assert calls(slim, torch.split) == [([1, 3, 2], 1)]
    assert slim(image(side=4)).shape == (2, 6)


def test_a_chunk_becomes_a_split_with_unequal_parts() -> None:
    def body(net: Net, x: Tensor) -> Any:
        a, b = net.first(x).chunk(2, 1)
        return net.second(torch.cat([b, F.relu(a)], 1)).mean((2, 3))

    slim = sliced(body, {"first": [0, 2, 3], "first#2": [1]})
    assert calls(slim, torch.split) == [([3, 1], 1)]


def test_a_slice_has_its_bounds_moved() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.first(x)
        return net.second(torch.cat([x[:, 5:], F.relu(x[:, :5])], 1)).mean((2, 3))

    slim = sliced(body, {"first": [0, 1], "first#2": [2]})
    assert [args[0][1] for args in calls(slim, operator.getitem)] == [slice(2, 3, None), slice(0, 2, None)]


def test_padded_channels_have_their_amounts_written() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.first(x)[:, :4]
        return net.second(F.pad(x, (0, 0, 0, 0, 1, 3))).mean((2, 3))

    def padded(net: Net, x: Tensor) -> Any:
        return net.second(F.relu(F.pad(net.first(x)[:, :4], (0, 0, 0, 0, 1, 3)))).mean((2, 3))

    for made in (body, padded):
        slim = sliced(made, {"first": [0, 3]})
        (arguments,) = calls(slim, F.pad)
        assert arguments[0][4:] == [1, 3]


def test_groups_of_a_functional_convolution_are_written() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))
            self.last = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Any:
            x = F.conv2d(self.first(x), self.weight, None, 1, 1, 1, 8)
            return self.last(x).mean((2, 3))

    slim = rewrite(analyse(Functional().eval(), (image(side=4),)), {"weight": [1, 2, 6]}, ())
    (node,) = slim.graph.find_nodes(op="call_function", target=F.conv2d)
    assert node.args[6] == 3
    assert slim(image(side=4, batch=1)).shape == (1, 5)


def test_constant_literals_stay_as_they_are_written() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.second(F.relu(net.first(x)))
        return F.interpolate(x, size=(2, 2)).reshape(-1, 6, 4).mean(2) * 6**-0.5

    slim = sliced(body, {"first": [0]})
    (scale,) = calls(slim, operator.mul)
    assert scale == (6**-0.5,)
    assert slim(image(side=4, batch=3)).shape == (3, 6)


def written(axes: Any, kept: dict[Dim, int], *, target: Any = torch.reshape, source: str | None = "x") -> Any:
    """The arguments of one node whose emission says `axes`, and the nodes before it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(target, (x, [1]))
    graph.output(node)
    module = fx.GraphModule(nn.Module(), graph)
    nodes = {n.name: n for n in module.graph.nodes}
    emission = Emission(node=("call_function", target, (nodes["x"], axes), {}))
    emit_sizes(
        module.graph, dict(module.named_modules()), {node.name: emission}, lambda dim: kept.get(dim, dim.size), source
    )
    (call,) = [n for n in module.graph.nodes if n.name == node.name]
    return call.args[1], [n for n in module.graph.nodes if n.op.startswith("call") and n is not call]


def test_types_are_replaced_by_kept_sizes() -> None:
    a, b = Dim(8), Dim(3)
    sizes, before = written([product(a, b), constant(4), Axis((a,), (b,))], {a: 5, b: 2})
    assert (sizes, before) == ([10, 4, 7], [])


def test_one_open_size_of_a_reshape_is_minus_one() -> None:
    a, batch = Dim(8), Dim(2, rigid=True)
    sizes, before = written([Axis((batch,)), product(a)], {a: 5})
    assert (sizes, before) == ([-1, 5], [])
    sizes, before = written([product(batch, a), constant(4)], {a: 5})
    assert (sizes, before) == ([-1, 4], [])


def test_open_sizes_of_other_ops_are_read_from_the_input() -> None:
    a, batch = Dim(8), Dim(2, rigid=True)
    sizes, before = written([Axis((batch,)), product(batch, a)], {a: 5}, target=torch.Tensor.expand)
    assert [node.target for node in before] == ["size", "size", operator.mul]
    assert sizes == [before[0], before[2]]
    assert before[2].args == (before[1], 5)


def test_slices_dicts_and_nodes_are_written_through() -> None:
    a = Dim(8)
    index, _ = written((slice(Axis((a,)), None), {"size": Axis((a,))}, slice(None), "text", 3), {a: 5})
    assert index == (slice(5, None, None), {"size": 5}, slice(None), "text", 3)


def test_an_emission_of_constants_changes_nothing() -> None:
    frozen = Dim(8)
    frozen.exp = constant(8)
    sizes, before = written([Axis((frozen,)), constant(4)], {frozen: 5})
    assert (sizes, before) == ([1], [])


@pytest.mark.parametrize("name", ["in_features", "not_there"])
def test_attributes_are_set_where_the_module_has_them(name: str) -> None:
    a = Dim(8)
    root = nn.Module()
    root.fc = nn.Linear(8, 2)
    graph = fx.Graph()
    node = graph.call_module("fc", (graph.placeholder("x"),))
    graph.output(node)
    module = fx.GraphModule(root, graph)
    emit_sizes(
        module.graph,
        dict(module.named_modules()),
        {node.name: Emission(attributes={name: Axis((a,))})},
        lambda _: 3,
        None,
    )
    fc = module.get_submodule("fc")
    assert getattr(fc, name, None) == (3 if name == "in_features" else None)


class TwoTowers(nn.Module):
    """Two layers of equal width behind one norm that stores nothing."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 16), nn.Linear(3, 16)
        self.norm = norm
        self.last, self.other = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.norm(self.first(x))) + self.other(self.norm(self.second(x)))


@pytest.mark.parametrize(
    ("norm", "attribute", "sizes"),
    [
        (nn.GroupNorm(4, 16, affine=False), "num_groups", (2, 4)),
        (nn.LayerNorm(16, elementwise_affine=False), "normalized_shape", ((8,), (16,))),
        (nn.RMSNorm(16, elementwise_affine=False), "normalized_shape", ((8,), (16,))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_calls_of_one_module_with_sizes_of_their_own_get_modules_of_their_own(
    norm: nn.Module, attribute: str, sizes: tuple[Any, Any]
) -> None:
    x = torch.randn(2, 3)
    analysis = analyse(TwoTowers(norm).eval(), (x,))
    dense, slim = rewrite(analysis, {}, ()), rewrite(analysis, kept := _first_half(analysis.groups[0]), ())
    assert [getattr(slim.get_submodule(name), attribute) for name in ("norm", "norm_at_norm_1")] == list(sizes)
    assert "norm_at_norm_1" not in dict(dense.named_modules())
    with torch.no_grad():
        assert error(reference(analysis, kept, ()).run(x), slim(x)) <= 1e-6


def _first_half(group: ChannelGroup) -> dict[str, list[int]]:
    return {group.name: list(range(group.size // 2))}
