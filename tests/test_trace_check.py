"""The graph is compared with the model: on the user's own inputs, on another batch, and not where a model is random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx import trace_check
from mdp_fx.errors import ModelError
from mdp_fx.graph.prune_graph import PruneGraph
from mdp_fx.passes.slice_channels import dense_network
from mdp_fx.pipeline import analyse, rewrite
from mdp_fx.trace_check import difference, resized
from tests.graph.small import Body, images, net, vectors


def two_layers(body: Body) -> nn.Module:
    return net(body, a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 5))


def squeezed() -> nn.Module:
    return two_layers(lambda net, x: net.fc(F.adaptive_avg_pool2d(net.a(x), 1).squeeze()))


def rotated() -> nn.Module:
    """Has an axis of two that is none of the batch's, whatever that is."""

    def body(net: Any, x: Tensor) -> Any:
        turned = torch.rot90(net.a(x)[:, :2], 1, (0, 1)).reshape(2, -1)
        return net.fc(net.a(x).mean((2, 3))) + turned.mean(1).reshape(2, 1).sum()

    return two_layers(body)


def doubled_in_place_of_one() -> nn.Module:
    """Looks at no size, and gives another value for one example than for two."""
    return two_layers(lambda net, x: net.fc(net.a(x).mean((2, 3))) * net.a(x).squeeze().ndim)


@pytest.mark.parametrize("make", [squeezed, rotated, doubled_in_place_of_one])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_graph_is_the_network_on_the_inputs_as_they_were_given(make: Any, batch: int) -> None:
    model, x = make(), torch.randn(batch, 3, 8, 8)
    analysis = analyse(model, (x,))
    with torch.no_grad():
        assert torch.allclose(model(x), rewrite(analysis, {}, ())(x), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "batch", "baked"),
    [(squeezed, 1, True), (squeezed, 2, False), (rotated, 1, True), (rotated, 2, True), (rotated, 3, False)],
)
def test_a_batch_that_is_different_for_others_is_baked_in(make: Any, batch: int, baked: bool) -> None:
    graph = analyse(make(), (torch.randn(batch, 3, 8, 8),)).graph
    assert (graph.batch is None) == baked
    assert ("the batch size: another one may fail" in graph.baked_in) == baked
    assert graph.example_inputs[0].shape[0] == (batch if baked else max(2, batch))


def with_weight(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Lets the graph have another weight than the model."""

    def changed(graph: PruneGraph) -> fx.GraphModule:
        network = dense_network(graph)
        layer = network.get_submodule(name)
        layer.weight = nn.Parameter(change(layer.weight.detach()))  # type: ignore[operator, union-attr]
        return network

    monkeypatch.setattr(trace_check, "dense_network", changed)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda weight: weight / 2,
            r"output 0 of the graph is off by \S+ where the largest value is \S+ \(allowed: 0.001 of that\)$",
        ),
        (lambda weight: weight[:, :3], "it fails: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch, change: Any, text: str) -> None:
    with_weight(monkeypatch, "b", change)
    model = net(lambda net, x: net.c(net.b(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))
    with pytest.raises(ModelError, match=f"^the graph of Net is another network: from b on {text}"):
        analyse(model, (vectors(),))


def test_a_random_network_is_not_refused() -> None:
    model = net(lambda net, x: net.fc(net.a(x) + torch.rand(8)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert analyse(model, (vectors(),)).graph.batch is not None


def test_a_subclass_that_changes_how_it_is_called_is_traced_through() -> None:
    class Doubled(nn.Linear):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x) * 2

    model = net(lambda net, x: net.fc(net.a(x)), a=Doubled(3, 8), fc=nn.Linear(8, 5))
    for front_end in ("symbolic", "export"):
        analysis = analyse(model, (vectors(),), front_end=front_end)  # type: ignore[arg-type]
        slim = rewrite(analysis, {"a": [0, 3]}, ())
        assert [group.size for group in analysis.groups] == [8]
        with torch.no_grad():
            assert torch.allclose(model(vectors()), rewrite(analysis, {}, ())(vectors()), atol=1e-6)
        assert slim(vectors()).shape == (2, 5)


def test_numbers_among_the_outputs_must_agree() -> None:
    model = net(lambda net, x: (net.fc(x), x.shape[0]), fc=nn.Linear(3, 5))
    assert analyse(model, (vectors(),)).graph.batch is None


def test_records_are_compared_as_dicts() -> None:
    @dataclass
    class Found:
        scores: Tensor
        boxes: Any = None

    model = net(lambda net, x: Found(net.fc(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    analysis = analyse(model, (vectors(),))
    assert analysis.graph.batch is not None
    assert difference(model, analysis.graph, (vectors(),)) is None


def test_nothing_is_said_of_inputs_that_the_model_does_not_take() -> None:
    model = net(lambda net, x: net.fc(x) if len(x) < 5 else x[5.0], fc=nn.Linear(3, 5))
    analysis = analyse(model, (vectors(),))
    assert analysis.graph.batch is not None
    assert difference(model, analysis.graph, (torch.randn(5, 3),)) is None


def test_neither_the_model_nor_its_inputs_nor_the_graph_are_written_to() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 5)
            self.calls = nn.Buffer(torch.zeros(()))

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return self.fc(x.add_(1)) * self.calls

    model, x = Counting(), vectors()
    analysis = analyse(model, (x,))
    assert difference(model, analysis.graph, (x,)) is None
    assert torch.equal(x, vectors())
    assert model.calls == 0
    assert model.training
    assert all(float(value) == 0 for name, value in analysis.graph.module.named_buffers() if "calls" in name)


def test_a_batch_of_another_size_has_examples_that_differ() -> None:
    x, numbers = images(), torch.arange(2)
    more, same, flag = resized((x, numbers, True), 5)
    assert more.shape == (5, *x.shape[1:])
    assert len({float(example.sum()) for example in more}) == 5
    assert same.tolist() == [0, 1, 0, 1, 0]
    assert flag is True
