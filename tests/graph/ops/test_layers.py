"""Rules of layers with weights: groups that a person finds, sizes written again, texts of what is frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.ops.small import Case
from tests.graph.small import (
    FLOAT64_LIMIT,
    Body,
    Layers,
    analysed,
    calls,
    frozen,
    images,
    members,
    net,
    parameter,
    sizes,
    slimmed,
    tokens,
    vectors,
)
from tests.pruning import parity_error

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def chain(net: Any, x: Tensor) -> Any:
    return net.fc(pooled(net.b(net.a(x))))


def conv_groups(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    return net.fc(pooled(F.conv2d(y, net.weight, net.bias, 1, 0, 1, 4)))


def _functional_norm(net: Any, x: Tensor) -> Any:
    return net.fc(pooled(F.batch_norm(net.a(x), net.n.running_mean, net.n.running_var, net.n.weight, net.n.bias)))


CASES: dict[str, Case] = {
    **{
        f"conv{rank}d": Case(
            chain,
            lambda rank=rank: {  # type: ignore[misc]
                "a": CONVS[rank](3, 8, 3, padding=1),
                "b": CONVS[rank](8, 6, 1, bias=False),
                "fc": nn.Linear(6, 5),
            },
            images(rank=rank),
            [6, 8],
        )
        for rank in CONVS
    },
    **{
        f"conv_transpose{rank}d": Case(
            chain,
            lambda rank=rank: {  # type: ignore[misc]
                "a": CONVS[rank](3, 8, 1),
                "b": TRANSPOSED[rank](8, 6, 3, bias=False),
                "fc": nn.Linear(6, 5),
            },
            images(side=2, rank=rank),
            [6, 8],
        )
        for rank in TRANSPOSED
    },
    "grouped": Case(
        chain,
        lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(12, 20, 3, groups=4), "fc": nn.Linear(20, 5)},
        images(),
        [3, 4, 5],
    ),
    "functional_grouped": Case(
        conv_groups,
        lambda: {
            "a": nn.Conv2d(3, 12, 1),
            "weight": parameter(20, 3, 1, 1),
            "bias": parameter(20),
            "fc": nn.Linear(20, 5),
        },
        images(),
        [3, 4, 5],
    ),
    "grouped_transpose": Case(
        chain,
        lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.ConvTranspose2d(12, 20, 3, groups=4), "fc": nn.Linear(20, 5)},
        images(),
        [3, 4, 5],
    ),
    "depthwise": Case(
        chain,
        lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(12, 12, 3, groups=12), "fc": nn.Linear(12, 5)},
        images(),
        [12],
    ),
    "depthwise_multiplier": Case(
        chain,
        lambda: {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 18, 3, groups=6), "fc": nn.Linear(18, 5)},
        images(),
        [3, 6],
    ),
    "linear": Case(
        lambda net, x: net.fc(net.a(x)),
        lambda: {"a": nn.Linear(3, 8, bias=False), "fc": nn.Linear(8, 5)},
        vectors(),
        [8],
    ),
    "linear_on_tokens": Case(
        lambda net, x: net.fc(net.a(x)), lambda: {"a": nn.Linear(3, 8), "fc": nn.Linear(8, 5)}, tokens(), [8]
    ),
    "functional_linear": Case(
        lambda net, x: F.linear(F.linear(x, net.w, net.b), net.v),
        lambda: {"w": parameter(8, 3), "b": parameter(8), "v": parameter(5, 8)},
        vectors(),
        [8],
    ),
    "bilinear": Case(
        lambda net, x: net.fc(net.m(net.a(x), net.b(x))),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 6), "m": nn.Bilinear(8, 6, 7), "fc": nn.Linear(7, 5)},
        tokens(),
        [6, 7, 8],
    ),
    "functional_bilinear": Case(
        lambda net, x: net.fc(F.bilinear(net.a(x).sigmoid(), net.b(x), net.w)),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 6), "w": parameter(7, 8, 6), "fc": nn.Linear(7, 5)},
        vectors(),
        [6, 7, 8],
    ),
    "embedding": Case(
        lambda net, x: net.fc(net.e(x.abs().long() % 9).mean(1)),
        lambda: {"e": nn.Embedding(9, 8), "fc": nn.Linear(8, 5)},
        vectors() * 5,
        [8],
        [("e", 9, "rows taken by number at e")],
    ),
    "functional_embedding": Case(
        lambda net, x: net.fc(net.a(x) + F.embedding(x.abs().long() % 9, net.w).sum(1)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(9, 8), "fc": nn.Linear(8, 5)},
        vectors() * 5,
        [8],
        [("w", 9, "rows taken by number at embedding (node embedding)")],
    ),
    **{
        f"batch_norm{rank}d": Case(
            lambda net, x: net.fc(pooled(net.n(net.a(x)))),
            lambda rank=rank: {  # type: ignore[misc]
                "a": CONVS[rank](3, 8, 1),
                "n": NORMS[rank](8),
                "fc": nn.Linear(8, 5),
            },
            images(rank=rank),
            [8],
        )
        for rank in NORMS
    },
    **{
        f"instance_norm{rank}d": Case(
            lambda net, x: net.fc(pooled(net.n(net.a(x) ** 2) ** 2)),
            lambda rank=rank: {  # type: ignore[misc]
                "a": CONVS[rank](3, 8, 1),
                "n": INSTANCE[rank](8, affine=True),
                "fc": nn.Linear(8, 5),
            },
            images(rank=rank),
            [8],
        )
        for rank in INSTANCE
    },
    "batch_norm_of_vectors": Case(
        lambda net, x: net.fc(net.n(net.a(x))),
        lambda: {"a": nn.Linear(3, 8), "n": nn.BatchNorm1d(8), "fc": nn.Linear(8, 5)},
        vectors(),
        [8],
    ),
    "batch_norm_without_parameters": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "n": nn.BatchNorm2d(8, affine=False), "fc": nn.Linear(8, 5)},
        images(),
        [8],
    ),
    "functional_batch_norm": Case(
        _functional_norm,
        lambda: {"a": nn.Conv2d(3, 8, 1), "n": nn.BatchNorm2d(8), "fc": nn.Linear(8, 5)},
        images(),
        [8],
    ),
    "group_norm": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 12, 1), "n": nn.GroupNorm(4, 12), "fc": nn.Linear(12, 5)},
        images(),
        [3, 4],
    ),
    "group_norm_of_one_channel_each": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 12, 1), "n": nn.GroupNorm(12, 12), "fc": nn.Linear(12, 5)},
        images(),
        [12],
    ),
    "group_norm_of_one_group": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 12, 1), "n": nn.GroupNorm(1, 12), "fc": nn.Linear(12, 5)},
        images(),
        [12],
    ),
    "functional_group_norm": Case(
        lambda net, x: net.fc(pooled(F.group_norm(net.a(x), 4, net.w, net.b))),
        lambda: {"a": nn.Conv2d(3, 12, 1), "w": parameter(12), "b": parameter(12), "fc": nn.Linear(12, 5)},
        images(),
        [3, 4],
    ),
    "layer_norm": Case(
        lambda net, x: net.fc(net.n(net.b(net.a(x)))),
        lambda: {"a": nn.Linear(3, 6), "b": nn.Linear(6, 8), "n": nn.LayerNorm(8), "fc": nn.Linear(8, 5)},
        tokens(),
        [6, 8],
    ),
    "rms_norm": Case(
        lambda net, x: net.fc(net.n(net.a(x))),
        lambda: {"a": nn.Linear(3, 8), "n": nn.RMSNorm(8), "fc": nn.Linear(8, 5)},
        tokens(),
        [8],
    ),
    "functional_layer_norm": Case(
        lambda net, x: net.fc(F.layer_norm(net.a(x), (8,))),
        lambda: {"a": nn.Linear(3, 8), "fc": nn.Linear(8, 5)},
        tokens(),
        [8],
    ),
    "functional_layer_norm_with_scale": Case(
        lambda net, x: net.fc(F.layer_norm(net.a(x), [8], net.w, net.b, 1e-3)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(8), "b": parameter(8), "fc": nn.Linear(8, 5)},
        tokens(),
        [8],
    ),
    "layer_norm_of_channels_and_places": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "n": nn.LayerNorm([8, 4, 4]), "fc": nn.Linear(8, 5)},
        images(),
        [8],
    ),
    "layer_norm_of_places": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)) ** 2)),
        lambda: {"a": nn.Conv2d(3, 8, 1), "n": nn.LayerNorm([4, 4]), "fc": nn.Linear(8, 5)},
        images(),
        [8],
        # Of the scale and of the shift.
        [("n", 4, "normalised together at n")] * 2,
    ),
    "layer_norm_of_units_that_are_not_zero": Case(
        lambda net, x: net.fc(net.n(net.a(x).sigmoid())),
        lambda: {"a": nn.Linear(3, 8), "n": nn.LayerNorm(8, bias=False), "fc": nn.Linear(8, 5)},
        tokens(),
        [8],
    ),
    "group_norm_of_units_that_are_not_zero": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x).sigmoid()).relu())),
        lambda: {"a": nn.Conv2d(3, 12, 1), "n": nn.GroupNorm(2, 12, eps=1e-3), "fc": nn.Linear(12, 5)},
        images(),
        [2, 6],
    ),
    "functional_rms_norm": Case(
        lambda net, x: net.fc(F.rms_norm(net.a(x).exp(), (8,), net.w, 1e-3)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(8), "fc": nn.Linear(8, 5)},
        tokens(),
        [8],
    ),
    "norm_of_heads": Case(
        lambda net, x: net.fc(net.n(net.a(x).unflatten(-1, (2, 4))).flatten(-2)),
        lambda: {"a": nn.Linear(3, 8), "n": nn.LayerNorm(4), "fc": nn.Linear(8, 5)},
        tokens(),
        [2, 4],
    ),
    "norm_in_front_of_a_sum": Case(
        # Without a bias, units that are not kept have no part in the result.
        lambda net, x: net.fc(net.b(x) * net.n(net.a(x)).sum(-1, keepdim=True)),
        lambda: {"a": nn.Linear(3, 8), "n": nn.LayerNorm(8, bias=False), "b": nn.Linear(3, 6), "fc": nn.Linear(6, 5)},
        tokens(),
        [6, 8],
    ),
    "local_response_norm": Case(
        lambda net, x: net.fc(pooled(net.n(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "n": nn.LocalResponseNorm(3), "fc": nn.Linear(8, 5)},
        images(),
        [],
        [("a", 8, "neighbouring channels normalised together at n")],
    ),
    "prelu": Case(
        lambda net, x: net.fc(pooled(net.p(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "p": nn.PReLU(8), "fc": nn.Linear(8, 5)},
        images(),
        [8],
    ),
    "prelu_with_one_slope": Case(
        lambda net, x: net.fc(pooled(net.p(net.a(x)))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "p": nn.PReLU(), "fc": nn.Linear(8, 5)},
        images(),
        [8],
    ),
    "functional_prelu": Case(
        lambda net, x: net.fc(pooled(F.prelu(net.a(x), net.w))),
        lambda: {"a": nn.Conv2d(3, 8, 1), "w": parameter(8), "fc": nn.Linear(8, 5)},
        images(),
        [8],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_and_frozen_axes(case: Case) -> None:
    analysis = analysed(net(case.body, **case.layers()), case.x)
    assert sizes(analysis) == case.groups
    assert frozen(analysis) == case.frozen


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.groups])
def test_parity(name: str, seed: int) -> None:
    case = CASES[name]
    assert parity_error(net(case.body, **case.layers()), (case.x,), seed) <= FLOAT64_LIMIT


def layers_of(name: str, kept: dict[str, list[int]]) -> tuple[Any, Any]:
    """The analysed network of a case and the slim one."""
    case = CASES[name]
    analysis = analysed(net(case.body, **case.layers()), case.x)
    return analysis, slimmed(analysis, kept)


# Members ------------------------------------------------------------------------------------------------------------


def test_a_convolution_is_read_along_its_second_axis() -> None:
    analysis, _ = layers_of("conv2d", {})
    units = list(range(8))
    assert members(analysis, "a") == {("a.weight", 0): units, ("a.bias", 0): units, ("b.weight", 1): units}


def test_a_transposed_convolution_is_read_along_its_first_axis() -> None:
    analysis, _ = layers_of("conv_transpose2d", {})
    into, out = list(range(8)), list(range(6))
    assert members(analysis, "a") == {("a.weight", 0): into, ("a.bias", 0): into, ("b.weight", 0): into}
    assert members(analysis, "b") == {("b.weight", 1): out, ("fc.weight", 1): out}


def test_groups_of_a_convolution_are_row_major() -> None:
    analysis, _ = layers_of("grouped", {})
    by_group = {name: members(analysis, name) for name in ("a", "a#2", "b")}
    assert by_group["a"]["a.weight", 0] == [g for g in range(4) for _ in range(3)]
    assert by_group["a"]["b.weight", 0] == [g for g in range(4) for _ in range(5)]
    assert by_group["a#2"]["a.weight", 0] == [0, 1, 2] * 4
    assert by_group["a#2"]["b.weight", 1] == [0, 1, 2]
    assert by_group["b"]["fc.weight", 1] == list(range(5)) * 4


# Sizes written again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "layer", "attributes"),
    [
        ("conv2d", {"a": [1, 2, 5], "b": [0, 3]}, "b", {"in_channels": 3, "out_channels": 2, "groups": 1}),
        ("conv_transpose2d", {"a": [1, 2, 5], "b": [0]}, "b", {"in_channels": 3, "out_channels": 1, "groups": 1}),
        (
            "grouped",
            {"a": [0, 3], "a#2": [1], "b": [0, 2, 4]},
            "b",
            {"in_channels": 2, "out_channels": 6, "groups": 2},
        ),
        ("grouped", {"a": [2]}, "b", {"in_channels": 3, "out_channels": 5, "groups": 1}),
        (
            "grouped_transpose",
            {"a": [0, 3, 1], "a#2": [0, 2], "b": [4]},
            "b",
            {"in_channels": 6, "out_channels": 3, "groups": 3},
        ),
        ("depthwise", {"a": [0, 4, 5, 6, 11]}, "b", {"in_channels": 5, "out_channels": 5, "groups": 5}),
        ("depthwise_multiplier", {"a": [0, 4], "b": [2]}, "b", {"in_channels": 2, "out_channels": 2, "groups": 2}),
        ("linear", {"a": [7]}, "fc", {"in_features": 1, "out_features": 5}),
        ("linear_on_tokens", {"a": [0, 1, 7]}, "a", {"in_features": 3, "out_features": 3}),
        ("batch_norm2d", {"a": [0, 1, 7]}, "n", {"num_features": 3}),
        ("instance_norm2d", {"a": [0, 1, 7]}, "n", {"num_features": 3}),
        ("group_norm", {"a": [1, 2]}, "n", {"num_groups": 2, "num_channels": 6}),
        ("group_norm", {"a": [1, 2], "a#2": [0]}, "n", {"num_groups": 2, "num_channels": 2}),
        ("group_norm_of_one_group", {"a": [1, 2, 7]}, "n", {"num_groups": 1, "num_channels": 3}),
        ("layer_norm", {"b": [1, 2, 7]}, "n", {"normalized_shape": (3,)}),
        ("layer_norm_of_channels_and_places", {"a": [1, 7]}, "n", {"normalized_shape": (2, 4, 4)}),
        ("rms_norm", {"a": [0]}, "n", {"normalized_shape": (1,)}),
        (
            "bilinear",
            {"a": [1, 7], "b": [0, 2, 3], "m": [5]},
            "m",
            {"in1_features": 2, "in2_features": 3, "out_features": 1},
        ),
        ("embedding", {"e": [1, 7]}, "e", {"num_embeddings": 9, "embedding_dim": 2}),
        ("prelu", {"a": [5, 6]}, "p", {"num_parameters": 2}),
        ("prelu_with_one_slope", {"a": [5, 6]}, "p", {"num_parameters": 1}),
    ],
)
def test_modules_say_their_sizes(name: str, kept: dict[str, list[int]], layer: str, attributes: dict[str, int]) -> None:
    _, slim = layers_of(name, kept)
    module = slim.get_submodule(layer)
    assert {attribute: getattr(module, attribute) for attribute in attributes} == attributes
    assert len(slim(CASES[name].x)) == 2


def test_a_functional_convolution_is_given_the_groups_that_are_left() -> None:
    _, slim = layers_of("functional_grouped", {"weight": [0, 2, 3], "weight#2": [1, 4]})
    assert calls(slim, F.conv2d) == [(1, 0, 1, 3)]
    assert slim.weight.shape == (6, 3, 1, 1)


def test_a_functional_group_norm_is_given_the_groups_that_are_left() -> None:
    _, slim = layers_of("functional_group_norm", {"w": [3]})
    (node,) = (node for node in slim.graph.nodes if node.target is F.group_norm)
    assert (*node.args, *node.kwargs.values())[1] == 1


# Reasons ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "where", "size", "reason"),
    [
        pytest.param(
            lambda net, x: net.fc(net.conv(net.a(x).unsqueeze(1)).flatten(1)),
            "a",
            8,
            "spatial axis at conv",
            id="convolved units",
        ),
        pytest.param(
            lambda net, x: net.fc(F.bilinear(net.a(x).sigmoid(), x, net.w[:, :, None].sigmoid().expand(-1, -1, 3))),
            "a",
            8,
            "units that need not be zero when dropped are multiplied with each other at bilinear (node bilinear)",
            id="a bilinear product of what is not zero",
        ),
    ],
)
def test_reasons_of_layers(body: Body, where: str, size: int, reason: str | None) -> None:
    layers: Layers = {
        "a": nn.Linear(3, 8),
        "conv": nn.Conv1d(1, 1, 3, padding=1),
        "fc": nn.Linear(8, 5),
        "w": parameter(8, 8),
        "u": parameter(8, 8),
        "v": parameter(8),
    }
    rows = frozen(analysed(net(body, **layers), vectors()))
    assert [row for row in rows if row[0] == where] == ([(where, size, reason)] if reason else [])
    assert {row[2] for row in rows} == ({reason} if reason else set())


# Rare spellings -----------------------------------------------------------------------------------------------------


def spatial_norm(norm: nn.Module) -> nn.Module:
    return net(
        lambda net, x: net.fc(net.n(net.a(x).view(-1, 4, 4, 4)).flatten(1)),
        a=nn.Linear(3, 64),
        n=norm,
        fc=nn.Linear(64, 5),
    )


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(lambda: nn.BatchNorm2d(4), id="batch norm"),
        pytest.param(
            lambda: nn.GroupNorm(2, 4),
            id="group norm",
        ),
        pytest.param(
            lambda: nn.InstanceNorm2d(4),
            id="instance norm",
        ),
    ],
)
def test_units_seen_as_a_map_are_normalised_as_before(norm: Callable[[], nn.Module]) -> None:
    assert parity_error(spatial_norm(norm()), (vectors(),), 0) <= FLOAT64_LIMIT


def test_a_vector_that_is_normalised() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x) * net.n(net.p)),
        a=nn.Linear(3, 8),
        n=nn.LayerNorm(8),
        p=parameter(8),
        fc=nn.Linear(8, 5),
    )
    assert sizes(analysed(model, vectors())) == [8]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


def test_a_convolution_of_one_image_without_a_batch_axis() -> None:
    model = net(
        lambda net, x: net.fc(net.b(net.a(x)[0]).mean((1, 2))),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 6, 1),
        fc=nn.Linear(6, 5),
    )
    assert analysed(model, images()).graph.batch is not None


def test_zeros_are_those_of_the_operand_whatever_the_order_of_the_names() -> None:
    model = net(
        lambda net, x: net.fc(F.prelu(weight=net.w, input=torch.sigmoid(net.a(x))).sum(1).flatten(1)),
        a=nn.Conv2d(3, 8, 1),
        w=parameter(8),
        fc=nn.Linear(16, 4),
    )
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT
