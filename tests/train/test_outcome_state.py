"""What a search found, through a checkpoint and back."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from mdp_fx.latency.network import Calibration
from mdp_fx.latency.timing import Timing
from mdp_fx.outcome import Outcome
from mdp_fx.passes.minlp import solve
from mdp_fx.report.facts import Prediction
from mdp_fx.train.outcome_state import outcome_of, outcome_state
from tests.passes.spaces import chain_space


@pytest.mark.parametrize("measured", [False, True])
def test_all_but_the_network_comes_back(measured: bool) -> None:
    space = replace(chain_space(), budgets={"latency": 12.0})
    selection, certificate = solve(space, dict.fromkeys(space.costs, 1000000000.0))
    timing = Timing(1.0, 1.2, 0.9, 0.1, 7) if measured else None
    table = Prediction("t", 8, 100.0, None, 5, 1, ("a",), None, ("pool",), 0.5)
    outcome = Outcome(
        module=cast(Any, None),
        kept={"a": [0, 2]},
        selection=selection,
        space=space,
        certificate=certificate,
        asked_s=1e-3,
        predicted_s=0.9e-3,
        dense_sum_s=2e-3,
        calibration=Calibration(1.1, 0.01) if measured else None,
        dense=timing,
        slim=timing,
        rounds=2,
        regions_measured=3,
        regions_cached=4,
        prediction=None if measured else table,
    )
    file = io.BytesIO()
    torch.save(outcome_state(outcome), file)
    file.seek(0)
    assert outcome_of(torch.load(file, weights_only=True)) == outcome
