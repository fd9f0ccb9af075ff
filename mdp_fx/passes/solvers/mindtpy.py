"""The papers' route: the non-convex model as it is written down, solved by Pyomo's MindtPy.

The products that `exact` linearises are left as products here: block * importance, and block * table over one or more
one-hots, which is bilinear to quadrilinear. MindtPy's outer approximation, started by the feasibility pump, treats that
model as if it were convex. It ends anywhere, often below the optimum, and what it calls a bound is none; so the bound
of its Outcome is the Lagrangian one. It takes no first selection: its answer is its own.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import shutil
import string
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo
from pyomo.common.errors import ApplicationError, PyomoException
from pyomo.common.fileutils import Executable
from pyomo.common.log import LoggingIntercept
from pyomo.common.tee import capture_output
from pyomo.common.tempfiles import TempfileManager
from pyomo.core.expr.numeric_expr import LinearExpression

from mdp_fx.errors import SolverError, first_line
from mdp_fx.passes.search_space import FloatArray, Selection
from mdp_fx.passes.solvers import Limits, Outcome
from mdp_fx.passes.solvers.dual import lagrangian_bound
from mdp_fx.passes.solvers.exact import linear, solve_exact
from mdp_fx.passes.solvers.local import local_search
from mdp_fx.passes.solvers.problem import DimAxis, Problem, SizeAxis, TableAxis, TableFactor
from mdp_fx.passes.solvers.units import SCALE

logger = logging.getLogger(__name__)

Vars = npt.NDArray[np.object_]

# Seconds: GLPK counts its time in milliseconds, of 32 bits.
LONGEST = 1e6

# What MindtPy and its solvers raise where they cannot go on.
FAILURES = (PyomoException, ApplicationError, ValueError, RuntimeError, subprocess.TimeoutExpired)


class BilinearModel:
    """The Pyomo model of a Problem with its products left in, and the way back from a solution to a Selection.

    A dimension's one-hot sums to one whether it is used or not; where its block is removed, any option does.
    """

    def __init__(self, problem: Problem, budgets: Mapping[str, float]) -> None:
        self.problem = problem
        self.model = pyo.ConcreteModel()
        self._rows = self.model.rows = pyo.ConstraintList()
        self._budgets = self.model.budgets = pyo.ConstraintList()
        self._sizes: dict[SizeAxis, Vars] = {}
        # What no row mentions keeps this value: all blocks alive, all dimensions dense.
        self._alive = {block: self._new(f"alive[{block}]", 1)[0] for block in problem.parents}
        self._options = {name: self._one_hot(f"keep[{name}]", len(sizes)) for name, sizes in problem.options.items()}
        for block, parent in problem.parents.items():
            if parent is not None:
                self._rows.add(self._alive[block] <= self._alive[parent])
        for names, parent in problem.exclusive:
            self._rows.add(sum(self._alive[b] for b in names) >= self._gate(parent))
        for name, blocks in problem.emptied_by.items():
            removed = sum(self._gate(problem.parents[b]) - self._alive[b] for b in blocks)
            self._rows.add(self._options[name][0] == removed)
        for cost, budget in budgets.items():
            # The last term: where nothing costs anything, an unmet budget must stay a row.
            body = pyo.quicksum([*self._cost(cost), 0.0 * self._new("nothing", 1)[0]])
            self._budgets.add(body <= budget - problem.constants[cost])
        self.model.objective = pyo.Objective(expr=self._importance(), sense=pyo.maximize)

    def select(self) -> Selection:
        """The selection that the variables' values say."""
        sizes = dict(self.problem.held)
        for name, options in self.problem.options.items():
            sizes[name] = options[int(np.argmax([pyo.value(x) for x in self._options[name]]))]
        return Selection(sizes, tuple(b for b, y in self._alive.items() if pyo.value(y) < 0.5))

    def within(self) -> bool:
        """Whether the variables' values keep to the budgets, up to what rounding does."""
        return all(pyo.value(row.body) <= pyo.value(row.upper) + 1e-5 * SCALE for row in self._budgets.values())

    def _new(self, name: str, count: int, *, binary: bool = True) -> Vars:
        domain = pyo.Binary if binary else pyo.NonNegativeReals
        # Solvers start with the last one: the dense size.
        variables = pyo.Var(range(count), domain=domain, bounds=(0, 1), initialize=lambda _, i: float(i == count - 1))
        self.model.add_component(f"{name}#{len(self.model.component_map())}", variables)
        return np.array(list(variables.values()), dtype=object)

    def _one_hot(self, name: str, count: int) -> Vars:
        variables = self._new(name, count)
        self._rows.add(weighted(np.ones(count), variables) == 1)
        return variables

    def _gate(self, block: str | None) -> Any:
        return 1.0 if block is None else self._alive[block]

    def _importance(self) -> Any:
        worth: dict[str | None, list[Any]] = {block: [value] for block, value in self.problem.importance_held.items()}
        for (dim, block), values in self.problem.importance.items():
            worth.setdefault(block, []).append(weighted(values, self._options[dim]))
        return pyo.quicksum(self._gate(block) * pyo.quicksum(parts) for block, parts in worth.items())

    def _cost(self, cost: str) -> list[Any]:
        parts = []
        for factor in self.problem.factors:
            if cost in factor.tables:
                table, weights = self._unfolded(factor, cost)
                parts.append(self._gate(factor.block) * contracted(table, weights))
        return parts

    def _unfolded(self, factor: TableFactor, cost: str) -> tuple[FloatArray, list[Vars]]:
        """A table over one-hots only: the positions of a joint size become the options of its dimensions."""
        table, weights, labels = factor.tables[cost], dict[TableAxis, Vars](), list[TableAxis]()
        for axis in factor.axes:
            if isinstance(axis, SizeAxis) and axis.kind == "joint":
                table = np.take(table, self._joint(axis), axis=len(labels))
                own: dict[TableAxis, Vars] = {DimAxis(dim): self._options[dim] for dim in axis.dims}
            else:
                own = {axis: self._options[axis.dim] if isinstance(axis, DimAxis) else self._size(axis)}
            labels += own
            weights |= own
        # A dimension of two axes leaves the table's diagonal.
        letters = dict(zip(weights, string.ascii_letters, strict=False))
        labelled = f"{''.join(letters[label] for label in labels)}->{''.join(letters.values())}"
        return np.einsum(labelled, table), list(weights.values())

    def _joint(self, axis: SizeAxis) -> npt.NDArray[np.intp]:
        """The position of every combination of the dimensions' options."""
        positions = np.empty([len(self.problem.options[d]) for d in axis.dims], dtype=np.intp)
        for index in np.ndindex(positions.shape):
            chosen = {d: self.problem.options[d][i] for d, i in zip(axis.dims, index, strict=True)}
            positions[index] = axis.positions.index(axis.size(chosen))
        return positions

    def _size(self, axis: SizeAxis) -> Vars:
        """One-hot over the positions, or weights of two neighbours that average to the size."""
        if axis not in self._sizes:
            count = len(axis.positions)
            if axis.kind == "exact":
                weights = self._one_hot("size", count)
            else:
                weights, segments = self._new("weight", count, binary=False), self._one_hot("segment", count - 1)
                low, high = (self._new(end, count - 1, binary=False) for end in ("low", "high"))
                for a, b, segment in zip(low, high, segments, strict=True):
                    self._rows.add(a + b == segment)
                for i, weight in enumerate(weights):
                    self._rows.add(weight == sum(low[i : i + 1]) + sum(high[max(i - 1, 0) : i]))
            self._rows.add(weighted(axis.positions, weights) == axis.constant + sum(self._terms(axis)))
            self._sizes[axis] = weights
        return self._sizes[axis]

    def _terms(self, axis: SizeAxis) -> Iterator[Any]:
        """The free part of a size, linear in new variables where dimensions multiply: rows stay linear."""
        for coefficient, dims in axis.terms:
            names = tuple(dict.fromkeys(dims))
            cells = self._options[names[0]]
            for name in names[1:]:
                cells = self._product(cells, self._options[name])
            shape = [len(self.problem.options[d]) for d in names]
            for cell, index in zip(cells, np.ndindex(*shape), strict=True):
                chosen = {d: self.problem.options[d][i] for d, i in zip(names, index, strict=True)}
                yield coefficient * math.prod(chosen[d] for d in dims) * cell

    def _product(self, one: Vars, other: Vars) -> Vars:
        cells = self._new("cells", len(one) * len(other), binary=False).reshape(len(one), len(other))
        for row, x in zip((*cells, *cells.T), (*one, *other), strict=True):
            self._rows.add(weighted(np.ones(len(row)), row) == x)
        return cells.ravel()


def weighted(values: Iterable[float], variables: Vars) -> LinearExpression:
    """sum of value * variable."""
    return linear((float(value), variable) for value, variable in zip(values, variables, strict=True))


def contracted(table: FloatArray, weights: Sequence[Vars]) -> Any:
    """sum of cell * weight of its position on every axis, nested: far fewer products than cells."""
    if not weights:
        return float(table)
    if len(weights) == 1:
        return weighted(table, weights[0])
    return pyo.quicksum(
        weight * contracted(part, weights[1:]) for weight, part in zip(weights[0], table, strict=True) if part.any()
    )


def solve_mindtpy(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> Outcome:
    """Look for a selection of much importance within the budgets, as the papers did; the bound is the Lagrangian one.

    Raises:
        SolverError: No IPOPT-compatible solver is installed, or MindtPy ends without a selection where there is one.
    """
    # The bound first: it takes little, and MindtPy the time that there is.
    bound = lagrangian_bound(problem, budgets, limits)
    selection, ended = run_mindtpy(problem, budgets, limits)
    if selection is None:
        # MindtPy's word that there is nothing is no proof: its cuts may have removed it.
        if local_search(problem, budgets, limits.deadline) is None:
            certain = solve_exact(problem, budgets, replace(limits, gap=1.0))
            if certain.selection is None:
                return certain
        advice = "there is one: allow more time or use another solver"
        raise SolverError(f"mindtpy found no selection within the budgets ({ended}); {advice}")
    return Outcome(selection, problem.worth(selection), bound, bound_from="lagrangian")


def mip_solver() -> str:
    """Pyomo's name of the solver of linear programs: GLPK where it is installed, else HiGHS."""
    return "glpk" if Executable("glpsol").path() else "appsi_highs"


def nlp_solver() -> str | None:
    """The executable of IPOPT where it is installed, else of an IPOPT-compatible solver, else None."""
    return Executable("ipopt").path() or _pounce()


def run_mindtpy(problem: Problem, budgets: Mapping[str, float], limits: Limits) -> tuple[Selection | None, str]:
    """What MindtPy finds within the budgets, if anything, and how it ended."""
    from pyomo.contrib.mindtpy.outer_approximation import MindtPy_OA_Solver

    mip = mip_solver()
    with _quiet(mip), _nlp_solver():
        built = BilinearModel(problem, budgets)
        algorithm = MindtPy_OA_Solver()
        _hold_to(algorithm, limits)
        try:
            answer = algorithm.solve(
                built.model,
                init_strategy="FP",
                mip_solver=mip,
                nlp_solver="ipopt",
                time_limit=max(math.ceil(min(limits.seconds_left(), LONGEST)), 1),
                relative_bound_tolerance=max(limits.gap, 1e-9),
                mip_solver_mipgap=min(max(limits.gap, 1e-9), 1e-4),
                threads=(limits.threads or 0) if mip == "appsi_highs" else 0,
            )
            ended = str(answer.solver.termination_condition or "gave no reason")
        except FAILURES as failure:
            ended = first_line(failure)
            if isinstance(failure, subprocess.TimeoutExpired) or limits.seconds_left() == 0:
                ended = "the time limit came first"
            if getattr(algorithm, "best_solution_found", None) is None:
                return None, ended
            algorithm.load_solution()
    logger.info("MindtPy with %s ended: %s", mip, ended)
    return (built.select() if ended != "noSolution" and built.within() else None), ended


def _hold_to(algorithm: Any, limits: Limits) -> None:
    """Make the solvers of non-linear programs end with the time limit: of themselves they may take twice as long."""
    initialise = algorithm.initialize_subsolvers

    def initialise_and_hold() -> None:
        initialise()
        for solver in (algorithm.nlp_opt, algorithm.feasibility_nlp_opt):
            solver.solve = _timed(solver.solve, limits)

    algorithm.initialize_subsolvers = initialise_and_hold


def _timed(solve: Any, limits: Limits) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Any:
        return solve(*args, timelimit=max(min(limits.seconds_left(), LONGEST), 0.1), **kwargs)

    return timed


@contextmanager
def _nlp_solver() -> Iterator[None]:
    """IPOPT where it is installed, else an IPOPT-compatible solver under its name."""
    ipopt, found = Executable("ipopt"), nlp_solver()
    if found is None:
        raise SolverError('the mindtpy solver needs IPOPT or its like: install it by pip install "mdp-fx[mindtpy]"')
    if ipopt.path():
        yield
        return
    ipopt.set_path(found)
    try:
        yield
    finally:
        ipopt.set_path(None)


def _pounce() -> str | None:
    """The executable in the wheel of pounce-solver; its command would start a Python interpreter each time."""
    package = importlib.util.find_spec("pounce")
    for folder in package.submodule_search_locations or () if package else ():
        if found := shutil.which("pounce", path=str(Path(folder) / "bin")):
            return found
    return shutil.which("pounce")


@contextmanager
def _quiet(mip: str) -> Iterator[None]:
    """What Pyomo and its solvers have to say goes nowhere, their files into a folder that is gone afterwards."""
    # HiGHS writes past Python. Pyomo's interface to it redirects the process's output as well.
    silence = capture_output(io.StringIO(), capture_fd=True) if mip == "appsi_highs" else nullcontext()
    before = TempfileManager.tempdir
    with (
        tempfile.TemporaryDirectory(prefix="mdp-fx-") as folder,
        LoggingIntercept(None, "pyomo", logging.CRITICAL + 1),
        silence,
    ):
        TempfileManager.tempdir = folder
        try:
            yield
        finally:
            TempfileManager.tempdir = before
