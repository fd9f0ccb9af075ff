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
from mdp_fx.run_report import prune_report
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
