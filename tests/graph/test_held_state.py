"""What a forward keeps in attributes: found, told, and not taken for what was there before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.graph.held_state import held_tensors, version
from mdp_fx.graph.trace import trace
from mdp_fx.pipeline import analyse
from tests.graph.small import Body, net, vectors


def counts(net: Any, x: Tensor) -> Any:
    net.held = net.held + 1
    return net.a(x) * net.held


def averages(net: Any, x: Tensor) -> Any:
    net.held = 0.9 * net.held + 0.1 * net.a(x).mean(0)
    return net.a(x) - net.held


def resets(net: Any, x: Tensor) -> Any:
    net.held = torch.zeros(8)
    net.held += net.a(x).mean(0)
    return net.a(x) - net.held


def model_of(body: Body) -> nn.Module:
    model = net(body, a=nn.Linear(3, 8))
    model.register_buffer("held", torch.ones(8))
    return model


@pytest.mark.parametrize("body", [counts, averages, resets])
@pytest.mark.parametrize("front_end", ["symbolic", "export"])
def test_a_buffer_that_is_set_to_another_tensor_has_its_value(body: Body, front_end: Any) -> None:
    model = model_of(body)
    analysis = analyse(model, vectors(), front_end=front_end)
    x = vectors() * 2
    with torch.no_grad():
        assert torch.allclose(analysis.graph.module(x), model(x))


@pytest.mark.parametrize("body", [counts, averages, resets])
def test_a_buffer_that_is_set_is_told(body: Body) -> None:
    graph = analyse(model_of(body), vectors(), front_end="symbolic").graph
    assert graph.baked_in == ("what the forward keeps for its next call, as in the first one (held)",)


def test_a_plain_attribute_that_is_set_is_told() -> None:
    def body(net: Any, x: Tensor) -> Any:
        net.last = net.a(x)
        net.inner[1].seen = {"x": x}
        net.calls = 3
        return net.inner(net.last)

    model = net(body, a=nn.Linear(3, 8), inner=nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    assert set(trace(model, (vectors(),)).state) == {"last", "inner.1.seen"}


def test_constants_are_not_taken_for_state() -> None:
    assert trace(net(lambda net, x: net.a(x) * torch.ones(8), a=nn.Linear(3, 8)), (vectors(),)).state == ()


def test_held_tensors_are_known_by_identity_and_by_writes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    model[0].kept = [torch.zeros(2), 5]
    before = held_tensors(model)
    assert set(before) == {"0.running_mean", "0.running_var", "0.num_batches_tracked", "0.kept"}
    model[0].running_mean += 1
    assert held_tensors(model) == before
    model[0].kept[0] += 1
    assert {name for name, held in held_tensors(model).items() if held != before[name]} == {"0.kept"}


def test_tensors_of_inference_mode_have_no_writes() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(2)
        tensor += 1
    assert version(tensor) == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_scripted_modules_hold_tensors_too() -> None:
    assert set(held_tensors(torch.jit.script(nn.Sequential(nn.BatchNorm1d(3))))) >= {"0.running_mean"}
