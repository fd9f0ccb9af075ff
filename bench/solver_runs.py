"""One solve of one search space by one solver, timed alike for all."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

from mdp_fx.errors import MdpFxError
from mdp_fx.passes import minlp
from mdp_fx.passes.search_space import SearchSpace

THREADS = 1
"""Threads of every solver that has any, so that other processes of a shared machine do not decide the result."""

GAP = 1e-4

SOLVERS: dict[str, tuple[str, float]] = {
    "exact": ("exact", GAP),
    "lagrangian": ("lagrangian", GAP),
    "lagrangian at 0.1 %": ("lagrangian", 1e-3),
    "mindtpy": ("mindtpy", GAP),
    "mindtpy at 0.1 %": ("mindtpy", 1e-3),
    "scip": ("scip", GAP),
}
"""Solver of the benchmark -> back end and gap asked."""

SLOW = ("mindtpy", "mindtpy at 0.1 %", "scip")
"""Run once."""


@dataclass(frozen=True)
class Run:
    """What one solver made of one instance.

    Attributes:
        seconds: the shortest of the repeats, from the search space in memory to the re-evaluated selection.
        objective: importance kept, re-evaluated; None where nothing was found.
        bound: proven by the solver itself, or by `bound_from`.
        gap: between the two, relative to the objective.
        share: latency of the selection over the budget, re-evaluated.
        fault: why there is nothing.
    """

    solver: str
    gap_asked: float
    seconds: float
    status: str
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    bound_from: str | None = None
    share: float | None = None
    fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data, without what there is not."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def run(solver: str, space: SearchSpace, budgets: Mapping[str, float], time_limit: float, repeats: int = 1) -> Run:
    """Solves, several times where the solver is fast, and keeps the shortest time."""
    runs = [_once(solver, space, budgets, time_limit) for _ in range(1 if solver in SLOW else repeats)]
    return min(runs, key=lambda one: one.seconds)


def _once(solver: str, space: SearchSpace, budgets: Mapping[str, float], time_limit: float) -> Run:
    back_end, gap = SOLVERS[solver]
    begin = time.perf_counter()
    if back_end == "scip":
        from bench.solver_scip import solve_scip

        found = solve_scip(space, budgets, gap, time_limit)
        return Run(solver, gap, time.perf_counter() - begin, **found)
    beside = [0.0]
    try:
        with _timed_bound(beside):
            _, proof = minlp.solve(space, budgets, solver=back_end, gap=gap, time_limit=time_limit, threads=THREADS)
    except MdpFxError as error:
        return Run(solver, gap, time.perf_counter() - begin - beside[0], "nothing found", fault=str(error))
    return Run(
        solver,
        gap,
        time.perf_counter() - begin - beside[0],
        proof.status,
        proof.objective,
        proof.bound,
        proof.gap,
        proof.bound_from,
        max(proof.costs[name] / budget for name, budget in budgets.items()),
    )


def _timed_bound(seconds: list[float]) -> Any:
    """What the bound beside MindtPy's answer takes is not MindtPy's."""
    from mdp_fx.passes.solvers import mindtpy

    bound = mindtpy.lagrangian_bound

    def timed(*args: Any) -> float:
        begin = time.perf_counter()
        value = bound(*args)
        seconds[0] += time.perf_counter() - begin
        return value

    return patch.object(mindtpy, "lagrangian_bound", timed)
