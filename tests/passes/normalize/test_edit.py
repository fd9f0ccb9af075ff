"""Edits of a graph: what is recorded of new nodes, and what is stored and forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import weight_norm

from mdp_fx.graph.trace import trace
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE
from mdp_fx.passes.normalize.edit import (
    Editor,
    argument,
    discard,
    forget_unread,
    free_name,
    is_plain,
    replace,
    store,
    taken,
)
from tests.graph.small import net, tokens
from tests.passes.normalize.bench import targets


def traced(body: Any, **layers: nn.Module) -> fx.GraphModule:
    return trace(net(body, **layers), (tokens(),)).module


def two_layers(m: Any, x: Tensor) -> Tensor:
    return m.second(m.first(x))


def small() -> tuple[fx.GraphModule, list[fx.Node]]:
    module = traced(two_layers, first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    return module, list(module.graph.nodes)


def test_new_nodes_know_their_values() -> None:
    module, (_, first, second, _) = small()
    edit = Editor(module, second)
    views = [edit.call("reshape", first, (14, 4)), edit.call(torch.permute, first, (2, 0, 1))]
    made = [edit.call(torch.softmax, first, -1), edit.layer("second", first), edit.call("to", first, torch.float64)]
    stored = edit.stored("second.weight")
    assert [node.meta[SHAPE] for node in [*views, *made, stored]] == [
        (14, 4),
        (4, 2, 7),
        (2, 7, 4),
        (2, 7, 2),
        (2, 7, 4),
        (2, 4),
    ]
    assert [node.meta[ALIASES] for node in [*views, *made, stored]] == [("first",)] * 2 + [()] * 4
    assert made[-1].meta[DTYPE] is torch.float64
    module.graph.lint()


def test_replacing_discards_what_nobody_reads() -> None:
    module, (x, _, second, _) = small()
    store(module, "deep.down.weight", nn.Parameter(torch.zeros(3, 2)))
    edit = Editor(module, second)
    replace(second, edit.call(torch.matmul, x, edit.stored("deep.down.weight")))
    assert targets(module) == ["deep.down.weight", "matmul"]
    forget_unread(module)
    assert list(module.state_dict()) == ["deep.down.weight"]


def test_what_is_read_or_writes_is_not_discarded() -> None:
    module = traced(lambda m, x: (m.first(x), x.clone().add_(1))[0], first=nn.Linear(3, 4))
    nodes = {node.name: node for node in module.graph.nodes}
    for name in ("first", "add_", "x"):
        discard(nodes[name])
    assert targets(module) == ["first", "clone", "add_"]


def test_forgetting_keeps_what_is_read() -> None:
    module = traced(lambda m, x: m.first(x) @ m.second.weight, first=nn.Linear(3, 4), second=nn.Linear(2, 4))
    module.get_submodule("second").register_parameter("other", nn.Parameter(torch.zeros(1)))
    module.register_buffer("unread", torch.zeros(1))
    forget_unread(module)
    assert sorted(module.state_dict()) == ["first.bias", "first.weight", "second.weight"]


def test_ranges_of_entries_share_memory() -> None:
    weight = nn.Parameter(torch.randn(6, 2), requires_grad=False)
    part = taken(weight, torch.arange(2, 5))
    assert part.data_ptr() == weight[2:].data_ptr()
    assert not part.requires_grad
    strided = taken(weight, torch.tensor([0, 2, 5]))
    assert torch.equal(strided, weight[[0, 2, 5]])
    assert strided.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()


def test_free_names() -> None:
    module, _ = small()
    assert [free_name(module, name) for name in ("third", "first", "first.weight")] == [
        "third",
        "first_1",
        "first.weight_1",
    ]


def test_plain_layers_have_one_class_and_nothing_beside_it() -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_pre_hook(lambda *_: None)
    assert is_plain(nn.Linear(2, 2), nn.Conv2d, nn.Linear)
    assert not is_plain(hooked, nn.Linear)
    assert not is_plain(weight_norm(nn.Linear(2, 2)), nn.Linear)
    assert not is_plain(type("Other", (nn.Linear,), {})(2, 2), nn.Linear)


@pytest.mark.parametrize(
    "call", [lambda x: x.unbind(2), lambda x: torch.unbind(x, 2), lambda x: torch.unbind(x, dim=2)]
)
def test_arguments_by_position_or_name(call: Any) -> None:
    module = traced(lambda m, x: sum(call(x)))
    (node,) = [node for node in module.graph.nodes if node.name == "unbind"]
    assert argument(node, 1, "dim", 0) == 2
    assert argument(node, 5, "other", "none") == "none"
