"""Rules of ops that take an axis apart: groups, literals written again, reasons, parity."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.ops.small import (
    UNITS,
    Followed,
    Function,
    assert_followed,
    assert_frozen,
    assert_parity,
    assert_written_again,
    conv,
    linear,
    mapped,
    mean,
)
from tests.graph.small import FLOAT64_LIMIT, analysed, frozen, images, net, sizes, slimmed, tokens, vectors
from tests.pruning import parity_error


def _grown(x: Tensor) -> Tensor:
    return torch.cat([x, F.relu(x), x[:, 2:5]], 1)


ORDER = [3, 1, 0, 2, 7, 6, 5, 4]
PERMUTATION = torch.tensor(ORDER)


def _halves(parts: Any) -> Tensor:
    first, second = parts
    product: Tensor = first * second
    return product


FOLLOWED: Followed = {
    "another order": (linear(lambda x: x.index_select(1, PERMUTATION)), vectors(), [8], ORDER),
    "another order and back": (
        linear(lambda x: torch.index_select(x.index_select(1, PERMUTATION), 1, PERMUTATION.argsort())),
        vectors(),
        [8],
        UNITS,
    ),
    "parts of another order": (
        linear(lambda x: torch.cat(torch.split(x.index_select(1, PERMUTATION), [3, 5], 1)[::-1], 1)),
        vectors(),
        # Two of three units that stay together; single ones that are cut off are constant.
        [2, 4],
        None,
    ),
    "the same order twice": (
        linear(lambda x: x.index_select(1, PERMUTATION) + x.index_select(1, PERMUTATION)),
        vectors(),
        [8],
        ORDER,
    ),
    "chunk": (linear(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), vectors(), [4, 4], [-1] * 4 + [0, 1, 2, 3]),
    "uneven chunk": (linear(lambda x: torch.cat(torch.chunk(x, 3, -1)[:2], 1), out=6), vectors(), [2, 3, 3], None),
    "split in equal parts": (
        linear(lambda x: operator.mul(*torch.split(x, 4, 1)), out=4),
        vectors(),
        [4],
        [0, 1, 2, 3],
    ),
    "split": (linear(lambda x: torch.split(x, [3, 5], 1)[1], out=5), vectors(), [3, 5], None),
    "split of copies": (
        linear(lambda x: torch.cat(torch.split(torch.cat([x] * 3, 1), [12, 12], 1)[::-1], 1), out=24),
        vectors(),
        [4, 4],
        None,
    ),
    "split with sizes": (linear(lambda x: x.split_with_sizes([3, 5], 1)[1], out=5), vectors(), [3, 5], None),
    "split of a tensor": (linear(lambda x: torch.tensor_split(x, 3, 1)[2], out=2), vectors(), [2, 3, 3], None),
    "split at places": (linear(lambda x: x.tensor_split((2, 5), dim=1)[1], out=3), vectors(), [2, 3, 3], None),
    "narrow": (linear(lambda x: torch.narrow(x, 1, 3, 4), out=4), vectors(), [3, 4], None),
    "narrow from the end": (linear(lambda x: x.narrow(-1, -3, 3), out=3), vectors(), [3, 5], None),
    "narrow of all": (linear(lambda x: x.narrow(1, 0, 8)), vectors(), [8], UNITS),
    "slice": (linear(lambda x: x[:, 2:6], out=4), vectors(), [2, 2, 4], None),
    "slice from the end": (linear(lambda x: x[:, -3:], out=3), vectors(), [3, 5], None),
    "slice after an ellipsis": (linear(lambda x: x[..., :5], out=5), tokens(), [3, 5], [0, 1, 2, 3, 4]),
    "slice with a new axis": (linear(lambda x: x[:, None, :5].squeeze(1), out=5), vectors(), [3, 5], [0, 1, 2, 3, 4]),
    "strided maps": (conv(lambda x: mean(x[:, :, ::2, 1:])), images(), [8], UNITS),
    "one token": (linear(lambda x: x[:, 0]), tokens(), [8], UNITS),
    "slices joined and grown": (conv(mapped(_grown), out=19), images(), [2, 3, 3], None),
    "gated linear unit": (linear(F.glu, out=4), vectors(), [4], [0, 1, 2, 3]),
    "gated linear unit of maps": (conv(lambda x: mean(F.glu(x, dim=1)), out=4), images(), [4], [0, 1, 2, 3]),
    "tokens by a list": (linear(lambda x: x[:, [1, 2, 0]] * x[:, :3]), tokens(), [8], UNITS),
    "units by a list": (linear(lambda x: x[:, ORDER]), vectors(), [8], ORDER),
    "units by a list from the end": (linear(lambda x: x[..., [n - 8 for n in ORDER]]), tokens(), [8], ORDER),
    "units by number": (linear(lambda x: x[:, PERMUTATION]), vectors(), [8], ORDER),
    "tokens by number": (linear(lambda x: x[:, torch.tensor([1, 2, 0])] * x[:, :3]), tokens(), [8], UNITS),
    "tokens by two numbers": (
        conv(lambda x: x[:, :, torch.tensor([1, 2]), torch.tensor([0, 3])].mean(2)),
        images(),
        [8],
        UNITS,
    ),
    "tokens by number and one entry": (
        conv(lambda x: x.permute(0, 2, 1, 3)[:, torch.tensor([1, 2, 0]), :, 3].mean(1)),
        images(),
        [8],
        UNITS,
    ),
    "tokens by numbers on both sides": (
        conv(lambda x: x.permute(0, 2, 1, 3)[:, torch.tensor([1, 2]), :, torch.tensor([0, 3])].mean(0)),
        images(),
        [8],
        UNITS,
    ),
    "tokens by number on a new axis": (
        linear(lambda x: x[:, None, torch.tensor([1, 2])].mean((1, 2))),
        tokens(),
        [8],
        UNITS,
    ),
    "tokens selected": (linear(lambda x: x.index_select(1, torch.tensor([0, 0, 3]))), tokens(), [8], UNITS),
}


@pytest.mark.parametrize(("model", "x", "groups", "columns"), FOLLOWED.values(), ids=FOLLOWED)
def test_axes_are_followed(model: nn.Module, x: Tensor, groups: list[int], columns: list[int] | None) -> None:
    assert_followed(model, x, groups, columns)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FOLLOWED)
def test_parity(name: str, seed: int) -> None:
    model, x, _, _ = FOLLOWED[name]
    assert_parity(model, x, seed)


@pytest.mark.parametrize(
    ("name", "kept", "target", "arguments"),
    [
        ("chunk", {"a": [1], "a#2": [0, 2, 3]}, torch.split, [([1, 3], 1)]),
        ("split in equal parts", {"a": [1, 2, 3]}, torch.split, [([3, 3], 1)]),
        ("split", {"a": [1], "a#2": [0, 2, 4]}, torch.split, [([1, 3], 1)]),
        ("slice", {"a": [1], "a#2": [0, 1, 2], "a#3": [1]}, operator.getitem, [((slice(None), slice(1, 4)),)]),
        ("slice from the end", {"a": [1], "a#2": [0, 2]}, operator.getitem, [((slice(None), slice(1, 3)),)]),
        ("slice after an ellipsis", {"a": [1]}, operator.getitem, [((slice(None), slice(None), slice(0, 1)),)]),
        ("narrow", {"a": [1], "a#2": [0, 1, 3]}, "narrow", []),
        ("narrow", {"a": [1], "a#2": [0, 1, 3]}, torch.narrow, [(1, 1, 3)]),
        ("narrow from the end", {"a": [1], "a#2": [0, 2]}, "narrow", [(-1, 1, 2)]),
        ("slice with a new axis", {"a": [1, 4]}, operator.getitem, [((slice(None), None, slice(0, 2)),)]),
    ],
)
def test_sizes_are_written_again(
    name: str, kept: dict[str, list[int]], target: object, arguments: list[tuple[Any, ...]]
) -> None:
    model, x, _, _ = FOLLOWED[name]
    assert_written_again(model, x, kept, target, arguments)


@pytest.mark.parametrize(
    ("function", "out", "reason"),
    [
        (lambda x: x[:, ::2], 4, "strided or empty slice at getitem (node getitem)"),
        (lambda x: torch.cat([x, x[:, 3:3]], 1), 8, "strided or empty slice at getitem (node getitem)"),
        (lambda x: x * x[:, 3].unsqueeze(1), 8, "one entry selected at getitem (node getitem)"),
        (lambda x: x * x.select(1, 3).unsqueeze(1), 8, "one entry selected at select (node select)"),
        (lambda x: x[:, [1, 0, 2]], 3, "taken by number at getitem (node getitem)"),
        (lambda x: torch.stack(x.unbind(1)[:3], 1), 3, "taken apart at unbind (node unbind)"),
        (lambda x: x[:, torch.tensor([2, 1])], 2, "taken by number at getitem (node getitem)"),
        (lambda x: x.index_select(1, PERMUTATION[:4]), 4, "taken by number at index_select (node index_select)"),
        (lambda x: x[:, [True, False] * 4], 4, "indexed by what is no number at getitem (node getitem)"),
        (
            lambda x: torch.cat(torch.tensor_split(x, (5, 2), 1), 1),
            11,
            "split into parts that are not all of it at tensor_split (node tensor_split)",
        ),
        (lambda x: torch.gather(x, 1, x.argsort(0)), 8, "taken by number at gather (node gather)"),
    ],
)
def test_reasons(function: Function, out: int, reason: str) -> None:
    assert_frozen(function, out, reason)


def test_a_stored_order_counts_the_units_that_are_left() -> None:
    model, x, _, _ = FOLLOWED["another order"]
    slim = slimmed(analysed(model, x), {"a": [1, 2, 3, 7]})
    (stored,) = (buffer for _, buffer in slim.named_buffers())
    assert stored.tolist() == [2, 0, 1, 3]


def test_an_order_that_is_read_for_its_numbers_freezes() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).index_select(1, net.order) * net.order),
        a=nn.Linear(3, 8),
        order=nn.Buffer(PERMUTATION),
        fc=nn.Linear(8, 5),
    )
    analysis = analysed(model, vectors())
    assert sizes(analysis) == []
    assert frozen(analysis) == [("a", 8, "taken by number at index_select (node index_select)")]


def test_one_order_of_two_axes_couples_them() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y, z = (layer(x).index_select(1, net.order) for layer in (net.a, net.b))
        return net.fc(torch.cat([y, z], 1))

    model = net(body, a=nn.Linear(3, 8), b=nn.Linear(3, 8), order=nn.Buffer(PERMUTATION), fc=nn.Linear(16, 5))
    assert sizes(analysed(model, vectors())) == [8]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


def test_examples_taken_by_number_fix_the_batch() -> None:
    model = conv(lambda x: x[torch.tensor([0, 1]), :, 2, torch.tensor([0, 3])])
    analysis = analysed(model, images())
    assert analysis.graph.batch is None
    assert sizes(analysis) == [8]


def test_examples_joined_along_the_batch_come_apart_again() -> None:
    def body(net: Any, x: Tensor) -> Any:
        one, other = net.b(F.relu(net.a(torch.cat([x, 2 * x])))).chunk(2)
        return net.fc(one * other)

    model = net(body, a=nn.Linear(3, 8), b=nn.Linear(8, 6), fc=nn.Linear(6, 5))
    assert sizes(analysed(model, vectors())) == [6, 8]
    assert parity_error(model, (vectors(),), 0) <= FLOAT64_LIMIT


def test_a_strided_slice_freezes_the_axis_it_strides_along_only() -> None:
    analysis = analysed(linear(lambda x: x[:, ::2]), tokens())
    assert sizes(analysis) == [8]
    assert frozen(analysis) == []


@pytest.mark.parametrize(
    ("function", "groups"),
    [
        pytest.param(lambda x: _halves(torch.split(tensor=x, split_size_or_sections=4, dim=1)), [4], id="split"),
        pytest.param(
            lambda x: _halves(torch.chunk(input=x, chunks=2, dim=1)),
            [4],
            id="chunk",
        ),
    ],
)
def test_operands_and_axes_given_by_name(function: Function, groups: list[int]) -> None:
    assert sizes(analysed(linear(function, out=4), vectors())) == groups


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: torch.cat(torch.split(x, [100, 156], 1)[::-1], 1), "split among shuffled entries at split"),
        (lambda x: F.glu(torch.cat([x, x], 1)[:, 64:320], 1).repeat(1, 2), "slice among shuffled entries at getitem"),
        (lambda x: F.glu(x, 1).repeat(1, 2), "split among shuffled entries at glu"),
    ],
)
def test_shuffled_units_that_a_cut_would_tear_apart_are_frozen(function: Function, what: str) -> None:
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    analysis = analysed(linear(lambda x: function(x.index_select(1, order)), 256, 256), vectors())
    assert frozen(analysis)[0][2].startswith(what)
