"""The papers' route: its model, its limits, and what is said where it cannot go on."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyomo.environ as pyo
import pytest
from pyomo.common.fileutils import Executable
from pyomo.common.tempfiles import TempfileManager
from pyomo.contrib.mindtpy.outer_approximation import MindtPy_OA_Solver

from mdp_fx.errors import BudgetError, SolverError
from mdp_fx.passes.minlp import solve
from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate, importance
from mdp_fx.passes.solvers import Limits, mindtpy, problem
from mdp_fx.passes.solvers.highs import HighsModel
from mdp_fx.passes.solvers.mindtpy import BilinearModel, run_mindtpy, solve_mindtpy
from mdp_fx.passes.solvers.problem import compile_problem, count_removed
from tests.passes.spaces import (
    MINLP_DATA,
    chain_space,
    emptying_space,
    every_selection,
    random_space,
)

needs_nlp_solver = pytest.mark.skipif(
    not Executable("ipopt").path() and mindtpy._pounce() is None,
    reason='neither ipopt nor pounce is installed: pip install "mdp-fx[mindtpy]"',
)

LIMITS = Limits(gap=1e-3, deadline=math.inf, threads=1, seed=0)

# Further budgets than any selection needs: the rows are there, and hold nobody.
LOOSE = {"latency": 1e4, "params": 1e4}


def fix(built: BilinearModel, selection: Selection) -> None:
    """Holds the decision variables at a selection."""
    for name, options in built.problem.options.items():
        for variable, size in zip(built._options[name], options, strict=True):
            variable.fix(float(size == selection.sizes[name]))
    for block, variable in built._alive.items():
        variable.fix(float(block not in selection.removed_blocks))


def settle(built: BilinearModel, rng: np.random.Generator) -> None:
    """Gives the variables of sizes the only values that the linear rows leave them."""
    weights = [weight for variables in built._sizes.values() for weight in variables]
    built.model.budgets.deactivate()
    some = sum(rng.random() * weight for weight in weights)
    found = []
    for sense in (pyo.minimize, pyo.maximize):
        built.model.del_component("probe")
        built.model.probe = pyo.Objective(expr=some, sense=sense)
        compiled = HighsModel(built.model, replace(LIMITS, gap=0.0))
        assert compiled.solve(np.zeros(len(compiled.columns), dtype=bool)).objective is not None
        found.append([pyo.value(weight) for weight in weights])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("combinations", [1, 64])
@pytest.mark.parametrize("make", [random_space, emptying_space])
@pytest.mark.parametrize("seed", range(8))
def test_the_model_says_what_the_space_says(
    make: Callable[[int], SearchSpace], seed: int, combinations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "MAX_COMBINATIONS", combinations)
    space = make(seed)
    compiled = compile_problem(space, LOOSE)
    built = BilinearModel(compiled, LOOSE)
    built.model.objective.deactivate()
    rows = list(built.model.budgets.values())
    selections = list(every_selection(space))
    rng = np.random.default_rng(seed)
    kept, values = [], []
    for i in rng.choice(len(selections), min(5, len(selections)), replace=False):
        fix(built, selections[i])
        if built._sizes:
            settle(built, rng)
        kept.append(importance(space, selections[i]))
        values.append(pyo.value(built.model.objective))
        for row, (name, budget) in zip(rows, LOOSE.items(), strict=True):
            constant = compiled.constants[name]
            true = (evaluate(space, selections[i])[name] - constant) / (budget - constant)
            assert pyo.value(row.body) / pyo.value(row.upper) == pytest.approx(true, abs=1e-9)
        chosen = built.select()
        assert {d: chosen.sizes[d] for d in compiled.options} == {d: selections[i].sizes[d] for d in compiled.options}
        assert set(chosen.removed_blocks) == set(selections[i].removed_blocks)
    # In the model's unit.
    assert np.array(values) * max(kept) == pytest.approx(np.array(kept) * max(values))


def breaks(built: BilinearModel) -> bool:
    """Whether the held decisions break a row that says something of them alone."""
    return any(pyo.is_fixed(row.body) and row.slack() < -1e-9 for row in built.model.rows.values())


@pytest.mark.parametrize("make", [random_space, emptying_space])
@pytest.mark.parametrize("seed", range(20))
def test_the_model_allows_what_the_space_allows(make: Callable[[int], SearchSpace], seed: int) -> None:
    """Every member of the space, and no other set of removed blocks."""
    space = make(seed)
    compiled = compile_problem(space, LOOSE)
    built = BilinearModel(compiled, LOOSE)
    members = list(every_selection(space))
    known = [({d: m.sizes[d] for d in compiled.options}, set(m.removed_blocks)) for m in members]
    rng = np.random.default_rng(seed)
    for i in rng.choice(len(members), min(40, len(members)), replace=False):
        member = members[i]
        fix(built, member)
        assert not breaks(built), member
        for block in compiled.parents:
            other = Selection(member.sizes, tuple({block} ^ set(member.removed_blocks)))
            fix(built, other)
            if breaks(built):
                assert ({d: other.sizes[d] for d in compiled.options}, set(other.removed_blocks)) not in known
            else:
                assert set(other.removed_blocks) in [gone for _, gone in known]


@needs_nlp_solver
def test_chain_by_hand() -> None:
    # With 9 the best is a=1, b=2 (cost 1 + 2 + 4, importance 3 + 5).
    selection, certificate = solve(chain_space(), {"latency": 9.0}, solver="mindtpy")
    assert selection == Selection({"a": 1, "b": 2}, ())
    assert (certificate.objective, certificate.solver, certificate.bound_from) == (8.0, "mindtpy", "lagrangian")
    assert certificate.bound is not None
    assert certificate.bound >= 8.0


@needs_nlp_solver
def test_no_time_limit() -> None:
    selection, _ = solve(chain_space(), {"latency": 9.0}, solver="mindtpy", time_limit=math.inf)
    assert selection == Selection({"a": 1, "b": 2}, ())


@needs_nlp_solver
def test_without_glpk_highs_solves_the_linear_programs(capfd: pytest.CaptureFixture[str]) -> None:
    glpk = Executable("glpsol")
    glpk.disable()
    try:
        selection, _ = run_mindtpy(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS)
    finally:
        glpk.rehash()
    assert selection is not None
    assert importance(chain_space(), selection) == 8.0
    assert capfd.readouterr() == ("", "")


@needs_nlp_solver
@pytest.mark.parametrize("budget", [2.9, 0.0])
def test_infeasible(budget: float) -> None:
    outcome = solve_mindtpy(compile_problem(chain_space(), ["latency"]), {"latency": budget}, LIMITS)
    assert (outcome.selection, outcome.bound) == (None, -math.inf)
    with pytest.raises(BudgetError, match=r"cannot be met: the smallest is 0\.003 ms"):
        solve(chain_space(), {"latency": budget}, solver="mindtpy")


@needs_nlp_solver
def test_blocks_removed_are_counted() -> None:
    counted = count_removed(compile_problem(chain_space(), ["latency"]))
    outcome = solve_mindtpy(counted, {"latency": 4.5, problem.REMOVED: 0.0}, LIMITS)
    assert outcome.selection == Selection({"a": 1, "b": 1}, ())


@needs_nlp_solver
def test_an_answer_above_the_budget_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BilinearModel, "within", lambda _: False)
    with pytest.raises(SolverError, match=r"mindtpy found no selection within the budgets \(.+\); there is one: allow"):
        solve(chain_space(), {"latency": 9.0}, solver="mindtpy")


def test_values_above_the_budget_are_seen() -> None:
    budgets = {"latency": 9.0}
    built = BilinearModel(compile_problem(chain_space(), budgets), budgets)
    assert not built.within()
    fix(built, Selection({"a": 1, "b": 2}, ()))
    assert built.within()


@pytest.mark.parametrize("failure", [ValueError("status of\nthe solver"), RuntimeError("status of")])
def test_a_failure_within_mindtpy_is_one_line(failure: Exception) -> None:
    with (
        patch.object(mindtpy, "_pounce", lambda: sys.executable),
        patch.object(MindtPy_OA_Solver, "solve", side_effect=failure),
        pytest.raises(SolverError, match="found no selection within the budgets") as caught,
    ):
        solve_mindtpy(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS)
    assert "(status of)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stopped_solver_is_told_by_the_time_limit() -> None:
    """Not by the command line that was stopped."""
    with (
        patch.object(mindtpy, "_pounce", lambda: sys.executable),
        patch.object(
            MindtPy_OA_Solver, "solve", side_effect=subprocess.TimeoutExpired(["/a/folder/solver", "x.nl"], 2)
        ),
        pytest.raises(SolverError, match=r"\(the time limit came first\); there is one: allow more time"),
    ):
        solve_mindtpy(compile_problem(chain_space(), ["latency"]), {"latency": 9.0}, LIMITS)


def test_not_installed() -> None:
    with (
        patch.object(mindtpy, "_pounce", lambda: None),
        patch.object(mindtpy, "Executable", lambda _: Executable("no-such-solver")),
        pytest.raises(SolverError, match=r'needs IPOPT or its like: .* pip install "mdp-fx\[mindtpy\]"') as caught,
    ):
        solve(chain_space(), {"latency": 9.0}, solver="mindtpy")
    assert "\n" not in str(caught.value)


@needs_nlp_solver
def test_nothing_is_printed_and_nothing_left_behind(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = (TempfileManager.tempdir, logging.getLogger("pyomo").handlers[:])
    with caplog.at_level(logging.WARNING):
        solve(random_space(7), {"latency": 40.0}, solver="mindtpy")
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []
    assert (TempfileManager.tempdir, logging.getLogger("pyomo").handlers) == before
    assert Executable("ipopt").path() == shutil.which("ipopt")


@needs_nlp_solver
@pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")
def test_a_published_instance() -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    selection, certificate = solve(space, budgets, solver="mindtpy")
    # The optimum is 4648466; it stops short of it without knowing.
    assert 4.55e6 < certificate.objective <= 4648466
    assert certificate.bound is not None
    assert certificate.bound >= 4648466
    assert certificate.status == "gap open"
    assert evaluate(space, selection)["latency"] <= budgets["latency"]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_an_ipopt_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = tmp_path / "ipopt"
    stuck.write_text('#!/bin/sh\n[ "$1" = -v ] && echo Ipopt 3.14.0 && exit\nexec sleep 60\n', encoding="utf-8")
    stuck.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    ipopt = Executable("ipopt")
    ipopt.rehash()
    begin = time.monotonic()
    try:
        with pytest.raises(SolverError, match="the time limit came first"):
            solve(chain_space(), {"latency": 9.0}, solver="mindtpy", time_limit=1.0)
    finally:
        monkeypatch.undo()
        ipopt.rehash()
    assert time.monotonic() - begin < 20


@needs_nlp_solver
@pytest.mark.skipif(not MINLP_DATA.is_dir(), reason="../shared/data/minlp is not there")
def test_time_limit() -> None:
    space = SearchSpace.load(MINLP_DATA / "resnet50_titan_v.json")
    # Of the model of mgp GLPK does not find its way out within minutes.
    model = problem.modelled_space(space, "mgp")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    begin = time.monotonic()
    run_mindtpy(compile_problem(model, budgets), budgets, replace(LIMITS, deadline=begin + 2.0))
    assert time.monotonic() - begin < 20.0
