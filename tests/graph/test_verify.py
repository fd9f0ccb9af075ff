"""The verifier: it accepts what is right, names what is wrong, and notices every rule that is broken on purpose."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.graph import prune_graph
from mdp_fx.graph.axes import Axis, Shuffled, concat, constant, fresh, product, shuffled
from mdp_fx.graph.ops import elementwise, indexing, layers, products, reductions, registry, resampling, shape
from mdp_fx.graph.ops import op as seen
from mdp_fx.graph.ops.op import Emission, Inference, Normalisation, Op, Types, tensor_types
from mdp_fx.graph.ops.registry import Rule
from mdp_fx.graph.prune_graph import PruneGraph, infer_types
from mdp_fx.graph.trace import trace
from mdp_fx.graph.unify import cut, unify
from mdp_fx.graph.verify import Reference, check_types, zeroed_copy
from tests.graph.small import FLOAT64_LIMIT, Layers, images, net, parameter, tokens, vectors
from tests.pruning import doubled, prune_randomly, pruned_error
from tests.zoo import ZOO, Specimen

NOTICED = 1e-6


# Networks that the mutations are tried on ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A network in which a broken rule must show."""

    body: Callable[[Any, Tensor], Any]
    layers: Callable[[], Layers]
    x: Tensor

    def make(self) -> nn.Module:
        return net(self.body, **self.layers())


def hidden(function: Callable[[Tensor], Tensor], x: Tensor, out: int = 8, features: int = 8) -> Subject:
    """A hidden layer, a function, a head."""
    return Subject(
        lambda net, x: net.fc(function(net.a(x))),
        lambda: {"a": nn.Linear(x.shape[-1], features), "fc": nn.Linear(out, 5)},
        x,
    )


def maps(function: Callable[[Any, Tensor], Tensor], out: int, **layers: Callable[[], nn.Module]) -> Subject:
    """A function of the hidden map of a convolution, a mean, a head."""
    return Subject(
        lambda net, x: net.fc(function(net, net.a(x)).mean((2, 3))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "fc": nn.Linear(out, 5)} | {name: make() for name, make in layers.items()},
        images(),
    )


def _heads(net: Any, x: Tensor) -> Any:
    b, n, _ = x.shape
    q, k, v = (part(x).view(b, n, 2, 4).transpose(1, 2) for part in (net.q, net.k, net.v))
    return net.fc(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8))


SUBJECTS: dict[str, Subject] = {
    "conv": maps(lambda net, x: net.b(x), 8, b=lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "grouped": maps(lambda net, x: net.b(x), 16, b=lambda: nn.Conv2d(8, 16, 1, groups=4)),
    "two by two groups": maps(
        lambda net, x: net.c(net.b(x)), 8, b=lambda: nn.Conv2d(8, 16, 1, groups=4), c=lambda: nn.Conv2d(16, 8, 1)
    ),
    "transposed": maps(lambda net, x: net.b(x), 8, b=lambda: nn.ConvTranspose2d(8, 8, 1, groups=2)),
    "batch norm": maps(lambda net, x: net.n(x).relu(), 8, n=lambda: nn.BatchNorm2d(8)),
    "group norm": maps(lambda net, x: net.n(x).relu(), 8, n=lambda: nn.GroupNorm(4, 8)),
    "local response": maps(lambda net, x: net.n(x), 8, n=lambda: nn.LocalResponseNorm(3, alpha=5.0)),
    "prelu": maps(lambda net, x: net.n(x), 8, n=lambda: nn.PReLU(8)),
    "linear": hidden(torch.tanh, vectors()),
    "square linear": Subject(
        lambda net, x: net.fc(net.b(torch.tanh(net.a(x)))),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(8, 8), "fc": nn.Linear(8, 5)},
        vectors(),
    ),
    "add": Subject(
        lambda net, x: net.fc(torch.tanh(net.a(x) + net.b(x))),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 8), "fc": nn.Linear(8, 5)},
        vectors(),
    ),
    "scale": maps(lambda net, x: x * torch.sigmoid(net.b(x)), 8, b=lambda: nn.Conv2d(8, 8, 1)),
    "cat": Subject(
        lambda net, x: net.fc(torch.cat([net.a(x), net.b(x)], 1)),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 8), "fc": nn.Linear(16, 5)},
        vectors(),
    ),
    "cat of tokens": Subject(
        lambda net, x: net.fc(torch.cat([net.a(x), net.b(x)], 1)),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 8), "fc": nn.Linear(8, 5)},
        tokens(),
    ),
    "stack": Subject(
        lambda net, x: net.fc(torch.stack([net.a(x), net.b(x)]).mean(0)),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 8), "fc": nn.Linear(8, 5)},
        vectors(),
    ),
    "flattened": Subject(
        lambda net, x: net.fc(net.a(x).view(x.size(0), -1)),
        lambda: {"a": nn.Conv2d(3, 16, 1), "fc": nn.Linear(256, 5)},
        images(),
    ),
    "rows and columns": hidden(lambda x: x.view(-1, 4, 2).tanh().transpose(1, 2).reshape(-1, 8), vectors()),
    "shuffled": hidden(lambda x: x.index_select(1, torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])), vectors()),
    "square map": Subject(
        lambda net, x: net.fc(net.a(x).flatten(2).transpose(1, 2).flatten(1)),
        lambda: {"a": nn.Conv2d(3, 16, 1), "fc": nn.Linear(256, 5)},
        images(),
    ),
    "channels last": Subject(
        lambda net, x: net.fc(net.a(x).permute(0, 2, 3, 1).flatten(1)),
        lambda: {"a": nn.Conv2d(3, 4, 1), "fc": nn.Linear(64, 5)},
        images(),
    ),
    "seen as a map": Subject(
        lambda net, x: net.fc(net.c(net.a(x).view(-1, 4, 4, 4)).flatten(1)),
        lambda: {"a": nn.Linear(3, 64), "c": nn.Conv2d(4, 4, 3, padding=1), "fc": nn.Linear(64, 5)},
        vectors(),
    ),
    "halves": hidden(lambda x: operator.mul(*x.chunk(2, 1)), vectors(), out=4),
    "split": hidden(lambda x: torch.split(x, [3, 5], 1)[1], vectors(), out=5),
    "flipped": hidden(lambda x: torch.flip(x, (1,)), vectors()),
    "halves swapped": hidden(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), vectors()),
    "sliced": hidden(lambda x: x[:, 4:], vectors(), out=4),
    "strided": hidden(lambda x: x[:, ::2], vectors(), out=4),
    "selected": hidden(lambda x: x * x[:, 3].unsqueeze(1), vectors()),
    "taken apart": hidden(lambda x: torch.stack(x.unbind(1), 1), vectors()),
    "padded": hidden(lambda x: F.pad(x, (4, 4), value=0.7), vectors(), out=16),
    "reduced": hidden(lambda x: x - x.var(-1, keepdim=True), vectors()),
    "mean of what is not zero": hidden(lambda x: x - x.sigmoid().mean(-1, keepdim=True), vectors()),
    "mean of units": hidden(lambda x: x * (1 + x.mean(-1, keepdim=True)), vectors()),
    "product of what is not zero": hidden(lambda x: x.sigmoid() @ x.sigmoid().mT, tokens(), out=7),
    "outer sum": hidden(lambda x: x * (x.unsqueeze(1) + x.unsqueeze(2)).sum(2), vectors()),
    "outer product": hidden(lambda x: (x.unsqueeze(1) * x.sigmoid().unsqueeze(2)).sum(1), vectors()),
    "outer product of matrices": hidden(lambda x: (x.unsqueeze(2) @ x.sigmoid().unsqueeze(1)).sum(2), vectors()),
    "repeated": hidden(lambda x: x.repeat(1, 2), vectors(), out=16),
    "every unit repeated": hidden(lambda x: x.repeat_interleave(2, 1), vectors(), out=16),
    "gated": hidden(lambda x: F.glu(x, 1), vectors(), out=4),
    "rolled": hidden(lambda x: x.roll(3, 1), vectors()),
    "letters": Subject(
        lambda net, x: net.fc(torch.einsum("bnc,co->bno", net.a(x), net.w)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(8, 8), "fc": nn.Linear(8, 5)},
        tokens(),
    ),
    "units as places": Subject(
        lambda net, x: net.fc(net.n(net.a(x).view(-1, 4, 4, 4)).flatten(1)),
        lambda: {"a": nn.Linear(3, 64), "n": nn.InstanceNorm2d(4, affine=True), "fc": nn.Linear(64, 5)},
        vectors(),
    ),
    "softmax": hidden(lambda x: x.softmax(-1), vectors()),
    "layer norm of tokens": Subject(
        lambda net, x: net.fc(net.n(net.a(x))),
        lambda: {"a": nn.Linear(3, 8), "n": nn.LayerNorm(8), "fc": nn.Linear(8, 5)},
        tokens(),
    ),
    "layer norm": hidden(lambda x: F.layer_norm(x, x.shape[1:]), vectors()),
    "unknown": hidden(lambda x: torch.logcumsumexp(x, 1), vectors()),
    "unknown reversal": hidden(torch.fliplr, vectors()),
    "product": Subject(
        lambda net, x: net.fc(torch.tanh(net.q(x)) @ net.k(x).transpose(1, 2)),
        lambda: {"q": nn.Linear(3, 8), "k": nn.Linear(3, 8), "fc": nn.Linear(7, 5)},
        tokens(),
    ),
    "attention": Subject(_heads, lambda: {name: nn.Linear(3, 8) for name in "qkv"} | {"fc": nn.Linear(8, 5)}, tokens()),
    "broadcast parameter": Subject(
        lambda net, x: net.fc((net.a(x) * net.w).mean((2, 3))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "w": parameter(8, 1, 1), "fc": nn.Linear(8, 5)},
        images(),
    ),
}

SEEDS = range(3)


def is_noticed(subject: Subject) -> bool:
    """Whether some seed of the oracle fails on a network: numbers or shapes differ, or one of the networks crashes.

    The analysis itself must not crash: a rule that raises would be noticed without an oracle.
    """
    for seed in SEEDS:
        model, x = doubled(subject.make(), (subject.x,))
        try:
            pruned = prune_randomly(model, x, seed)
        except ModelError as error:
            if "is another network" not in str(error):
                raise
            return True
        try:
            if pruned_error(model, x, pruned) > NOTICED:
                return True
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            if "pruning changed nothing" not in str(error):
                return True
    return False


FROZEN = (
    *("local response", "flipped", "strided", "selected", "taken apart", "rolled", "softmax"),
    *("reduced", "mean of what is not zero", "product of what is not zero"),
    *("outer sum", "outer product", "outer product of matrices", "unknown", "unknown reversal"),
)
"""Subjects with nothing to prune, which show that a freeze is needed."""


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_noticed_where_nothing_is_broken(name: str) -> None:
    subject = SUBJECTS[name]
    for seed in SEEDS:
        model, x = doubled(subject.make(), (subject.x,))
        pruned = prune_randomly(model, x, seed)
        assert any(group.size > 1 for group in pruned[0].groups) == (name not in FROZEN)
        assert pruned_error(model, x, pruned) <= FLOAT64_LIMIT


# Mutations: a unification, a freeze or an emission is forgotten ------------------------------------------------------


@pytest.mark.parametrize(
    ("forgotten", "name"),
    [
        ("channels of", "conv"),
        ("groups of", "grouped"),
        ("bias of", "conv"),
        ("bias of", "linear"),
        ("features of", "linear"),
        ("features of", "square linear"),
        ("channels of", "transposed"),
        ("channels of", "batch norm"),
        ("channels of", "group norm"),
        ("normalised together at", "group norm"),
        ("slopes of", "prelu"),
        ("added or multiplied at", "add"),
        ("added or multiplied at", "scale"),
        ("added or multiplied at", "halves"),
        ("added or multiplied at", "broadcast parameter"),
        ("concatenated at", "cat of tokens"),
        ("stacked at", "stack"),
        ("reshaped at", "rows and columns"),
        ("halves of", "gated"),
        ("one letter at", "letters"),
        ("order of", "shuffled"),
        ("inner axis of", "product"),
        ("query and key of", "attention"),
    ],
)
def test_a_forgotten_unification_is_noticed(monkeypatch: pytest.MonkeyPatch, forgotten: str, name: str) -> None:
    skipped = []

    def forgetful(left: Axis, right: Axis, reason: str) -> None:
        if reason.startswith(forgotten):
            skipped.append(reason)
        else:
            unify(left, right, reason)

    for module in (layers, products, elementwise, shape, indexing, resampling):
        monkeypatch.setattr(module, "unify", forgetful)
    assert is_noticed(SUBJECTS[name])
    assert skipped


@pytest.mark.parametrize(
    ("forgotten", "name"),
    [
        ("spatial axis", "seen as a map"),
        ("kernel axis", "conv"),
        ("normalised together", "units as places"),
        ("neighbouring channels", "local response"),
        ("reduced", "reduced"),
        ("reduced", "mean of what is not zero"),
        ("units that need not be zero", "product of what is not zero"),
        ("rolled", "rolled"),
        ("reversed", "flipped"),
        ("softmax over the axis", "softmax"),
        ("one entry selected", "selected"),
        ("strided or empty slice", "strided"),
        ("taken apart", "taken apart"),
        ("no typing rule", "unknown"),
    ],
)
def test_a_forgotten_freeze_is_noticed(monkeypatch: pytest.MonkeyPatch, forgotten: str, name: str) -> None:
    skipped, freeze = [], Op.freeze

    def forgetful(self: Op, axes: Any, why: str, **options: bool) -> None:
        if why.startswith(forgotten):
            skipped.append(why)
        else:
            freeze(self, axes, why, **options)

    monkeypatch.setattr(Op, "freeze", forgetful)
    assert is_noticed(SUBJECTS[name])
    assert skipped


def test_an_output_that_is_left_free_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_graph, "freeze", lambda axis, reason: None)
    assert is_noticed(SUBJECTS["linear"])


@pytest.mark.parametrize(
    ("forgotten", "name"),
    [
        ("groups", "two by two groups"),
        ("num_groups", "group norm"),
        ("normalized_shape", "layer norm"),
        ("index", "sliced"),
        ("repeat", "repeated"),
        (torch.repeat_interleave, "every unit repeated"),
        (torch.mul, "mean of units"),
        (torch.reshape, "rows and columns"),
        (torch.split, "split"),
        (F.pad, "padded"),
        (F.scaled_dot_product_attention, "attention"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_sizes_that_are_not_written_again_are_noticed(
    monkeypatch: pytest.MonkeyPatch, forgotten: object, name: str
) -> None:
    skipped: list[object] = []

    def forgetful(method: Callable[..., None]) -> Callable[..., None]:
        def emit(self: Op, what: object, *args: Any, **kwargs: Any) -> None:
            if what is forgotten or what == forgotten:
                skipped.append(what)
            else:
                method(self, what, *args, **kwargs)

        return emit

    for attribute in ("emit", "emit_call"):
        monkeypatch.setattr(Op, attribute, forgetful(getattr(Op, attribute)))
    assert is_noticed(SUBJECTS[name])
    assert skipped


# Mutations: what is known of values is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean of what is not zero", "product of what is not zero", "outer sum"])
def test_units_that_are_taken_for_zero_are_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Op, "is_zero_at", lambda self, value, axis: True)
    assert is_noticed(SUBJECTS[name])


@pytest.mark.parametrize("name", ["outer sum", "outer product", "outer product of matrices"])
def test_zeros_that_are_spread_along_other_axes_are_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def everywhere(op: Op, result: Any, parts: Any, need: Any = any) -> None:
        op.zero_at(*(axis for zeros, _ in parts for axis in zeros))

    for module in (elementwise, layers, products, shape):
        monkeypatch.setattr(module, "zero_by_place", everywhere)
    assert is_noticed(SUBJECTS[name])


@pytest.mark.parametrize("name", ["layer norm", "group norm"])
def test_a_norm_that_is_not_marked_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Op, "mark_norm", lambda self, name, places, **options: None)
    assert is_noticed(SUBJECTS[name])


@pytest.mark.parametrize(
    "wrong", [{"eps": 0.3}, {"centred": False}, {"bias": None}, {"weight": None}, {"places": (1,)}], ids=str
)
def test_a_norm_that_is_marked_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]) -> None:
    monkeypatch.setattr(seen, "Normalisation", lambda *facts: replace(Normalisation(*facts), **wrong))
    assert is_noticed(SUBJECTS["layer norm of tokens"])


def test_an_order_that_is_not_counted_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Op, "point", lambda self, tensor, axis: None)
    assert is_noticed(SUBJECTS["shuffled"])


# Mutations: a rule gives other types ---------------------------------------------------------------------------------


def replace_rule(monkeypatch: pytest.MonkeyPatch, original: Rule, mutant: Rule) -> None:
    """Registers a mutant wherever the original is registered."""
    tables: list[dict[Any, Any]] = [
        getattr(registry, f"_{name}") for name in "MODULES MODULE_PATHS FUNCTIONS METHODS".split()
    ]
    for table in tables:
        for key, entry in list(table.items()):
            if entry.rule is original:
                monkeypatch.setitem(table, key, replace(entry, rule=mutant))


def elementwise_instead(op: Op) -> Types:
    """Passes the first operand through, and looks at all of them."""
    for operand in op.node.all_input_nodes:
        op.types_of(operand)
    return op.types(op._names[0])


def conv_passes_its_input(op: Op) -> Types:
    types = layers.conv(op)
    return (types[0], op.tensor("input")[1], *types[2:])


def conv_groups_last(op: Op) -> Types:
    types = layers.conv(op)
    (span,) = types[1].spans
    return (types[0], Axis(span[::-1]), *types[2:])


def linear_swapped(op: Op) -> Types:
    x, weight, bias = op.tensor("input"), op.tensor("weight"), op.tensor("bias")
    if weight[0].size == weight[1].size:
        unify(x[-1], weight[0], "swapped")
        unify(bias[0], weight[1], "swapped")
        return (*x[:-1], weight[1])
    return layers.linear(op)


def linear_fresh(op: Op) -> Types:
    types = layers.linear(op)
    return (*types[:-1], fresh(types[-1].size))


def cat_reversed(op: Op) -> Types:
    types = shape.cat(op)
    joined = concat(*(Axis(span) for span in reversed(types[1].spans)))
    return (types[0], joined, *types[2:])


def view_reversed(op: Op) -> Types:
    types = shape.view(op)
    return tuple(Axis(*(span[::-1] for span in axis.spans)) for axis in types)


def split_reversed(op: Op) -> Types:
    return indexing.split(op)[::-1]


def getitem_from_the_start(op: Op) -> Types:
    index = op.value("index")
    if isinstance(index, tuple):
        op._bound["index"] = tuple(slice(0, 4) if key == slice(4, None) else key for key in index)
    return indexing.getitem(op)


def pad_behind(op: Op) -> Types:
    types = resampling.pad(op)
    head, axis, tail = (Axis(span) for span in types[-1].spans)
    return (*types[:-1], concat(axis, head, tail))


def norm_of_weights_only(op: Op) -> Types:
    op._bound |= {"running_mean": None, "running_var": None}
    return layers.channel_norm(op)


def matmul_of_rows(op: Op) -> Types:
    x, y = op.tensor("input"), op.tensor("other")
    return (x[0], y[-1], x[-2])


def index_select_backwards(op: Op) -> Types:
    types = indexing.index_select(op)
    (((moved,),),) = (axis.spans for axis in types[1:])
    assert isinstance(moved, Shuffled)
    return (types[0], shuffled(moved.axis, np.argsort(moved.order)))


def repeat_of_every_unit(op: Op) -> Types:
    types = shape.repeat(op)
    ((copies, axis),) = types[1].spans
    return (types[0], product(axis, copies))


def repeat_of_all_units(op: Op) -> Types:
    types = shape.repeat_interleave(op)
    ((axis, copies),) = types[1].spans
    return (types[0], product(copies, axis))


def second_half_instead(op: Op) -> Types:
    x = op.tensor("input")
    halves = cut(x[1], x[1].size // 2)
    assert halves is not None
    return (x[0], halves[1])


def zero_instead(op: Op) -> Types:
    op.zero_at(*op.zero_as(op.value("input")))
    return elementwise.unary_from_zero(op)


@pytest.mark.parametrize(
    ("original", "mutant", "name"),
    [
        (layers.conv, conv_passes_its_input, "conv"),
        (layers.conv, conv_groups_last, "two by two groups"),
        (layers.linear, linear_swapped, "square linear"),
        (layers.linear, linear_fresh, "linear"),
        (layers.channel_norm, elementwise_instead, "batch norm"),
        (layers.channel_norm, norm_of_weights_only, "batch norm"),
        (layers.group_norm, elementwise_instead, "group norm"),
        (layers.group_norm, layers.channel_norm, "group norm"),
        (layers.layer_norm, elementwise_instead, "layer norm"),
        (layers.local_response_norm, elementwise_instead, "local response"),
        (layers.prelu, elementwise_instead, "prelu"),
        (products.matmul, matmul_of_rows, "product"),
        (elementwise.binary, elementwise_instead, "add"),
        (elementwise.multiply, elementwise_instead, "scale"),
        (shape.cat, cat_reversed, "cat"),
        (shape.view, elementwise_instead, "flattened"),
        (shape.view, view_reversed, "flattened"),
        (shape.transpose, elementwise_instead, "square map"),
        (shape.permute, elementwise_instead, "channels last"),
        (indexing.split, split_reversed, "halves swapped"),
        (indexing.getitem, getitem_from_the_start, "sliced"),
        (resampling.pad, pad_behind, "padded"),
        (indexing.index_select, elementwise_instead, "shuffled"),
        (indexing.index_select, index_select_backwards, "shuffled"),
        (shape.repeat, repeat_of_every_unit, "repeated"),
        (shape.repeat_interleave, repeat_of_all_units, "every unit repeated"),
        (shape.flip, elementwise_instead, "flipped"),
        (shape.roll, elementwise_instead, "rolled"),
        (indexing.glu, second_half_instead, "gated"),
        (elementwise.unary_from_zero, zero_instead, "mean of what is not zero"),
        (reductions.softmax, elementwise_instead, "softmax"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_broken_rule_is_noticed(monkeypatch: pytest.MonkeyPatch, original: Rule, mutant: Rule, name: str) -> None:
    replace_rule(monkeypatch, original, mutant)
    assert is_noticed(SUBJECTS[name])


def test_an_unknown_op_that_is_taken_for_an_elementwise_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(op: Op, state: Inference) -> Types:
        return op.types_of(op.node.all_input_nodes[0])

    monkeypatch.setattr(registry, "_unknown", unknown)
    assert is_noticed(SUBJECTS["unknown reversal"])


# The checks of types -------------------------------------------------------------------------------------------------


def typed(model: nn.Module, *inputs: Any) -> PruneGraph:
    return infer_types(trace(model, inputs))


def mlp(depth: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)])


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_right_types_are_accepted(specimen: Specimen) -> None:
    check_types(typed(specimen.make(), *specimen.inputs()))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param((constant(2), constant(5)), id="another size"),
        pytest.param((constant(2),), id="an axis too few"),
        pytest.param((constant(2), constant(4), constant(1)), id="an axis too many"),
        pytest.param((constant(4), constant(2)), id="axes swapped"),
    ],
)
def test_a_type_that_is_not_its_tensors_is_named_with_the_graph_around_it(wrong: Types) -> None:
    graph = typed(mlp(30), vectors(4))
    names = [node.name for node in graph.module.graph.nodes]
    fault = names[15]
    with pytest.raises(AssertionError) as caught:
        check_types(replace(graph, types=graph.types | {fault: wrong}))
    first, *around = str(caught.value).splitlines()
    assert first == f"{fault}: type {wrong!r} for shape (2, 4)"
    assert [line.split()[0 if not line.startswith(">") else 1] for line in around] == [f"%{n}" for n in names[5:26]]
    assert [line.startswith("> ") for line in around].count(True) == 1
    assert around[10].startswith(f"> %{fault} ")


def test_the_graph_around_a_fault_ends_where_the_graph_ends() -> None:
    graph = typed(mlp(2), vectors(4))
    with pytest.raises(AssertionError) as caught:
        check_types(replace(graph, types=graph.types | {"input_1": (constant(3), constant(4))}))
    assert len(str(caught.value).splitlines()) == 1 + len(graph.module.graph.nodes)


def test_a_stored_tensor_with_another_type_is_named() -> None:
    graph = typed(mlp(2), vectors(4))
    weight = graph.module.get_parameter("1.weight")
    with pytest.raises(AssertionError, match=r"^1\.weight: type \(\(4\), \(3\)\) for shape \(4, 4\)$"):
        check_types(replace(graph, tensors=graph.tensors | {id(weight): (constant(4), constant(3))}))


class Nested(nn.Module):
    """Values that hold several tensors."""

    def forward(self, both: dict[str, list[Tensor]]) -> Any:
        first, second = both["x"][0].chunk(2, 1)
        return first + second


def test_calls_that_give_one_module_two_sizes_are_found() -> None:
    graph = typed(net(lambda net, x: net.fc(net.a(net.a(x))), a=nn.Linear(4, 4), fc=nn.Linear(4, 2)), vectors(4))
    check_types(graph)
    wrong = Emission(attributes={"in_features": constant(3)})
    with pytest.raises(AssertionError, match=r"(?s)^a_1: in_features of a follows \(3\), and .*\n> %a_1"):
        check_types(replace(graph, emissions=graph.emissions | {"a_1": wrong}))


def test_types_of_nested_values_are_checked() -> None:
    graph = typed(Nested(), {"x": [vectors(4)]})
    check_types(graph)
    right = graph.types["chunk"]
    assert len(tensor_types(right)) == 2
    with pytest.raises(AssertionError, match=r"^chunk: type"):
        check_types(replace(graph, types=graph.types | {"chunk": [right[0], (constant(2), constant(3))]}))
    with pytest.raises(ValueError, match="zip"):
        check_types(replace(graph, types=graph.types | {"chunk": right[:1]}))
    check_types(replace(graph, types=graph.types | {"chunk": [right[0], None]}))


def test_a_graph_that_is_not_well_formed_is_refused() -> None:
    graph = typed(mlp(2), vectors(4))
    first, second = graph.module.graph.find_nodes(op="call_module")
    first.args = (second,)
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        check_types(graph)


# The reference -------------------------------------------------------------------------------------------------------


def test_every_entry_that_mentions_a_dropped_unit_is_zero_and_nothing_else() -> None:
    model = net(lambda net, x: net.b(net.n(net.a(x)).relu()), a=nn.Linear(2, 3), n=nn.BatchNorm1d(3), b=nn.Linear(3, 2))
    values = {
        "a.weight": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "a.bias": [7.0, 8.0, 9.0],
        "n.weight": [1.0, 2.0, 3.0],
        "n.bias": [0.1, 0.2, 0.3],
        "b.weight": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        "b.bias": [1.0, 2.0],
    }
    for name, value in values.items():
        model.get_parameter(name).data = torch.tensor(value)
    state = copy.deepcopy(model.state_dict())
    graph = typed(model, vectors(2))
    (dim,) = {d for _, _, types in graph.stored() for axis in types for d in _free(axis)}
    zeroed = zeroed_copy(graph, {dim: np.array([True, False, True])})
    expected = {
        "a.weight": [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]],
        "a.bias": [7.0, 0.0, 9.0],
        "n.weight": [1.0, 0.0, 3.0],
        "n.bias": [0.1, 0.0, 0.3],
        "b.weight": [[1.0, 0.0, 3.0], [4.0, 0.0, 6.0]],
        "b.bias": [1.0, 2.0],
    }
    for name, value in expected.items():
        assert torch.equal(zeroed.get_parameter(name), torch.tensor(value)), name
    for name in ("n.running_mean", "n.running_var"):
        assert torch.equal(zeroed.get_buffer(name), state[name])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def _free(axis: Axis) -> list[Any]:
    return [factor for span in axis.normal.spans for factor in span if not isinstance(factor, int | Axis)]


def test_nothing_dropped_is_the_dense_network() -> None:
    model = mlp(3)
    graph = typed(model, vectors(4))
    zeroed = zeroed_copy(graph, {})
    assert all(torch.equal(value, zeroed.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(zeroed(vectors(4)), model(vectors(4)))


def test_an_addition_passes_the_operand_on_that_stays() -> None:
    model = net(lambda net, x: (x + net.a(x)) + net.b(x), a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    for name, weight in (("a", [[1.0, 0.0], [0.0, 2.0]]), ("b", [[3.0, 0.0], [0.0, 0.0]])):
        model.get_parameter(f"{name}.weight").data = torch.tensor(weight)
        model.get_parameter(f"{name}.bias").data = torch.tensor([0.0, 10.0])
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    graph = typed(model, x)

    def result(**flows: str) -> list[list[float]]:
        with torch.no_grad():
            values: list[list[float]] = Reference(graph, {}, flows).run(x).tolist()
        return values

    assert result() == [[5.0, 26.0], [0.0, 17.0]]
    assert result(add="x") == [[4.0, 12.0], [0.0, 9.0]]
    assert result(add_1="add") == [[2.0, 16.0], [0.0, 7.0]]
    assert result(add="x", add_1="add") == x.tolist()
    assert result(add_1="b") == [[3.0, 10.0], [0.0, 10.0]]


@pytest.mark.parametrize(
    ("rule", "name"), [(layers.conv, "conv"), (products.matmul, "product"), (reductions.reduce, "reduced")]
)
def test_a_rule_whose_types_do_not_fit_the_shapes_freezes(
    monkeypatch: pytest.MonkeyPatch, rule: Rule, name: str
) -> None:
    replace_rule(monkeypatch, rule, elementwise_instead)
    assert not is_noticed(SUBJECTS[name])
