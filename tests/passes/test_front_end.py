"""Which front end is taken, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import InputError, ModelError
from mdp_fx.pipeline import analyse
from tests.graph.small import net, vectors


def easy() -> nn.Module:
    return net(lambda net, x: net.fc(torch.relu(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))


def hard() -> nn.Module:
    return net(lambda net, x: net.fc(torch.vmap(torch.relu)(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))


def hopeless() -> nn.Module:
    def body(net: Any, x: Tensor) -> Any:
        return net.fc(net.a(x)) if x.sum() > 0 else net.a(x)

    return net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("model", "asked", "taken", "why"),
    [
        (easy, "auto", "symbolic", "its forward can be traced"),
        (easy, "symbolic", "symbolic", "as asked"),
        (easy, "export", "export", "as asked"),
        (hard, "auto", "export", "symbolic tracing fails: its forward calls torch.vmap"),
        (hard, "export", "export", "as asked"),
    ],
)
def test_the_front_end_and_the_reason(model: Any, asked: Any, taken: str, why: str) -> None:
    graph = analyse(model(), vectors(), front_end=asked).graph
    assert (graph.front_end, graph.why) == (taken, why)


def test_symbolic_alone_does_not_export() -> None:
    with pytest.raises(ModelError, match=r"^Net runs but cannot be traced: its forward calls torch.vmap$"):
        analyse(hard(), vectors(), front_end="symbolic")


def test_a_network_that_neither_can_follow_is_told_of_both() -> None:
    with pytest.raises(ModelError, match=r"^Net runs but cannot be traced: its forward decides .*") as caught:
        analyse(hopeless(), vectors())
    assert str(caught.value).endswith("; torch.export fails too")
    assert "\n" not in str(caught.value)


def test_another_reason_of_export_is_told() -> None:
    model = net(lambda net, x: net.a(x) * float(x.detach().numpy().max()), a=nn.Linear(3, 8))
    with pytest.raises(ModelError, match=r"cannot be traced: its forward decides.*; torch.export fails too: .*numpy"):
        analyse(model, vectors())


def test_inputs_that_do_not_fit_are_not_exported() -> None:
    with pytest.raises(InputError, match="rejects an input"):
        analyse(easy(), vectors(4))


def test_an_unknown_front_end() -> None:
    with pytest.raises(InputError, match="unknown front end 'dynamo': use one of auto, symbolic, export"):
        analyse(easy(), vectors(), front_end="dynamo")  # type: ignore[arg-type]
