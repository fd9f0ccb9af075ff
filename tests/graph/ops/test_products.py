"""Rules of products of tensors: groups that a person finds, what is written again, texts of what is frozen."""

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
    frozen,
    members,
    net,
    parameter,
    sizes,
    slimmed,
    tokens,
    vectors,
)
from tests.pruning import parity_error


def heads(net: Any, x: Tensor) -> Any:
    b, n, _ = x.shape
    q, k = (part(x).view(b, n, 2, 4).transpose(1, 2) for part in (net.q, net.k))
    v = net.v(x).view(b, n, 2, 3).transpose(1, 2)
    return net.fc(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 6))


HEADS: Callable[[], Layers] = lambda: {  # noqa: E731
    "q": nn.Linear(3, 8),
    "k": nn.Linear(3, 8),
    "v": nn.Linear(3, 6),
    "fc": nn.Linear(6, 5),
}


def _einsum(equation: str, **shapes: Any) -> Callable[[Any, Tensor], Any]:
    return lambda net, x: net.fc(torch.einsum(equation, net.a(x), net.w))


CASES: dict[str, Case] = {
    "matmul_with_a_parameter": Case(
        lambda net, x: net.fc(net.a(x) @ net.w),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(8, 6), "fc": nn.Linear(6, 5)},
        tokens(),
        [6, 8],
    ),
    "matmul_with_a_vector": Case(
        lambda net, x: net.fc(torch.matmul(net.a(x), net.w)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(8), "fc": nn.Linear(7, 5)},
        tokens(),
        [8],
    ),
    "matmul_of_a_vector": Case(
        lambda net, x: net.fc(torch.matmul(net.w, net.a(x))),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(7), "fc": nn.Linear(8, 5)},
        tokens(),
        # The vector reads the tokens, which are an axis of the input.
        [8],
    ),
    "batched_product": Case(
        lambda net, x: net.fc(torch.bmm(net.q(x), net.k(x).transpose(1, 2)).bmm(net.v(x))),
        lambda: {"q": nn.Linear(3, 8), "k": nn.Linear(3, 8), "v": nn.Linear(3, 6), "fc": nn.Linear(6, 5)},
        tokens(),
        [6, 8],
    ),
    "einsum": Case(
        lambda net, x: net.fc(torch.einsum("bnc,oc->bno", net.a(x), net.w)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(6, 8), "fc": nn.Linear(6, 5)},
        tokens(),
        [6, 8],
    ),
    "einsum_of_heads": Case(
        lambda net, x: net.fc(
            torch.einsum(
                "bhqk, bkhd -> bqhd",
                torch.einsum("bqhd,bkhd->bhqk", net.q(x).unflatten(-1, (2, 4)), net.k(x).unflatten(-1, (2, 4))).softmax(
                    -1
                ),
                net.v(x).unflatten(-1, (2, 3)),
            ).flatten(-2)
        ),
        lambda: HEADS(),
        tokens(),
        [2, 3, 4],
    ),
    "einsum_that_sums_units_of_one_operand": Case(
        lambda net, x: net.fc(net.b(x) * torch.einsum("bnc->bn", [net.a(x)]).unsqueeze(-1)),
        lambda: {"a": nn.Linear(3, 8), "b": nn.Linear(3, 6), "fc": nn.Linear(6, 5)},
        tokens(),
        [6, 8],
    ),
    "addmm": Case(
        lambda net, x: net.fc(torch.addmm(net.b, net.a(x), net.w, beta=0.5)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(8, 6), "b": parameter(6), "fc": nn.Linear(6, 5)},
        vectors(),
        [6, 8],
    ),
    "addmm_as_a_method": Case(
        lambda net, x: net.fc(net.c(x).addmm(net.a(x), net.w)),
        lambda: {"a": nn.Linear(3, 8), "c": nn.Linear(3, 6), "w": parameter(8, 6), "fc": nn.Linear(6, 5)},
        vectors(),
        [6, 8],
    ),
    "baddbmm": Case(
        lambda net, x: net.fc(torch.baddbmm(net.s, net.q(x), net.k(x).mT).bmm(net.v(x))),
        lambda: {
            "q": nn.Linear(3, 8),
            "k": nn.Linear(3, 8),
            "v": nn.Linear(3, 6),
            "s": parameter(1, 7, 7),
            "fc": nn.Linear(6, 5),
        },
        tokens(),
        [6, 8],
    ),
    "attention": Case(heads, HEADS, tokens(), [2, 3, 4]),
    "attention_with_mask_and_scale": Case(
        lambda net, x: net.fc(
            F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x), attn_mask=net.mask, scale=0.3)
        ),
        lambda: {**HEADS(), "mask": parameter(7, 7)},
        tokens(),
        [6, 8],
        [("mask", 7, "attention mask at scaled_dot_product_attention (node scaled_dot_product_attention)")],
    ),
    **{
        f"einsum_{equation}": Case(
            _einsum(equation),
            lambda w=w: {"a": nn.Linear(3, 8), "w": w, "fc": nn.Linear(6, 5)},  # type: ignore[misc]
            tokens(),
            [6, 8],
        )
        for equation, w in (
            ("...c,cd->...d", parameter(8, 6)),
            ("b ... c, ... d c -> b ... d", parameter(1, 6, 8)),
            ("bxC,Cy", parameter(8, 6)),
            ("...c,c...d", parameter(8, 1, 6)),
        )
    },
    "einsum_of_two_axes_of_the_same_units": Case(
        # One of the two factors has the units of an axis that is stretched in the other.
        lambda net, x: net.fc(torch.einsum("bij,bj->bij", net.a(x)[:, :, None], net.a(x).exp()).sum(1)),
        lambda: {"a": nn.Linear(3, 8), "fc": nn.Linear(8, 5)},
        vectors(),
        [],
        [("a", 8, "reduced at sum (node sum_1)")],
    ),
    "tensordot": Case(
        lambda net, x: net.fc(torch.tensordot(net.a(x), net.w, dims=([2], [1]))),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(6, 8), "fc": nn.Linear(6, 5)},
        tokens(),
        [6, 8],
    ),
    "tensordot_of_so_many_axes": Case(
        lambda net, x: net.fc(torch.tensordot(net.a(x).unflatten(-1, (2, 4)), net.w, 2)),
        lambda: {"a": nn.Linear(3, 8), "w": parameter(2, 4, 6), "fc": nn.Linear(6, 5)},
        tokens(),
        [2, 4, 6],
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


def test_attention_shares_heads_with_all_and_depth_with_query_and_key() -> None:
    analysis, _ = layers_of("attention", {})
    heads, depth, value = (members(analysis, name) for name in ("q", "q#2", "v"))
    assert {tensor for tensor, _ in heads} == {
        "q.weight",
        "q.bias",
        "k.weight",
        "k.bias",
        "v.weight",
        "v.bias",
        "fc.weight",
    }
    assert {tensor for tensor, _ in depth} == {"q.weight", "q.bias", "k.weight", "k.bias"}
    assert {tensor for tensor, _ in value} == {"v.weight", "v.bias", "fc.weight"}
    assert heads["v.weight", 0] == [0, 0, 0, 1, 1, 1]
    assert value["fc.weight", 1] == [0, 1, 2] * 2


def test_the_scale_of_attention_is_that_of_the_dense_network() -> None:
    _, slim = layers_of("attention", {"q#2": [1]})
    (node,) = (node for node in slim.graph.nodes if node.target is F.scaled_dot_product_attention)
    assert node.kwargs["scale"] == 4**-0.5
    _, slim = layers_of("attention_with_mask_and_scale", {"q": [1]})
    (node,) = (node for node in slim.graph.nodes if node.target is F.scaled_dot_product_attention)
    assert node.kwargs["scale"] == 0.3


@pytest.mark.parametrize(
    ("body", "where", "size", "reason"),
    [
        pytest.param(
            lambda net, x: net.fc(F.scaled_dot_product_attention(*[net.a(x).unsqueeze(2)] * 3).flatten(1)),
            "a",
            8,
            "softmax over the axis at scaled_dot_product_attention (node scaled_dot_product_attention)",
            id="units as tokens",
        ),
        pytest.param(
            lambda net, x: net.fc(x.sum(1, keepdim=True) * torch.einsum("bc,cd->bd", net.a(x).sigmoid(), net.w.exp())),
            "a",
            8,
            "units that need not be zero when dropped are summed over at einsum (node einsum)",
            id="an einsum over what is not zero",
        ),
        pytest.param(
            lambda net, x: net.fc(x.sum(1, keepdim=True) * torch.einsum("bc->b", net.a(x).exp()).unsqueeze(1) * net.v),
            "a",
            8,
            "units that need not be zero when dropped are summed over at einsum (node einsum)",
            id="an einsum that sums what is not zero",
        ),
        *[
            pytest.param(
                lambda net, x, equation=equation: net.fc(torch.einsum(equation, net.a(x), net.w)),
                "a",
                8,
                "einsum that cannot be followed at einsum (node einsum)",
                id=equation,
            )
            for equation in ("bc,dd->bc", "bc,dd")
        ],
        pytest.param(
            lambda net, x: net.fc((net.a(x).unsqueeze(1) @ net.w).squeeze(1) @ net.u),
            "w",
            8,
            None,
            id="a product of matrices freezes nothing",
        ),
    ],
)
def test_reasons(body: Body, where: str, size: int, reason: str | None) -> None:
    layers: Layers = {
        "a": nn.Linear(3, 8),
        "fc": nn.Linear(8, 5),
        "w": parameter(8, 8),
        "u": parameter(8, 8),
        "v": parameter(8),
    }
    rows = frozen(analysed(net(body, **layers), vectors()))
    assert [row for row in rows if row[0] == where] == ([(where, size, reason)] if reason else [])
    assert {row[2] for row in rows} == ({reason} if reason else set())


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: torch.tanh(x), id="units that are zero when dropped"),
        pytest.param(
            lambda x: torch.sigmoid(x),
            id="units that are not",
        ),
    ],
)
def test_units_multiplied_with_each_other(function: Callable[[Tensor], Tensor]) -> None:
    def body(net: Any, x: Tensor) -> Any:
        y = function(net.a(x))
        return net.fc(y @ y.transpose(1, 2))

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(7, 5))
    assert parity_error(model, (tokens(),), 0) <= FLOAT64_LIMIT


def test_attention_with_an_explicit_default_scale() -> None:
    model = net(
        lambda net, x: net.fc(F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x), scale=None)), **HEADS()
    )
    assert sizes(analysed(model, tokens())) == [6, 8]


def test_attention_with_fewer_key_heads() -> None:
    def body(net: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = net.q(x).view(b, n, 4, 2).transpose(1, 2)
        k, v = (part(x).view(b, n, 2, 2).transpose(1, 2) for part in (net.k, net.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return net.fc(y.transpose(1, 2).reshape(b, n, 8))

    model = net(body, q=nn.Linear(3, 8), k=nn.Linear(3, 4), v=nn.Linear(3, 4), fc=nn.Linear(8, 5))
    analysis = analysed(model, tokens())
    assert sizes(analysis) == [2, 2, 2, 2]
    # Two query heads in a row read one key head.
    assert members(analysis, "q")["q.weight", 0] == [0] * 4 + [1] * 4
    assert members(analysis, "q#2")["q.weight", 0] == [0, 0, 1, 1] * 2
    assert parity_error(model, (tokens(),), 0) <= FLOAT64_LIMIT
