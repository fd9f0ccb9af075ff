"""The registry: one rule per op, what inherits one, what an op without a rule freezes."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from mdp_fx.graph.axes import Axis, Dim, constant, product
from mdp_fx.graph.ops import registry
from mdp_fx.graph.ops.op import Inference, Op, Types
from mdp_fx.graph.ops.registry import constants, freeze_operands, has_rule, infer_node, rule
from mdp_fx.graph.unify import freeze, frozen_reasons
from mdp_fx.passes.base import PassError
from mdp_fx.pipeline import analyse
from tests.graph.ops.small import op_of
from tests.graph.small import FLOAT64_LIMIT, analysed, frozen, images, net, parameter, sizes, tokens, vectors
from tests.pruning import parity_error, randomise


@pytest.fixture
def own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test are forgotten after it."""
    for table in ("_MODULES", "_MODULE_PATHS", "_FUNCTIONS", "_METHODS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


def same(op: Op) -> Types:
    return op.types("input")


# Registering --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize(
    "target",
    [nn.Conv2d, F.linear, ".view", "torchvision.ops.misc.Permute"],
    ids=["module", "function", "method", "path"],
)
def test_a_second_rule_for_an_op_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match=r"has a typing rule already$"):
        rule(target)(same)


@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("target", [nn.Softmax2d, torch.cummax, ".cummax"], ids=["module", "function", "method"])
def test_an_op_has_a_rule_once_it_is_registered(target: Any) -> None:
    seen = target[1:] if isinstance(target, str) else target
    assert not has_rule(seen)
    assert rule(target)(same) is same
    assert has_rule(seen)
    with pytest.raises(ValueError, match="already"):
        rule(target)(same)


@pytest.mark.usefixtures("own_tables")
def test_a_class_of_an_optional_package_is_found_by_its_path() -> None:
    assert not has_rule(Unfamiliar)
    rule(f"{Unfamiliar.__module__}.{Unfamiliar.__qualname__}")(same)
    assert has_rule(Unfamiliar)


@pytest.mark.usefixtures("own_tables")
def test_a_new_rule_is_used() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.fc(torch.logcumsumexp(net.a(x), 1))

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert sizes(analysed(model, tokens())) == []

    @rule(torch.logcumsumexp, args="input dim")
    def logcumsumexp(op: Op) -> Types:
        x = op.tensor("input")
        op.freeze([x[op.value("dim")]], "summed up")
        return x

    assert sizes(analysed(model, tokens())) == [8]
    assert frozen(analysed(model, vectors())) == [("a", 8, "summed up at logcumsumexp (node logcumsumexp)")]


# Inheriting ---------------------------------------------------------------------------------------------------------


class Unfamiliar(nn.Module):
    """No rule, and no torch.nn module: traced through."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Renamed(nn.Conv2d):
    """A convolution under another name."""


class Scaled(nn.Conv2d):
    """A convolution with standardised weights: it overrides forward."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight / (1 + self.weight.std((1, 2, 3), keepdim=True))
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OtherInside(nn.BatchNorm2d):
    """Overrides what forward calls, not forward: torch.fx sees the same module."""

    def reset_running_stats(self) -> None:
        super().reset_running_stats()


def test_a_subclass_has_the_rule_unless_it_overrides_forward() -> None:
    assert has_rule(Renamed)
    assert has_rule(OtherInside)
    assert not has_rule(Scaled)
    assert not has_rule(Unfamiliar)


def test_a_subclass_that_overrides_forward_is_traced_through() -> None:
    model = net(
        lambda net, x: net.fc(net.b(net.a(x)).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1),
        b=Scaled(8, 6, 1),
        fc=nn.Linear(6, 5),
    )
    analysis = analysed(model, images())
    assert [node.target for node in analysis.graph.module.graph.find_nodes(op="call_module")] == ["a", "fc"]
    # What it does to its weight is known before: a stored tensor.
    assert sizes(analysis) == [6, 8]
    assert frozen(analysis) == []
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


# What has no rule ---------------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def hooked() -> nn.Module:
    module = nn.Linear(6, 8)
    module.register_forward_hook(lambda module, args, result: result.sort(-1).values)
    return module


def hooked_before() -> nn.Module:
    module = nn.Linear(6, 8)
    module.register_forward_pre_hook(lambda module, args: (args[0].sort(-1).values,))
    return module


def parametrised() -> nn.Module:
    module = nn.Linear(6, 8)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Doubled())
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "no typing rule for Linear with hooks or parametrisations at m"),
        (hooked_before, "no typing rule for Linear with hooks or parametrisations at m"),
        (parametrised, "no typing rule for ParametrizedLinear with hooks or parametrisations at m"),
        (
            lambda: parametrizations.weight_norm(nn.Linear(6, 8)),
            "no typing rule for ParametrizedLinear with hooks or parametrisations at m",
        ),
        (lambda: nn.Softmax2d(), "no typing rule for Softmax2d at m"),
        (lambda: nn.CosineSimilarity(-1), "no typing rule for CosineSimilarity at m"),
        (lambda: nn.RNN(6, 8, batch_first=True), "no typing rule for RNN at m"),
    ],
)
def test_a_module_without_a_rule_freezes_what_it_reads(make: Any, reason: str) -> None:
    torch.manual_seed(0)
    module = make()

    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        if isinstance(module, nn.CosineSimilarity):
            return net.fc(net.m(y, y))
        if isinstance(module, nn.RNN):
            return net.fc(net.m(y)[0])
        return net.fc(net.m(y.unsqueeze(-1)).squeeze(-1) if isinstance(module, nn.Softmax2d) else net.m(y))

    out = {nn.Softmax2d: 6, nn.CosineSimilarity: 7}.get(type(module), 8)
    model = net(body, a=nn.Linear(3, 6), m=module, fc=nn.Linear(out, 5))
    analysis = analysed(model, tokens())
    assert frozen(analysis)[0] == ("a", 6, reason)
    assert {row[2] for row in frozen(analysis)} == {reason}
    assert sizes(analysis) == []


def test_the_batch_stays_open_behind_an_op_without_a_rule() -> None:
    model = net(lambda net, x: net.fc(torch.logcumsumexp(net.a(x), 1)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    graph = analysed(model, vectors()).graph
    assert graph.batch is not None
    assert graph.types["logcumsumexp"] == (Axis((graph.batch,)), constant(8))


def test_members_of_what_an_op_without_a_rule_gives_freeze_what_they_meet() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).cummax(1)[0].relu() + net.b(x)),
        a=nn.Linear(3, 8),
        b=nn.Linear(3, 8),
        fc=nn.Linear(8, 5),
    )
    analysis = analysed(model, vectors())
    assert sizes(analysis) == []
    reason = "no typing rule for cummax at cummax (node cummax)"
    assert frozen(analysis)[0] == ("a", 8, reason)


def test_frozen_operands_give_constants_and_the_batch() -> None:
    batch, a = Dim(2, rigid=True), Dim(4)
    op = op_of(lambda g, p: g.call_method("cumsum", (p["x"], 1)), "input", x=(Axis((batch,)), Axis((a,))))
    assert freeze_operands(op, "why") == (Axis((batch,)), constant(3))
    assert (a.reason, batch.exp) == ("why at cumsum (node cumsum)", None)
    a = Dim(3)
    op = op_of(lambda g, p: g.call_method("cumsum", (p["x"], 1)), "input", x=(product(batch, a), constant(4)))
    assert freeze_operands(op, "why") == (constant(2), constant(3))
    assert (a.reason, batch.exp) == ("why at cumsum (node cumsum)", None)


def test_constants_follow_nested_shapes() -> None:
    batch = Axis((Dim(2, rigid=True),))
    shapes = {"a": torch.Size((2, 3)), "b": [torch.Size((3, 2)), None]}
    assert constants(shapes, batch) == {"a": (batch, constant(3)), "b": [(constant(3), constant(2)), None]}
    assert constants(torch.Size((2,))) == (constant(2),)


def test_a_tensor_has_one_type_however_often_it_is_met() -> None:
    root = nn.Module()
    root.weight = nn.Parameter(torch.rand(4, 1, 3))
    graph = fx.Graph()
    first, second = graph.get_attr("weight"), graph.get_attr("weight")
    state = Inference(fx.GraphModule(root, graph))
    infer_node(first, state)
    infer_node(second, state)
    assert state.types[first.name] is state.types[second.name]
    assert [axis.size for axis in state.types[first.name]] == [4, 1, 3]
    assert state.types[first.name][1] == constant(1)
    freeze(state.types[first.name][0], "why")
    assert state.tensor_type(root.weight)[0].normal == constant(4)


def test_getitem_of_a_tensor_and_of_a_tuple_are_one_rule() -> None:
    assert has_rule(operator.getitem)
    parts = [(constant(2),), (constant(3),)]
    op = op_of(lambda g, p: g.call_function(operator.getitem, (p["x"], 1)), "input index", x=parts)
    op.node.meta["shape"] = torch.Size((3,))
    infer_node(op.node, op._state)
    assert op._state.types[op.node.name] == (constant(3),)


# Faults that were found ----------------------------------------------------------------------------------------------


def test_a_weight_that_an_untyped_module_reads_is_frozen() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.head(net.up(F.relu(net.down(net.words(x.long().abs() % 10)))))

    words = nn.Embedding(10, 6)
    head = nn.Linear(6, 10, bias=False)
    head.weight = words.weight
    model = randomise(net(body, words=words, down=nn.Linear(6, 8), up=nn.Linear(8, 6), head=head))
    assert parity_error(model, (vectors() * 9,), 0) <= FLOAT64_LIMIT


def test_a_weight_that_an_untyped_function_reads_is_frozen() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x) * torch.logcumsumexp(net.w, 0)),
        a=nn.Linear(3, 8),
        w=parameter(8),
        fc=nn.Linear(8, 5),
    )
    graph = analysed(model, vectors()).graph
    (axis,) = next(types for name, _, types in graph.stored() if name == "w")
    assert list(frozen_reasons(axis)) == [(8, "no typing rule for logcumsumexp at logcumsumexp (node logcumsumexp)")]


def test_a_weight_whose_module_meets_what_its_rule_cannot_follow_is_frozen() -> None:
    model = net(
        lambda net, x: net.fc(net.n(net.a(x).view(x.shape[0], 2, 8).transpose(0, 1))).mean(0),
        a=nn.Linear(3, 16),
        n=nn.LayerNorm((2, 8)),
        fc=nn.Linear(8, 5),
    )
    graph = analysed(model, vectors()).graph
    types = next(types for name, _, types in graph.stored() if name == "n.weight")
    assert [reason for axis in types for _, reason in frozen_reasons(axis)] == ["normalised together at n"] * 2


def test_a_rule_that_fails_names_its_node_and_the_line_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(op: Op) -> Any:
        raise IndexError("pop from empty list")

    for function in (torch.tanh, F.tanh):
        monkeypatch.setitem(registry._FUNCTIONS, function, replace(registry._FUNCTIONS[function], rule=fails))
    model = net(lambda net, x: net.fc(torch.tanh(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    lines = {"symbolic": r"test_registry.py, line \d+: .*torch\.tanh.*", "export": r"\S+, line \d+: .*"}
    for front_end, line in lines.items():
        text = rf"the typing rule of tanh \(node tanh\) fails \({line}\): pop from empty list"
        with pytest.raises(PassError, match=text):
            analyse(model, (vectors(),), front_end=front_end)  # type: ignore[arg-type]
