"""Functions that follow the mode become modules; what cannot is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.eval_flag import is_eval_flag
from mdp_fx.graph.trace import trace
from mdp_fx.passes.normalize import normalize
from mdp_fx.passes.normalize.training_mode import follow_training_mode
from mdp_fx.pipeline import analyse, rewrite
from tests.graph.small import net, vectors
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
    assert follow_training_mode(module) is True
    (call,) = module.graph.find_nodes(op="call_module")
    dropout: Any = module.get_submodule(str(call.target))
    assert type(dropout) is kind
    assert dropout.p == 0.3
    assert not dropout.training
    assert follow_training_mode(module) is False


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


class Functional(nn.Module):
    """A norm by a function, with what a norm's module stores."""

    def __init__(self, function: Callable[..., Tensor], rank: int, *, affine: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6, affine=affine)
        self.head = nn.Linear(6, 2)
        self.function = function
        self.rank = rank

    def forward(self, x: Tensor) -> Any:
        norm, y = self.norm, self.layer(x)
        y = y.reshape(*y.shape, *[1] * (self.rank - 2)) * torch.arange(1.0, 3.0) if self.rank > 2 else y
        y = self.function(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, 0.3, 1e-3)
        return self.head(y if self.rank == 2 else y.flatten(2).mean(2))


@pytest.mark.parametrize(
    ("function", "rank", "kind"),
    [
        (F.batch_norm, 2, nn.BatchNorm1d),
        (F.batch_norm, 3, nn.BatchNorm1d),
        (F.batch_norm, 4, nn.BatchNorm2d),
        (F.batch_norm, 5, nn.BatchNorm3d),
        (F.instance_norm, 3, nn.InstanceNorm1d),
        (F.instance_norm, 4, nn.InstanceNorm2d),
        (F.instance_norm, 5, nn.InstanceNorm3d),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_that_follows_the_mode_becomes_a_module(
    function: Callable[..., Tensor], rank: int, kind: type[nn.Module], affine: bool
) -> None:
    torch.manual_seed(0)
    model, x = Functional(function, rank, affine=affine), torch.randn(4, 3)
    analysis = analyse(model, (x,))
    assert not any("training" in line for line in analysis.graph.baked_in)
    slim = rewrite(analysis, {}, (), training=True)
    (norm,) = (layer for layer in slim.modules() if "Norm" in type(layer).__name__)
    assert type(norm) is kind
    model.train()
    for _ in range(2):
        assert torch.allclose(slim(x), model(x), atol=1e-6)
    assert torch.allclose(norm.running_var, model.norm.running_var)  # type: ignore[arg-type]
    assert torch.allclose(slim.eval()(x), model.eval()(x), atol=1e-6)
    assert rewrite(analysis, {"layer": [0, 2, 5]}, (), training=True)(x).shape == (4, 2)


def test_dropout_in_place_is_read_by_whoever_reads_its_operand() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = x * 1
            F.dropout(y, 1.0, self.training, True)
            return y

    slim = rewrite(analyse(InPlace(), (torch.ones(2, 3),)), {}, (), training=True)
    assert torch.equal(slim(torch.ones(2, 3)), torch.zeros(2, 3))


def told(body: Callable[[Any, Tensor], Any], front_end: Any = "symbolic") -> list[str]:
    """What is said of self.training, after it is checked that the model is followed in eval mode."""
    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5), mean=nn.Buffer(torch.zeros(8)))
    graph = analyse(model, (vectors(),), front_end=front_end).graph
    return [line.partition(": ")[2].rstrip(")") for line in graph.baked_in if line.startswith("self.training as it is")]


def test_computing_with_the_mode_is_told() -> None:
    assert told(lambda net, x: net.fc(net.a(x) * (1 + net.training))) == [
        "assert told(lambda net, x: net.fc(net.a(x) * (1 + net.training))) == ["
    ]


@pytest.mark.parametrize("front_end", ["symbolic", "export"])
@pytest.mark.parametrize(
    "compute",
    [
        lambda x, mode: x * mode + x,
        lambda x, mode: mode * x + x,
        lambda x, mode: x + float(mode),
        lambda x, mode: x + 0.5 * mode,
        lambda x, mode: x + [1, 2][mode],
        lambda x, mode: x + {False: 1, True: 2}[mode],
        lambda x, mode: x if mode == 0 else -x,
        lambda x, mode: x if mode < 1 else -x,
        lambda x, mode: x if not mode else -x,
        lambda x, mode: F.rrelu(x, training=mode),
        lambda x, mode: F.batch_norm(x, x.mean(0), x.var(0), training=mode),
        lambda x, mode: x + (2 - mode),
        lambda x, mode: x + (mode | 2),
    ],
)
def test_the_mode_that_is_taken_for_false_is_told_with_its_line(compute: Any, front_end: Any) -> None:
    (line,) = told(lambda net, x: net.fc(compute(net.a(x), net.training)), front_end)
    assert "mode" in line


def test_the_mode_among_the_outputs_is_told() -> None:
    assert len(told(lambda net, x: {"scores": net.fc(net.a(x)), "modes": [net.training]})) == 1


def test_dropout_that_follows_the_mode_is_not_told() -> None:
    for front_end in ("symbolic", "export"):
        assert told(lambda net, x: net.fc(F.dropout(net.a(x), training=net.training)), front_end) == []
