"""Solvers as interchangeable back ends: each takes a Problem and budgets and returns an Outcome.

A solver's module is imported only when it is asked for, so that naming solvers costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mdp_fx.errors import SolverError

if TYPE_CHECKING:
    from mdp_fx.passes.search_space import Selection
    from mdp_fx.passes.solvers.problem import Problem


@dataclass(frozen=True)
class Limits:
    """When a solver may stop, and what makes its run repeatable.

    Attributes:
        gap: Relative gap between bound and objective that is enough.
        deadline: When on the clock of `time.monotonic`, in seconds. All parts of a solve share it.
        threads: Threads; None leaves it to the solver.
        seed: Random seed. Same seed and threads: same answer, unless the time limit strikes.
    """

    gap: float
    deadline: float
    threads: int | None
    seed: int

    def seconds_left(self) -> float:
        """Time until the deadline, never negative."""
        return max(self.deadline - time.monotonic(), 0.0)


@dataclass(frozen=True)
class Outcome:
    """What a solver claims; nobody uses it before it is re-evaluated.

    Attributes:
        selection: The best selection found; None when the problem is infeasible.
        objective: Its importance.
        bound: No selection within the budgets is worth more than this.
        bound_from: Which solver proved the bound, None for the one that found the selection.
        solver: Which solver found the selection, None for the one that was asked.
    """

    selection: Selection | None
    objective: float
    bound: float
    bound_from: str | None = None
    solver: str | None = None


Solver = Callable[["Problem", Mapping[str, float], Limits], Outcome]

# Name -> (module, function); the function takes problem, budgets and limits.
SOLVERS: dict[str, tuple[str, str]] = {
    "auto": ("mdp_fx.passes.solvers.lagrangian", "solve_auto"),
    "exact": ("mdp_fx.passes.solvers.exact", "solve_exact"),
    "lagrangian": ("mdp_fx.passes.solvers.lagrangian", "solve_lagrangian"),
    "mindtpy": ("mdp_fx.passes.solvers.mindtpy", "solve_mindtpy"),
}


def get_solver(name: str) -> Solver:
    """The solver of that name, which may be asked in any units.

    Raises:
        SolverError: No solver has that name, or a package that it needs is not installed.
    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SolverError(f"unknown solver {name!r} (known: {', '.join(SOLVERS)}){hint}")
    module, function = SOLVERS[name]
    try:
        loaded: Any = importlib.import_module(module)
        units: Any = importlib.import_module("mdp_fx.passes.solvers.units")
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        raise SolverError(f"the solver {name!r} needs {missing}, which is not installed: pip install {missing}") from e
    return cast(Solver, units.in_units(getattr(loaded, function)))
