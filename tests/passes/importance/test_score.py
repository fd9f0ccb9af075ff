"""Importance: every kind against numbers worked out by hand, coupled layers, and a model that stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.errors import DataError, InputError
from mdp_fx.passes.build_space import unit_order
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.importance import KINDS, LayerImportance, cross_entropy, find_layers, score
from mdp_fx.pipeline import analyse
from tests.zoo import ZOO, image

Batch = tuple[Tensor, Tensor]


class Tiny(nn.Module):
    """conv - bn - relu - linear - linear, with weights that are easy to add up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)
        self.out = nn.Linear(2, 2)
        values = {
            "conv.weight": [[[[3.0]]], [[[-4.0]]], [[[1.0]]]],
            "bn.weight": [0.5, -1.0, 2.5],
            "bn.bias": [0.1, 0.2, -0.3],
            "fc.weight": [[3.0, 4.0, 0.0], [0.0, -2.0, 0.0]],
            "fc.bias": [0.5, 0.25],
            "out.weight": [[1.0, -1.0], [0.5, 2.0]],
            "out.bias": [0.0, 0.0],
        }
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.tensor(values[name]))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn(self.conv(x)))
        return self.out(self.fc(x.mean((2, 3))))


def inputs() -> tuple[Tensor]:
    torch.manual_seed(0)
    return (torch.randn(2, 1, 3, 3),)


def batches(count: int = 2, classes: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 1, 3, 3, generator=generator), torch.randint(0, classes, (4,), generator=generator))
        for _ in range(count)
    ]


def scored(kind: str, model: nn.Module | None = None, **options: Any) -> dict[str, list[float]]:
    model = model or Tiny()
    analysis = analyse(model, inputs())
    found = score(analysis.graph, analysis.groups, kind, model=model, **options)
    assert len({entry.layer for entry in found}) == len(found)
    return {entry.layer: entry.values.tolist() for entry in found}


@pytest.mark.parametrize(
    ("kind", "conv", "fc"),
    [
        ("l1", [3 / 8, 4 / 8, 1 / 8], [7 / 9, 2 / 9]),
        ("l2", [3 / 8, 4 / 8, 1 / 8], [5 / 7, 2 / 7]),
        # The linear layer has no norm behind it: its filters count, as for l2.
        ("bn", [0.5 / 4, 1 / 4, 2.5 / 4], [5 / 7, 2 / 7]),
    ],
)
def test_norms_by_hand(kind: str, conv: list[float], fc: list[float]) -> None:
    # The last layer makes the network's output, which is no group.
    found = scored(kind)
    assert list(found) == ["conv", "fc"]
    assert found["conv"] == pytest.approx(conv)
    assert found["fc"] == pytest.approx(fc)


@pytest.mark.parametrize("kind", ["l1", "l2", "bn", "random"])
def test_each_layer_without_data_adds_up_to_one(kind: str) -> None:
    for values in scored(kind).values():
        assert sum(values) == pytest.approx(1.0)
        assert min(values) >= 0


@pytest.mark.parametrize("kind", ["l1", "l2", "bn"])
def test_a_layer_of_zeros_is_worth_the_same_everywhere(kind: str) -> None:
    model = Tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert scored(kind, model) == {"conv": pytest.approx([1 / 3] * 3), "fc": pytest.approx([1 / 2] * 2)}


def test_random_follows_the_seed() -> None:
    assert scored("random", seed=3) == scored("random", seed=3)
    assert scored("random", seed=3) != scored("random", seed=4)


def test_taylor_is_the_absolute_sum_of_gradient_times_weight() -> None:
    """HALP, eq. 4: over scale and shift of the norm behind a filter, else over the filter; mean over batches."""
    model, data = Tiny().eval(), batches()
    conv, fc = torch.zeros(3), torch.zeros(2)
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        values = dict(model.named_parameters())
        product = {name: grads[name] * values[name].detach() for name in values}  # type: ignore[operator]
        conv += (product["bn.weight"] + product["bn.bias"]).abs() / len(data)
        fc += product["fc.weight"].sum(1).abs() / len(data)
    found = scored("taylor", data=data)
    assert found["conv"] == pytest.approx(conv.tolist(), rel=1e-5)
    assert found["fc"] == pytest.approx(fc.tolist(), rel=1e-5)


def test_taylor_of_one_filter_by_hand() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(1, 2, bias=False)
            self.b = nn.Linear(2, 1, bias=False)
            self.a.weight.data = torch.tensor([[2.0], [-3.0]])
            self.b.weight.data = torch.tensor([[1.0, 0.5]])

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x))

    model = One()
    analysis = analyse(model, (torch.ones(2, 1),))
    # loss = 5 (a1 + 0.5 a2) at x = 5, so the products are 5 * 2 and 2.5 * -3; then at x = 1.
    data = [(torch.full((1, 1), value), torch.zeros(1)) for value in (5.0, 1.0)]
    (entry,) = score(analysis.graph, analysis.groups, "taylor", model=model, data=data, loss=lambda out, _: out.sum())
    assert entry == LayerImportance("a", "a", entry.values)
    assert entry.values.tolist() == pytest.approx([(10 + 2) / 2, (7.5 + 1.5) / 2])


def test_at_most_the_asked_batches_are_read() -> None:
    read = 0

    def endless() -> Iterator[Batch]:
        nonlocal read
        while True:
            read += 1
            yield batches(1)[0]

    told: list[tuple[int, int, str]] = []
    once = scored("taylor", data=batches(1))
    assert scored("taylor", data=endless(), batches=3, progress=lambda *call: told.append(call)) == {
        name: pytest.approx(values) for name, values in once.items()
    }
    assert read == 3
    assert told == [(i, 3, "batches of gradients") for i in (1, 2, 3)]


def test_coupled_layers_each_count() -> None:
    analysis = analyse(next(s for s in ZOO if s.name == "plain_residual").make(), (image(),))
    found = score(analysis.graph, analysis.groups, "l2")
    assert [(entry.layer, entry.group) for entry in found] == [
        ("stem_0", "stem.0"),
        ("one_first_0", "one.first.0"),
        ("one_second_0", "stem.0"),
        ("two_first_0", "two.first.0"),
        ("two_second_0", "stem.0"),
    ]
    order = unit_order(found, analysis.groups)
    total = sum((entry.values for entry in found if entry.group == "stem.0"), np.zeros(16))
    assert total[order["stem.0"]].tolist() == sorted(total.tolist(), reverse=True)


def test_a_module_called_twice_counts_each_time() -> None:
    analysis = analyse(next(s for s in ZOO if s.name == "twice").make(), (image(),))
    found = score(analysis.graph, analysis.groups, "l2")
    assert [entry.layer for entry in found] == ["stem", "shared", "shared_1"]
    assert np.array_equal(found[1].values, found[2].values)


def test_a_unit_of_several_entries_is_worth_their_sum() -> None:
    specimen = next(s for s in ZOO if s.name == "grouped")
    model = specimen.make()
    analysis = analyse(model, specimen.inputs())
    found = {(entry.layer, entry.group): entry.values for entry in score(analysis.graph, analysis.groups, "l1")}
    weight = dict(model.named_parameters())["stem.0.weight"].detach().abs().sum((1, 2, 3)).double().numpy()
    weight = (weight / weight.sum()).reshape(4, 3)
    assert found["stem_0", "stem.0"] == pytest.approx(weight.sum(1))
    assert found["stem_0", "stem.0#2"] == pytest.approx(weight.sum(0))


def test_a_transposed_convolution_counts_filters_on_its_second_axis() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 1)
            self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Any:
            return self.last(self.up(self.first(x)))

    model = Up()
    analysis = analyse(model, inputs())
    layers = {layer.node: layer.axis for layer in find_layers(analysis.graph)}
    assert layers == {"first": 0, "up": 1}
    entry = next(e for e in score(analysis.graph, analysis.groups, "l1") if e.layer == "up")
    norms = model.up.weight.detach().abs().sum((0, 2, 3)).double()
    assert entry.values == pytest.approx((norms / norms.sum()).numpy())


def test_ties_are_broken_by_index() -> None:
    analysis = analyse(Tiny(), inputs())
    conv, fc = analysis.groups
    values = (LayerImportance("x", conv.name, np.array([1.0, 2.0, 1.0])),)
    assert {name: list(order) for name, order in unit_order(values, analysis.groups).items()} == {
        conv.name: [1, 0, 2],
        fc.name: [0, 1],
    }


class Between(nn.Module):
    """Two convolutions with a layer between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.between = between
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.between(self.conv(x)))


@pytest.mark.parametrize(
    ("between", "scale"),
    [
        (nn.BatchNorm2d(4), ["between.weight", "between.bias"]),
        (nn.BatchNorm2d(4, affine=False), []),
        (nn.InstanceNorm2d(4, affine=True), ["between.weight", "between.bias"]),
        (nn.ReLU(), []),
        (nn.PReLU(4), []),
        (nn.Conv2d(4, 4, 1, groups=4), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_scale_behind_a_layer_is_that_of_a_norm(between: nn.Module, scale: list[str]) -> None:
    model = Between(between)
    layer = next(layer for layer in find_layers(analyse(model, inputs()).graph) if layer.node == "conv")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(tensor)] for tensor in layer.scale] == scale


def test_a_norm_that_others_read_past_is_not_its_scale() -> None:
    class Branches(Between):
        def forward(self, x: Tensor) -> Any:
            x = self.conv(x)
            return self.last(self.between(x) + x)

    layer = find_layers(analyse(Branches(nn.BatchNorm2d(4)), inputs()).graph)[0]
    assert (layer.node, layer.scale) == ("conv", ())


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "grad mode": torch.is_grad_enabled(),
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def prepared() -> Tiny:
    """A model with mixed modes, frozen parameters, and a gradient of its own."""
    model = Tiny().train()
    model.bn.eval()
    model.conv.weight.requires_grad_(False)
    model.bn.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones(2, 3)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_stays_as_it_is(kind: str) -> None:
    model = prepared()
    before = copy.deepcopy(state(model))
    scored(kind, model, data=batches())
    assert equal(state(model), before)


def test_taylor_works_where_gradients_are_off() -> None:
    expected = scored("taylor", data=batches())
    with torch.no_grad():
        assert scored("taylor", data=batches()) == expected
        assert not torch.is_grad_enabled()


def test_the_model_stays_as_it_is_when_a_batch_fails() -> None:
    model = prepared()
    before = copy.deepcopy(state(model))
    with pytest.raises(DataError):
        scored("taylor", model, data=[*batches(1), (torch.randn(4, 2, 3, 3), torch.zeros(4).long())])
    assert equal(state(model), before)


def test_frozen_weights_are_scored_all_the_same() -> None:
    model = Tiny()
    expected = scored("taylor", model, data=batches())
    model.requires_grad_(False)
    assert scored("taylor", model, data=batches()) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data has no batches: the loader must yield (inputs, targets)"),
        ([torch.zeros(2, 1, 3, 3)], "a batch of data must be (inputs, targets), got Tensor"),
        ([(torch.zeros(2, 1, 3, 3),)], "a batch of data must be (inputs, targets), got tuple"),
        ([{"x": 1}], "a batch of data must be (inputs, targets), got dict"),
        (
            [(torch.zeros(2, 1, 3, 3), torch.tensor([0, 7]))],
            "labels 0..7 lie outside of the network's 2 classes",
        ),
        (
            [(torch.zeros(2, 1, 3, 3), torch.tensor([-1, 1]))],
            "labels -1..1 lie outside of the network's 2 classes",
        ),
        pytest.param(
            [(torch.full((2, 1, 3, 3), float("nan")), torch.tensor([0, 1]))],
            "the loss on a batch of data is nan: check the data's scaling and the weights",
        ),
    ],
)
def test_data_that_is_not_usable_is_said_in_one_line(data: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        scored("taylor", data=data)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(2, 3, 3, 3), torch.tensor([0, 1])),
        (torch.zeros(2, 1, 3, 3), torch.tensor([0, 1, 1])),
        (torch.zeros(2, 1, 3, 3), torch.zeros(2)),
        ("text", torch.zeros(2)),
    ],
    ids=["channels", "labels", "dtype", "text"],
)
def test_a_batch_of_the_wrong_shape_is_said_in_one_line(batch: Any) -> None:
    with pytest.raises(DataError, match=r"^a batch of data does not fit the network or the loss: \S.*$") as caught:
        scored("taylor", data=[batch])
    assert "\n" not in str(caught.value)


def test_taylor_without_data_is_refused() -> None:
    message = "^taylor importance needs data: pass --data package.module:make_loader or --data imagefolder:PATH$"
    with pytest.raises(InputError, match=message):
        scored("taylor")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"^unknown importance 'fischer': .* activation; did you mean 'fisher'\?$"):
        scored("fischer")


def test_several_inputs_are_passed_as_a_tuple() -> None:
    specimen = next(s for s in ZOO if s.name == "two_inputs")
    model = specimen.make()
    analysis: Analysis = analyse(model, specimen.inputs())
    data = [(specimen.inputs(), torch.tensor([0, 4]))]
    found = score(analysis.graph, analysis.groups, "taylor", model=model, data=data)
    assert {entry.layer for entry in found} == {"image", "vector", "mix"}
    assert all(float(entry.values.sum()) > 0 for entry in found)


class Attending(nn.Module):
    """Attention, whose parameters the graph holds in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_taylor_of_parts_of_a_parameter() -> None:
    torch.manual_seed(0)
    model, x, y = Attending().eval(), torch.randn(4, 5, 12), torch.tensor([0, 1, 1, 0])
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    weight = model.attention.in_proj_weight
    assert weight.grad is not None
    rows = (weight.grad * weight.detach()).sum(1).square()
    analysis = analyse(model, (torch.randn(2, 5, 12),))
    found = score(analysis.graph, analysis.groups, "taylor-squared", model=model, data=[(x, y)])
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        for entry in (entry for entry in found if entry.layer.endswith(name)):
            assert float(entry.values.sum()) == pytest.approx(float(rows[12 * i : 12 * (i + 1)].sum()), rel=1e-4)
    assert {entry.layer for entry in found} >= {"attention_q_proj", "attention_k_proj", "attention_v_proj"}


def test_cross_entropy_reads_the_first_tensor() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([0, 1])
    expected = F.cross_entropy(logits, targets)
    assert torch.equal(cross_entropy(logits, targets), expected)
    assert torch.equal(cross_entropy({"out": logits, "aux": logits * 2}, targets), expected)
    assert torch.equal(cross_entropy((logits, None), targets), expected)
