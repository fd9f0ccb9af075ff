"""The parts that tables are made of."""

from __future__ import annotations

import pytest

from mdp_fx.report import cells


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.6, "1.00k"), (1234, "1.23k"), (9996, "10.0k"), (123_456, "123k"), (4e9, "4.00G")],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert cells.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123 ms"), (0.9999, "1.00 ms"), (12.3456, "12.35 ms"), (999.999, "1.00 s"), (61234, "61.23 s")],
)
def test_times_fit_their_size(value: float, text: str) -> None:
    assert cells.millis(value) == text


def test_plurals() -> None:
    assert [cells.plural(n, "branch", "es") for n in (0, 1, 2)] == ["0 branches", "1 branch", "2 branches"]
