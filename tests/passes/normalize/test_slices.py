"""Bounds of slices are counted from the front."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor

from mdp_fx.passes.normalize.slices import count_from_front
from tests.graph.ops.small import assert_parity, linear
from tests.graph.small import calls, tokens, vectors
from tests.passes.normalize.bench import left_alone, normalized

ALL = slice(None)


@pytest.mark.parametrize(
    ("index", "written"),
    [
        ((ALL, slice(-5, -2)), (ALL, slice(2, 5, None))),
        ((ALL, slice(1, -1)), (ALL, slice(1, 6, None))),
        ((Ellipsis, slice(-3, None)), (Ellipsis, slice(5, None, None))),
        ((None, ALL, slice(-3, None)), (None, ALL, slice(4, None, None))),
        ((ALL, slice(-99, 4)), (ALL, slice(0, 4, None))),
        ((ALL, [0, 2], slice(-4, None)), (ALL, [0, 2], slice(4, None, None))),
    ],
)
def test_negative_bounds_are_counted_from_the_end(index: Any, written: Any) -> None:
    module = normalized(linear(lambda x: x[index].sum().expand(2, 8)), tokens(), step=count_from_front)
    assert calls(module, operator.getitem) == [(written,)]


def test_a_range_and_what_is_written_to() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.narrow(1, -4, 3).relu()
        x[:, -2:] = 0
        return x * torch.narrow(y, dim=1, start=-1, length=1)

    module = normalized(linear(function), vectors(), step=count_from_front)
    assert calls(module, "narrow") == [(1, 4, 3)]
    assert calls(module, torch.narrow) == [(1, 2, 1)]
    assert calls(module, operator.setitem) == [((ALL, slice(6, None, None)), 0)]


@pytest.mark.parametrize("index", [(ALL, slice(1, 3)), (ALL, -1), (ALL, slice(None, None, 2)), slice(None, 1)])
def test_others_are_left_alone(index: Any) -> None:
    left_alone(linear(lambda x: x[index].sum().expand(2, 8)), tokens(), step=count_from_front)


def test_units_before_the_end_stay_the_same_ones() -> None:
    # One unit, then others that are pruned: from the end it would be another one.
    assert_parity(linear(lambda x: x[:, -8:-7] * x), vectors())
