"""What a run is warned of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mdp_fx import whole_network
from mdp_fx.budgets import Budget
from mdp_fx.latency import LatencyTable
from mdp_fx.outcome import Outcome
from mdp_fx.report.facts import GroupRow
from mdp_fx.run_report import _low, prune_report
from tests.latency.fakes import steady
from tests.work_target import Analysed, WorkTarget, analysed, compare_fakes, search

__all__ = ["analysed"]  # a fixture


@pytest.fixture
def outcome(analysed: Analysed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outcome]:
    """A network pruned to 60 %."""
    monkeypatch.setattr(whole_network, "time_networks", compare_fakes)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        yield search(analysed, WorkTarget(), table).run(Budget(share=0.6), {})


def warned(outcome: Outcome, analysed: Analysed) -> str:
    report = prune_report(
        *("net", analysed[0], outcome, WorkTarget()),
        importance="l1",
        batch=1,
        has_data=True,
        pretrained=True,
        seconds={},
    )
    assert report.latency.disturbed == (outcome.slim.disturbed if outcome.slim is not None else None)
    return "\n".join(report.warnings)


def test_a_run_as_asked_is_not_warned_of(outcome: Outcome, analysed: Analysed) -> None:
    found = warned(outcome, analysed)
    assert not any(word in found for word in ("budget", "predicted", "processes"))


def test_all_groups_of_which_little_is_left_are_one_warning() -> None:
    def rows(*after: int) -> list[GroupRow]:
        return [GroupRow(f"g{number}", 100, size, ()) for number, size in enumerate(after)]

    assert list(_low(rows(100, 20, 0))) == []
    assert list(_low(rows(100, 19))) == ["g1 keeps 19 of 100 channels: accuracy may collapse there"]
    assert list(_low(rows(9, 50, 1, 12, 8, 19))) == [
        "g2 keeps 1 of 100 channels, g4 keeps 8 of 100 channels, g0 keeps 9 of 100 channels, 2 more below 20 %: "
        "accuracy may collapse there"
    ]


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.39, "the measured latency is 61 % below the budget after 2 rounds: more could be kept"),
        (1.2, "the measured latency is 20 % above the budget after 2 rounds"),
    ],
)
def test_a_budget_that_was_missed_is(ratio: float, message: str, outcome: Outcome, analysed: Analysed) -> None:
    assert outcome.asked_s is not None
    missed = replace(outcome, slim=steady(ratio * outcome.asked_s), rounds=2)
    found = warned(missed, analysed)
    assert message in found
    assert "the predicted latency is " in found


def test_a_busy_machine_is(outcome: Outcome, analysed: Analysed) -> None:
    assert outcome.slim is not None
    busy = replace(outcome, slim=replace(outcome.slim, disturbed=0.95))
    assert "the processor was shared or slowed down in 95 % of the timed runs: run it on a quiet machine" in warned(
        busy, analysed
    )
