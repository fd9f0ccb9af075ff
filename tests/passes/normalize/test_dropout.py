"""Dropout functions that follow the mode become modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.trace import trace
from mdp_fx.graph.tracer import is_eval_flag
from mdp_fx.passes.normalize import normalize
from mdp_fx.passes.normalize.dropout import make_dropout_modules
from tests.passes.normalize.bench import Bench, outputs, same, traced_as_written


@pytest.mark.parametrize(
    ("function", "kind", "rank"),
    [
        (F.dropout, nn.Dropout, 4),
        (F.dropout1d, nn.Dropout1d, 3),
        (F.dropout2d, nn.Dropout2d, 4),
        (F.dropout3d, nn.Dropout3d, 5),
        (F.alpha_dropout, nn.AlphaDropout, 4),
        (F.feature_alpha_dropout, nn.FeatureAlphaDropout, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("keyword", [False, True])
def test_dropout_that_follows_the_mode_becomes_a_module(
    function: Callable[..., Tensor], kind: type[nn.Module], rank: int, keyword: bool
) -> None:
    class Dropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x, p=0.3, training=self.training) if keyword else function(x, 0.3, self.training)

    module = trace(Dropping().train(), (torch.randn((2, 3, 4, 4, 4)[:rank]),)).module
    assert make_dropout_modules(module) is True
    (call,) = module.graph.find_nodes(op="call_module")
    dropout: Any = module.get_submodule(str(call.target))
    assert type(dropout) is kind
    assert dropout.p == 0.3
    assert not dropout.training
    assert make_dropout_modules(module) is False


def test_dropout_with_a_fixed_mode_stays_a_function() -> None:
    def fixed(net: Bench, x: Tensor) -> Any:
        return F.dropout(net.conv(x), 0.5, False)

    module, x, expected = traced_as_written(fixed)
    assert normalize(module) is False
    assert [node.target for node in module.graph.find_nodes(op="call_function", target=F.dropout)] == [F.dropout]
    assert same(outputs(module, x), expected)


def test_the_mode_elsewhere_becomes_false() -> None:
    def batch_norm(net: Bench, x: Tensor) -> Any:
        statistics = net.scale.flatten()
        return F.batch_norm(net.conv(x), statistics, statistics, None, None, net.training)

    module, x, expected = traced_as_written(batch_norm)
    assert normalize(module) is True
    (call,) = module.graph.find_nodes(op="call_function", target=F.batch_norm)
    assert False in [*call.args, *call.kwargs.values()]
    assert not any(is_eval_flag(value) for value in [*call.args, *call.kwargs.values()])
    assert same(outputs(module, x), expected)
