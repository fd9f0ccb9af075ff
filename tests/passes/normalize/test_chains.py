"""What moves or reshapes axes is recognised in every spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from mdp_fx.graph.trace import trace
from mdp_fx.passes.normalize.chains import is_copy, is_reshape, operand_of, permutation
from tests.graph.small import net

Call = Callable[[Tensor], Tensor]


def node_of(call: Call) -> fx.Node:
    """The last node of a network that calls one function on a (2, 4, 4, 4) input."""
    module = trace(net(lambda m, x: call(x)), (torch.randn(2, 4, 4, 4),)).module
    return list(module.graph.nodes)[-2]


@pytest.mark.parametrize(
    ("call", "order"),
    [
        (lambda x: x.permute(0, 2, 3, 1), (0, 2, 3, 1)),
        (lambda x: x.permute((0, -1, 1, 2)), (0, 3, 1, 2)),
        (lambda x: torch.permute(x, dims=(1, 0, 2, 3)), (1, 0, 2, 3)),
        (lambda x: x.transpose(1, -1), (0, 3, 2, 1)),
        (lambda x: torch.transpose(x, 2, 3), (0, 1, 3, 2)),
        (lambda x: x.swapaxes(0, 1), (1, 0, 2, 3)),
        (lambda x: x.movedim(1, -1), (0, 2, 3, 1)),
        (lambda x: torch.moveaxis(x, (2, 3), (0, 1)), (2, 3, 0, 1)),
        (lambda x: torch.ops.aten.permute.default(x, [3, 2, 1, 0]), (3, 2, 1, 0)),
    ],
)
def test_permutations(call: Call, order: tuple[int, ...]) -> None:
    assert permutation(node_of(call)) == order


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.view(2, 4, 16),
        lambda x: x.reshape((2, -1)),
        lambda x: torch.reshape(x, (8, 4, 4)),
        lambda x: x.flatten(1),
        lambda x: torch.unflatten(x, 1, (2, 2)),
    ],
)
def test_reshapes(call: Call) -> None:
    node = node_of(call)
    assert is_reshape(node)
    assert permutation(node) is None
    assert not is_copy(node)


@pytest.mark.parametrize("call", [lambda x: x.clone(), lambda x: x.transpose(1, 2).contiguous(), torch.clone])
def test_copies(call: Call) -> None:
    assert is_copy(node_of(call))


@pytest.mark.parametrize(
    "call", [lambda x: x.relu(), lambda x: x.view(torch.int32), lambda x: x.sum(1), lambda x: x.expand(2, 4, 4, 4)]
)
def test_other_calls(call: Call) -> None:
    node = node_of(call)
    assert not is_reshape(node)
    assert not is_copy(node)
    assert permutation(node) is None


def test_calls_of_several_tensors_have_no_one_operand() -> None:
    assert operand_of(node_of(lambda x: x + x.relu())) is None
    assert operand_of(node_of(lambda x: 1 - x)) is None
