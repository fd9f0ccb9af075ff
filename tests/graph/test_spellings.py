"""Both front ends find the same groups, however a forward spells what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.choices import Analysis
from mdp_fx.pipeline import analyse
from tests.graph.ops import test_elementwise, test_indexing, test_products, test_reductions, test_resampling, test_shape
from tests.graph.ops.small import conv, linear, mean
from tests.graph.small import frozen, images, net, parameter, tokens, vectors

ORDER = [3, 1, 0, 2, 7, 6, 5, 4]


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] = 0.0
    return y


def _written_between(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 3:5] = x[:, :2]
    return y


def _places(net: Any, x: Tensor) -> Tensor:
    return net.fc(mean(F.grid_sample(net.a(x), x[:, :2].permute(0, 2, 3, 1), "nearest", "border", align_corners=True)))


NETWORKS: dict[str, tuple[nn.Module, Tensor]] = {
    **{
        f"{table.__name__.rpartition('_')[2]}: {name}": case[:2]
        for table in (test_indexing, test_shape, test_reductions, test_resampling)
        for name, case in table.FOLLOWED.items()
    },
    **{f"products: {name}": (net(c.body, **c.layers()), c.x) for name, c in test_products.CASES.items()},
    **{
        f"entries: {name}": (linear(function), vectors())
        for name, function in test_elementwise.UNARY.items()
        if not isinstance(function, nn.Module)
    },
    **{
        f"sums: {name}": (test_elementwise.summed(function), vectors())
        for name, function in {**test_elementwise.ZERO, **test_elementwise.NOT_ZERO}.items()
    },
    "entries that are written": (linear(_written), vectors()),
    "entries between others that are written": (linear(_written_between), vectors()),
    "order that the forward makes": (
        conv(lambda x: mean(x.index_select(1, torch.tensor(ORDER)))),
        images(),
    ),
    "order that the forward makes, and entries written": (
        linear(lambda x: _written(x)[:, torch.tensor(ORDER)]),
        vectors(),
    ),
    "unit length of places": (conv(lambda x: mean(F.normalize(x.flatten(2), dim=-1).view(x.shape))), images()),
    "transposed weight": (
        net(
            lambda net, x: net.fc(F.linear(net.a(x), net.w.T)), a=nn.Linear(3, 8), w=parameter(8, 6), fc=nn.Linear(6, 5)
        ),
        vectors(),
    ),
    "transposed matrices": (linear(lambda x: F.relu(x.mT).mH.sum(1)), tokens()),
    "maps at places": (net(_places, a=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 5)), images()),
}


def groups(analysis: Analysis) -> list[Any]:
    """Sizes and members of all groups, but for the buffers that the front ends name on their own."""
    parameters = dict(analysis.graph.module.named_parameters())
    return sorted(
        (group.size, sorted((m.tensor, m.axis, m.units.tolist()) for m in group.members if m.tensor in parameters))
        for group in analysis.groups
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_both_front_ends_find_the_same_groups(name: str) -> None:
    model, x = NETWORKS[name]
    traced, exported = (analyse(model, (x,), front_end=kind) for kind in ("symbolic", "export"))
    assert groups(traced) == groups(exported)
    assert [row[:2] for row in frozen(traced)] == [row[:2] for row in frozen(exported)]
    assert (traced.graph.batch is None) == (exported.graph.batch is None)
