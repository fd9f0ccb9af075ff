"""A linear mixed-integer Pyomo model handed to HiGHS, relaxed or restricted, and its answer written back.

Pyomo's own HiGHS interfaces redirect the process's stdout while solving (another thread's progress bar is lost), take
either no first solution or no thread count, and compile the model anew for every solve. So the model's standard form
is compiled once by Pyomo and passed to highspy here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo
from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler

from mdp_fx.errors import SolverError
from mdp_fx.passes.solvers import Limits

# HiGHS has this many seeds.
MOST_SEEDS = 2**31


@dataclass(frozen=True)
class Relaxation:
    """The linear relaxation: its optimum, and by how much setting each column to one worsens it (never negative)."""

    bound: float
    penalties: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """The end of a mixed-integer solve; `objective` is None when no solution was found."""

    objective: float | None
    bound: float
    proven_infeasible: bool


class HighsModel:
    """A Pyomo model with one objective, compiled."""

    def __init__(self, model: Any, limits: Limits) -> None:
        form = LinearStandardFormCompiler().write(model, mixed_form=True, set_sense=None)
        self.columns: list[Any] = list(form.columns)
        self.maximise = form.objectives[0].sense == pyo.maximize
        self._lp = _to_lp(form, self.maximise)
        self._integrality = [
            highspy.HighsVarType.kInteger if v.is_integer() else highspy.HighsVarType.kContinuous for v in form.columns
        ]
        self._upper = np.array([v.ub for v in form.columns], dtype=np.float64)
        self._limits = limits

    def relax(self) -> Relaxation | None:
        """Solve the linear relaxation; None when that does not end with an optimum (infeasible, out of time)."""
        self._lp.integrality_ = []
        self._lp.col_upper_ = self._upper
        highs = self._run(None)
        if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        duals = np.array(highs.getSolution().col_dual)
        worse = -duals if self.maximise else duals
        return Relaxation(highs.getInfo().objective_function_value, np.maximum(worse, 0.0))

    def solve(self, dropped: npt.NDArray[np.bool_], start: Mapping[int, float] | None = None) -> Answer:
        """Solve with the dropped columns held at zero; the variables get the solution's values.

        Args:
            dropped: Mask over `columns`.
            start: Column index -> value in a first solution. HiGHS finds the values of the other columns itself.
        """
        if not self.columns:
            # HiGHS calls a model without columns neither optimal nor infeasible. Rows of nothing hold.
            return Answer(self._lp.offset_, self._lp.offset_, False)
        self._lp.integrality_ = self._integrality
        self._lp.col_upper_ = np.where(dropped, 0.0, self._upper)
        highs = self._run(start)
        status, ends, info = highs.getModelStatus(), highspy.HighsModelStatus, highs.getInfo()
        if status not in (ends.kOptimal, ends.kTimeLimit, ends.kInfeasible):
            raise SolverError(f"HiGHS ended with status {highs.modelStatusToString(status)!r}")
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        if found:
            for variable, value in zip(self.columns, highs.getSolution().col_value, strict=True):
                variable.set_value(value, skip_validation=True)
        bound = info.mip_dual_bound
        if found and status == ends.kOptimal and not math.isfinite(bound):
            # Where presolve leaves nothing but the first solution, HiGHS says that it is optimal and names no bound.
            bound = info.objective_function_value
        return Answer(info.objective_function_value if found else None, bound, status == ends.kInfeasible)

    def _run(self, start: Mapping[int, float] | None) -> Any:
        highs = highspy.Highs()
        options = {
            "output_flag": False,
            # Of all that is within the gap HiGHS takes what it meets first; a finer one makes that nearly the best.
            "mip_rel_gap": self._limits.gap / 10,
            "mip_abs_gap": 0.0,
            "time_limit": self._limits.seconds_left(),
            "random_seed": self._limits.seed % MOST_SEEDS,
            **({} if self._limits.threads is None else {"threads": self._limits.threads}),
        }
        if self._limits.threads is not None:
            # The scheduler of HiGHS is global: a thread count other than its first one is refused without a reset.
            highspy.Highs.resetGlobalScheduler(True)
        for name, value in options.items():
            if highs.setOptionValue(name, value) != highspy.HighsStatus.kOk:
                raise SolverError(f"HiGHS does not take {value!r} for its option {name}")
        highs.passModel(self._lp)
        if start is not None:
            highs.setSolution(len(start), np.array([*start], dtype=np.int32), np.array([*start.values()]))
        highs.HandleKeyboardInterrupt = True
        highs.run()
        return highs


def _to_lp(form: Any, maximise: bool) -> Any:
    matrix = form.A.tocsc()
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = matrix.shape
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = matrix.indptr
    lp.a_matrix_.index_ = matrix.indices
    lp.a_matrix_.value_ = matrix.data
    lp.col_cost_ = np.asarray(form.c.todense(), dtype=np.float64).ravel()
    lp.offset_ = float(form.c_offset[0])
    lp.col_lower_ = np.array([v.lb for v in form.columns], dtype=np.float64)
    kinds, rhs = np.array([row.bound_type for row in form.rows]), np.asarray(form.rhs, dtype=np.float64)
    lp.row_lower_ = np.where(kinds <= 0, rhs, -highspy.kHighsInf)
    lp.row_upper_ = np.where(kinds >= 0, rhs, highspy.kHighsInf)
    lp.sense_ = highspy.ObjSense.kMaximize if maximise else highspy.ObjSense.kMinimize
    return lp
