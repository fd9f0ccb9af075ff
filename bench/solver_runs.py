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

import numpy as np

from mdp_fx.errors import MdpFxError
from mdp_fx.passes import minlp
from mdp_fx.passes.search_space import (
    CostAxis,
    CostModel,
    CostTerm,
    Dimension,
    ImportanceTerm,
    SearchSpace,
    SizeTerm,
)
from mdp_fx.passes.solvers import mindtpy

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

REPEATS = 3
"""Of every solver alike; the median counts."""


@dataclass(frozen=True)
class Run:
    """What one solver made of one instance.

    Attributes:
        seconds: the median of the repeats, from the search space in memory to the re-evaluated selection.
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


def run(solver: str, space: SearchSpace, budgets: Mapping[str, float], time_limit: float) -> Run:
    """Solves REPEATS times and keeps the run of the median time."""
    runs = [_once(solver, space, budgets, time_limit) for _ in range(REPEATS)]
    return sorted(runs, key=lambda one: one.seconds)[REPEATS // 2]


def warm_up(solver: str) -> None:
    """Has a solver decide something small, so that no measurement pays for its imports."""
    sizes = (1, 2)
    table = CostTerm("layer", None, (CostAxis("out", 0, (SizeTerm(1, ("d",)),), sizes),), np.array([1.0, 3.0]))
    worth = (ImportanceTerm("layer", "d", None, (1.0, 2.0)),)
    space = SearchSpace((Dimension("d", sizes),), (), (), worth, {"latency": CostModel("us", 0.0, (table,))})
    _once(solver, space, {"latency": 2.0}, 60.0)


def mindtpy_back_ends() -> dict[str, str]:
    """Which solvers MindtPy has on this machine for its linear and its non-linear programs."""
    return {"mip": mindtpy.mip_solver(), "nlp": Path(mindtpy.nlp_solver() or "none").name}


def _once(solver: str, space: SearchSpace, budgets: Mapping[str, float], time_limit: float) -> Run:
    back_end, gap = SOLVERS[solver]
    begin = time.perf_counter()
    if back_end == "scip":
        from bench.solver_scip import solve_scip

        found = solve_scip(space, budgets, gap, time_limit)
        return Run(solver, gap, time.perf_counter() - begin, **found)
    beside = [0.0]
    try:
        with timed_bound(beside):
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


def timed_bound(seconds: list[float]) -> Any:
    """What the bound beside MindtPy's answer takes is not MindtPy's."""
    bound = mindtpy.lagrangian_bound

    def timed(*args: Any) -> float:
        begin = time.perf_counter()
        value = bound(*args)
        seconds[0] += time.perf_counter() - begin
        return value

    return patch.object(mindtpy, "lagrangian_bound", timed)
