"""Rules of ops that read an axis as a whole: groups, literals written again, reasons, parity."""

from __future__ import annotations

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
    mean,
)
from tests.graph.small import FLOAT64_LIMIT, analysed, images, members, sizes, tokens, vectors
from tests.pruning import parity_error


def _response_norm(x: Tensor, places: tuple[int, int] = (2, 3), channels: int = 1) -> Tensor:
    """Channels scaled by their norm over all places, over the mean of these norms."""
    norms: Tensor = x.norm(p=2, dim=places, keepdim=True)
    scaled: Tensor = x * (norms / (norms.mean(channels, keepdim=True) + 1e-6))
    return x + scaled


FOLLOWED: Followed = {
    "tokens summed up": (linear(lambda x: x.cumsum(1)), tokens(), [8], UNITS),
    "tokens in order": (linear(lambda x: x.sort(dim=1, descending=True)[0]), tokens(), [8], UNITS),
    "order of tokens": (linear(lambda x: x * torch.argsort(x, 1)), tokens(), [8], UNITS),
    "largest token and where it is": (linear(lambda x: x.max(1)[0] * x.max(1)[1]), tokens(), [8], UNITS),
    "spread of tokens": (linear(lambda x: x / (1 + x.std(1, keepdim=True))), tokens(), [8], UNITS),
    "spread and mean of tokens": (linear(lambda x: torch.var_mean(x, dim=1)[0]), tokens(), [8], UNITS),
    "sum of units": (linear(lambda x: x * x.sum(1, keepdim=True)), vectors(), [8], UNITS),
    "mean of units": (linear(lambda x: x * x.mean(-1, keepdim=True)), vectors(), [8], UNITS),
    "mean of units and places": (conv(lambda x: mean(x * torch.mean(x, (1, 2, 3), True))), images(), [8], UNITS),
    "mean of heads": (linear(lambda x: x.view(-1, 2, 4).mean((1, 2))[:, None] * x), vectors(), [2, 4], None),
    "length": (linear(lambda x: x * x.norm(dim=1, keepdim=True)), vectors(), [8], UNITS),
    "length of another order": (linear(lambda x: x * torch.norm(x, 3, 1, keepdim=True)), vectors(), [8], UNITS),
    "length of places": (
        conv(lambda x: mean(x * torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True))),
        images(),
        [8],
        UNITS,
    ),
    "unit length": (linear(lambda x: F.normalize(x, dim=-1)), vectors(), [8], UNITS),
    "unit length over two axes": (linear(lambda x: F.normalize(x, 3.0, (1, 2))), tokens(), [8], UNITS),  # type: ignore[arg-type]
    "response norm": (conv(lambda x: mean(_response_norm(x))), images(), [8], UNITS),
    "response norm of channels last": (
        conv(lambda x: mean(_response_norm(x.permute(0, 2, 3, 1), (1, 2), -1).permute(0, 3, 1, 2))),
        images(),
        [8],
        UNITS,
    ),
    "mean": (conv(mean), images(), [8], UNITS),
    "sum of tokens": (linear(lambda x: x.sum(1)), tokens(), [8], UNITS),
    "largest token": (linear(lambda x: torch.amax(x, dim=1)), tokens(), [8], UNITS),
    "softmax of tokens": (linear(lambda x: x.softmax(1) * x), tokens(), [8], UNITS),
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
        ("mean of units", {"a": [0, 3]}, torch.mul, [(0.25,)]),
        ("mean of heads", {"a": [1], "a#2": [0, 2]}, torch.mul, [(0.5,), (0.5,)]),
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
        (lambda x: x - x.exp().mean(1, keepdim=True), 8, "reduced at mean (node mean)"),
        (lambda x: x - x.amax(1, keepdim=True), 8, "reduced at amax (node amax)"),
        (lambda x: x - x.var(1, keepdim=True), 8, "reduced at var (node var)"),
        (lambda x: x * x.exp().norm(2, 1, keepdim=True), 8, "reduced at norm (node norm)"),
        (lambda x: x * x.norm(-1, 1, keepdim=True), 8, "reduced at norm (node norm)"),
        (lambda x: x * torch.linalg.norm(x), 8, "reduced at linalg_norm (node linalg_norm)"),
        (lambda x: F.normalize(x.exp(), dim=1), 8, "normalised together at normalize (node normalize)"),
        (lambda x: F.normalize(x, -1.0, 1), 8, "normalised together at normalize (node normalize)"),
        (lambda x: x.cumsum(1), 8, "taken in order at cumsum (node cumsum)"),
        (lambda x: torch.sort(x)[0], 8, "taken in order at sort (node sort)"),
        (lambda x: F.glu(x.unsqueeze(1).softmax(2)).squeeze(1), 4, "softmax over the axis at softmax (node softmax)"),
        (lambda x: x / x.sum(), 8, "reduced at sum (node sum_1)"),
        (lambda x: x * x.argmax(-1, keepdim=True), 8, "reduced at argmax (node argmax)"),
        (lambda x: x.softmax(-1), 8, "softmax over the axis at softmax (node softmax)"),
        (lambda x: F.log_softmax(x, dim=1), 8, "softmax over the axis at log_softmax (node log_softmax)"),
        (lambda x: torch.logcumsumexp(x, 1), 8, "no typing rule for logcumsumexp at logcumsumexp (node logcumsumexp)"),
    ],
)
def test_reasons(function: Function, out: int, reason: str) -> None:
    assert_frozen(function, out, reason)


def test_a_deviation_written_out_is_frozen() -> None:
    # The mean that is subtracted is not zero for dropped units, so the variance would count them.
    def function(x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).sum(1, keepdim=True) + 1e-6).sqrt()

    assert parity_error(linear(function), (vectors(),), 0) <= FLOAT64_LIMIT


@pytest.mark.parametrize(("before", "groups"), [(F.relu, [16]), (torch.sigmoid, [])])
def test_a_norm_over_units_is_over_them_and_not_over_the_places(before: Function, groups: list[int]) -> None:
    # 16 places and 16 channels: the wrong axis has the right size.
    model = conv(lambda x: before(x).flatten(2).norm(2, 1), channels=16, out=16)
    analysis = analysed(model, images())
    assert sizes(analysis) == groups
    assert {tensor for g in analysis.groups for tensor, _ in members(analysis, g.name)} <= {"a.weight", "a.bias"}
    assert parity_error(model, (images(),), 0) <= FLOAT64_LIMIT


def test_a_deviation_of_all_entries_freezes_them() -> None:
    model = linear(lambda x: x / torch.std(x, False))
    assert sizes(analysed(model, vectors())) == []
