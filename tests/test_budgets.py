"""Budgets as users write them."""

from __future__ import annotations

import pytest

from mdp_fx.budgets import Budget, parse_budget
from mdp_fx.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "what", "budget"),
    [
        ("50%", "latency", Budget(share=0.5)),
        (0.5, "latency", Budget(share=0.5)),
        ("100%", "params", Budget(share=1.0)),
        ("12.5ms", "latency", Budget(amount=0.0125)),
        ("300 us", "latency", Budget(amount=3e-4)),
        ("4M", "params", Budget(amount=4e6)),
        ("1.5G", "macs", Budget(amount=1.5e9)),
        ("4000000", "params", Budget(amount=4e6)),
        ("20MiB", "memory", Budget(amount=20 * 2**20)),
        ("1.5 GB", "memory", Budget(amount=1.5e9)),
        ("4096", "memory", Budget(amount=4096)),
    ],
)
def test_reads(text: str | float, what: str, budget: Budget) -> None:
    found = parse_budget(text, what)
    assert found.share == budget.share
    assert found.amount == (None if budget.amount is None else pytest.approx(budget.amount))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0%", "latency"),
        ("101%", "latency"),
        (1.5, "macs"),
        ("12", "latency"),
        ("fast", "latency"),
        ("-3ms", "latency"),
        ("3ms", "params"),
        ("3M", "memory"),
        ("3MiB", "macs"),
        ("0ms", "latency"),
        ("", "latency"),
    ],
)
def test_refuses_with_an_example(text: str | float, what: str) -> None:
    with pytest.raises(BudgetError, match="write it as"):
        parse_budget(text, what)


def test_the_unit_of_a_cost_says_how_to_read_it() -> None:
    assert parse_budget("3us", "delay", "us").amount == pytest.approx(3e-6)
    with pytest.raises(BudgetError, match=r"cannot read the delay budget '3M': write it as 50% or 12\.5ms"):
        parse_budget("3M", "delay", "us")


def test_resolves() -> None:
    assert Budget(share=0.25).resolve(8.0) == 2.0
    assert Budget(amount=3.0).resolve(8.0) == 3.0
