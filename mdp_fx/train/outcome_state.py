"""What a search found, as plain data for a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

from torch import fx

from mdp_fx.latency.network import Calibration
from mdp_fx.latency.timing import Timing
from mdp_fx.outcome import Outcome
from mdp_fx.passes.minlp import Certificate
from mdp_fx.passes.search_space import SearchSpace, Selection
from mdp_fx.report.facts import Prediction


def outcome_state(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome but its network."""
    return {
        "kept": {name: list(units) for name, units in outcome.kept.items()},
        "selection": asdict(outcome.selection),
        "space": json.dumps(outcome.space.to_json()),
        "certificate": asdict(outcome.certificate),
        "calibration": None if outcome.calibration is None else asdict(outcome.calibration),
        "dense": None if outcome.dense is None else asdict(outcome.dense),
        "slim": None if outcome.slim is None else asdict(outcome.slim),
        "prediction": None if outcome.prediction is None else asdict(outcome.prediction),
        **{name: getattr(outcome, name) for name in _NUMBERS},
    }


def outcome_of(state: dict[str, Any]) -> Outcome:
    """The outcome, whose network is None: whoever asks has another."""

    def made(kind: type[Any], name: str) -> Any:
        return None if state[name] is None else kind(**state[name])

    selection = state["selection"]
    return Outcome(
        module=cast("fx.GraphModule", None),
        kept=state["kept"],
        selection=Selection(selection["sizes"], tuple(selection["removed_blocks"])),
        space=SearchSpace.from_json(json.loads(state["space"])),
        certificate=Certificate(**state["certificate"]),
        calibration=made(Calibration, "calibration"),
        dense=made(Timing, "dense"),
        slim=made(Timing, "slim"),
        prediction=made(Prediction, "prediction"),
        **{name: state[name] for name in _NUMBERS},
    )


_NUMBERS = ("asked_s", "predicted_s", "dense_sum_s", "rounds", "regions_measured", "regions_cached")
