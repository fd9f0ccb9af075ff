from __future__ import annotations

import math

import pytest
import torch

from mdp_fx.errors import ParityError
from mdp_fx.exporters.parity import compare


def test_errors_are_relative_to_the_output() -> None:
    report = compare({"a": torch.tensor([100.0, 1.0])}, [torch.tensor([100.01, 1.0])])
    assert report.max_abs_error == pytest.approx(0.01, rel=1e-2)
    assert report.max_rel_error == pytest.approx(1e-4, rel=1e-2)


def test_every_output_counts() -> None:
    good, bad = torch.ones(3), torch.ones(3)
    bad[1] = 1.002
    with pytest.raises(ParityError, match=r"output 1 of the copy is off by 0\.002"):
        compare((good, good), (good, bad), "the copy")


def test_half_precision_may_differ_by_its_rounding() -> None:
    one = torch.ones(3)
    assert compare(one.half(), one.half() * 1.002).max_rel_error > 1e-3


def test_numbers_and_shapes_must_agree() -> None:
    with pytest.raises(ParityError, match="has 2 outputs instead of 1"):
        compare(torch.ones(1), [torch.ones(1), torch.ones(1)])
    with pytest.raises(ParityError, match=r"shape \(2,\) instead of \(1,\)"):
        compare(torch.ones(1), torch.ones(2))


def test_what_is_not_finite_must_be_the_same() -> None:
    odd = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert compare(odd, odd.clone()).max_abs_error == 0
    for index, value in ((0, -math.inf), (0, math.nan), (2, 0.0), (3, math.nan)):
        other = odd.clone()
        other[index] = value
        with pytest.raises(ParityError):
            compare(odd, other)


def test_zeros_and_nothing_compare() -> None:
    assert compare(torch.zeros(2), torch.zeros(2)).max_rel_error == 0
    assert compare(torch.zeros(0), torch.zeros(0)).max_rel_error == 0
    assert compare(torch.tensor([1 + 1j]), torch.tensor([1 + 1j])).max_rel_error == 0
    with pytest.raises(ParityError):
        compare(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_the_limit_may_be_set() -> None:
    one = torch.ones(3)
    assert compare(one, one * 1.005, limit=1e-2).max_rel_error > 1e-3
    with pytest.raises(ParityError, match=r"allowed: 1e-05"):
        compare(one, one * 1.0001, limit=1e-5)
