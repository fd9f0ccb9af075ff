"""The decision: what to keep so that most importance is left within the budgets, with a certificate.

The four methods of the MDP ablation are switches on one model (see `modelled_space`): `halp` and `mdlm` hold all
blocks, `halp` and `mgp` know a region's cost as a function of its output size alone. `uniform` decides nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

from mdp_fx.errors import BudgetError, InputError, SolverError, one_of
from mdp_fx.passes.arguments import check_limits
from mdp_fx.passes.search_space import (
    Rounding,
    SearchSpace,
    Selection,
    evaluate,
    importance,
    normalise,
    share_of,
    violations,
)
from mdp_fx.passes.solvers import Limits, Outcome, Solver, get_solver
from mdp_fx.passes.solvers.problem import (
    OUT_ONLY,
    REMOVED,
    Method,
    Problem,
    compile_problem,
    count_removed,
    modelled_space,
)
from mdp_fx.passes.solvers.tolerances import BUDGET_SLACK, CLAIM, PROVEN, closed
from mdp_fx.passes.solvers.uniform import solve_uniform

logger = logging.getLogger(__name__)

Status = Literal["optimal", "gap reached", "gap open", "time limit", "no bound"]

METHODS: tuple[str, ...] = (*get_args(Method), "uniform")

DEFAULT_GAP = 1e-3
DEFAULT_TIME_LIMIT = 60.0

# What a gap is relative to at least, of all importance.
LEAST_KEPT = 1e-12


@dataclass(frozen=True)
class Certificate:
    """What is known about a selection.

    Attributes:
        solver: Which back end found it; "auto" where nothing had to be looked for.
        method: Which model it was asked.
        status: "optimal", "gap reached" (the asked gap is proven), "time limit" (the gap proven by then is larger),
            "gap open" (it is larger though there was time: the solver stops where it likes), or "no bound".
        objective: Importance kept, re-evaluated.
        bound: No selection within the budgets keeps more, in the method's model. None when nothing is proven.
        gap: (bound - objective) / |objective|. None when nothing is proven.
        seconds: Wall time.
        costs: True cost per cost name, re-evaluated on the full tables.
        modelled_costs: Cost as the method's model sees it; this is what the budgets were held against.
        budgets: Budget per cost name.
        max_removed: Most blocks that were to be removed, None for any number.
        bound_from: Which solver proved the bound, None where that is the one that found the selection.
    """

    solver: str
    method: str
    status: Status
    objective: float
    bound: float | None
    gap: float | None
    seconds: float
    costs: dict[str, float]
    modelled_costs: dict[str, float]
    budgets: dict[str, float]
    max_removed: int | None = None
    bound_from: str | None = None

    @property
    def misjudged(self) -> tuple[str, ...]:
        """Costs that the method takes for something else than they are."""
        return tuple(
            name
            for name, modelled in self.modelled_costs.items()
            if not (_within(self.costs[name], modelled) and _within(modelled, self.costs[name]))
        )

    @property
    def exceeded(self) -> tuple[str, ...]:
        """Costs that are truly above their budget, which the method cannot know."""
        return tuple(name for name in self.budgets if not _within(self.costs[name], self.budgets[name]))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def solve(
    space: SearchSpace,
    budgets: Mapping[str, float],
    *,
    method: str = "mdp",
    solver: str = "auto",
    gap: float = DEFAULT_GAP,
    time_limit: float = DEFAULT_TIME_LIMIT,
    threads: int | None = None,
    seed: int = 0,
    max_removed: int | None = None,
) -> tuple[Selection, Certificate]:
    """Choose sizes and blocks of most importance within the budgets.

    Args:
        space: The search space.
        budgets: Largest allowed value per cost name, in the unit of the cost.
        method: "mdp", "mgp", "mdlm", "halp" or "uniform".
        solver: Back end, see `mdp_fx.passes.solvers`.
        gap: Relative gap between the proven bound and the objective that is good enough.
        time_limit: Seconds after which the best selection so far is taken, its true gap in the certificate.
        threads: Solver threads; None leaves it to the solver.
        seed: Solver's random seed.
        max_removed: Most blocks to remove, those inside of a removed block included; None for any number.

    Returns:
        The selection, re-evaluated and found within the budgets, and its certificate.

    Raises:
        InputError: Unknown method or cost, or a budget, gap, limit or number of blocks that is no such number.
        BudgetError: A budget cannot be met; the message states the smallest reachable value.
        SolverError: Unknown solver, no selection found in time, or an answer that does not survive re-evaluation.
    """
    begin = time.monotonic()
    check_limits(gap, time_limit, threads, seed, max_removed)
    _check_question(space, budgets, method, max_removed)
    if method == "uniform":
        run = _Run(space, space, dict(budgets), method, "uniform", gap, time_limit, begin, max_removed)
        result = solve_uniform(space, budgets)
        if result.selection is None:
            raise _unreachable(run, result.smallest)
        return _certify(run, result.selection, None)
    back_end = get_solver(solver)
    model = modelled_space(space, cast(Method, method))
    run = _Run(space, model, dict(budgets), method, solver, gap, time_limit, begin, max_removed)
    dense = model.dense()
    if run.allows(dense) and not violations(model, dense):
        # Importance never falls with size and is never negative: nothing beats keeping everything.
        return _certify(run, dense, run.whole)
    problem = compile_problem(model, budgets)
    if max_removed is not None:
        problem = count_removed(problem)
    limits = Limits(gap, begin + time_limit, threads, seed)
    selection, bound, outcome = _solve_within(run, problem, back_end, limits)
    return _certify(replace(run, solver=outcome.solver or solver), selection, bound, outcome.bound_from)


@dataclass(frozen=True)
class _Run:
    space: SearchSpace
    model: SearchSpace
    budgets: dict[str, float]
    method: str
    solver: str
    gap: float
    time_limit: float
    begin: float
    max_removed: int | None

    @cached_property
    def whole(self) -> float:
        """All importance there is to keep."""
        return importance(self.model, self.model.dense())

    @property
    def removals(self) -> dict[str, float]:
        """The budget of removed blocks, where there is one."""
        return {} if self.max_removed is None else {REMOVED: float(self.max_removed)}

    def costs(self, selection: Selection) -> dict[str, float]:
        """What a normalised selection spends, as the model sees it."""
        return {**evaluate(self.model, selection), REMOVED: float(len(selection.removed_blocks))}

    def allows(self, selection: Selection) -> bool:
        """Whether a normalised selection is within all budgets."""
        costs = self.costs(selection)
        return all(_within(costs[name], budget) for name, budget in (self.budgets | self.removals).items())


def _check_question(space: SearchSpace, budgets: Mapping[str, float], method: str, max_removed: int | None) -> None:
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; methods are {', '.join(METHODS)}")
    for name, budget in budgets.items():
        if name not in space.costs:
            raise InputError(f"budget for an unknown cost {name!r}{one_of(name, space.costs)}")
        if not math.isfinite(budget) or budget < 0:
            raise InputError(f"the {name} budget is {budget}; it must be a finite number, not negative")
    if max_removed is not None and REMOVED in space.costs:
        raise InputError(f"the cost {REMOVED!r} needs another name: removed blocks are counted under it")


def _within(cost: float, budget: float) -> bool:
    return cost <= budget * (1 + BUDGET_SLACK)


def _solve_within(
    run: _Run, problem: Problem, back_end: Solver, limits: Limits
) -> tuple[Selection, float | None, Outcome]:
    """The back end's selection, bound and own words; asked again with less where its tolerance overstepped."""
    budgets = run.budgets | run.removals
    asked, bound = dict(budgets), math.inf
    for attempt in range(3):
        outcome: Outcome = back_end(problem, asked, limits)
        if outcome.selection is None:
            if math.isinf(bound) and outcome.bound == -math.inf:
                raise _infeasible(run, problem, limits)
            raise SolverError(
                f"no selection found in {run.time_limit:g} s; allow more with --time-limit, or coarser sizes"
            )
        # A tighter budget cannot raise the bound, so the first one stays valid.
        bound = min(bound, outcome.bound) if math.isinf(bound) else bound
        if wrong := violations(run.model, outcome.selection):
            raise SolverError(f"{run.solver} returned an unusable selection: {'; '.join(wrong)}")
        selection = normalise(run.model, outcome.selection)
        costs = run.costs(selection)
        if run.allows(selection):
            claimed, kept = outcome.objective, importance(run.model, selection)
            if math.isfinite(claimed) and abs(claimed - kept) > CLAIM * run.whole:
                raise SolverError(f"{run.solver} claims an importance of {claimed:.9g}; re-evaluation gives {kept:.9g}")
            if outcome.bound_from is not None and math.isinf(bound):
                return selection, None, replace(outcome, bound_from=None)
            # A solver that ran out of time may know less than that nothing beats keeping everything.
            return selection, min(bound, run.whole), outcome
        over = {name: costs[name] / budget - 1 for name, budget in budgets.items() if budget > 0}
        if max(over.values(), default=math.inf) > CLAIM:
            break
        logger.debug("budgets overstepped by rounding: %s", over)
        # A step smaller than the solver's own tolerance would change nothing.
        step = 1e-8 * 10**attempt
        asked = {n: asked[n] * (1 - max(2 * over.get(n, 0.0), step * (over.get(n, 0.0) > 0))) for n in asked}
    raise SolverError(f"{run.solver} returned a selection of cost {costs} for budgets {budgets}")


def _infeasible(run: _Run, problem: Problem, limits: Limits) -> BudgetError:
    from mdp_fx.passes.solvers.smallest import smallest_cost

    smallest, proven = {}, True
    for name in run.budgets:
        outcome = smallest_cost(problem, name, limits, run.removals)
        # The dense selection is one of every space: no budget of removed blocks keeps it out.
        best = outcome.selection or run.model.dense()
        proven &= best is outcome.selection and outcome.bound <= outcome.objective + PROVEN * abs(outcome.objective)
        smallest[name] = evaluate(run.model, best)[name]
    return _unreachable(run, smallest, proven=proven)


def _unreachable(run: _Run, smallest: Mapping[str, float], *, proven: bool = True) -> BudgetError:
    whole = evaluate(run.space, run.space.unpruned())

    def shown(name: str, value: float, rounding: Rounding) -> str:
        return share_of(value, run.space.costs[name].unit, whole[name], rounding)

    removals = "" if run.max_removed is None else f" with at most {run.max_removed} blocks removed"
    simple = run.method in OUT_ONLY and any(run.space.costs[name].unit == "us" for name in run.budgets)
    tables = f", by the 1-D tables of {run.method}" if simple else ""
    known = "the smallest" if proven else f"the smallest found in {run.time_limit:g} s"
    for name, budget in run.budgets.items():
        if not _within(smallest[name], budget):
            asked, reach = shown(name, budget, math.floor), shown(name, smallest[name], math.ceil)
            message = f"the {name} budget of {asked} cannot be met{removals}: {known} is {reach}{tables}"
            return BudgetError(message, smallest)
    each = ", ".join(f"{name} {shown(name, smallest[name], math.ceil)}" for name in run.budgets)
    message = f"the budgets cannot be met together{removals}; {known} of each alone: {each}{tables}"
    return BudgetError(message, smallest)


def _certify(
    run: _Run, selection: Selection, bound: float | None, bound_from: str | None = None
) -> tuple[Selection, Certificate]:
    selection = normalise(run.space, selection)
    wrong, modelled = violations(run.space, selection), evaluate(run.model, selection)
    if wrong or not run.allows(selection):
        raise SolverError(f"{run.solver} returned an unusable selection: {'; '.join(wrong) or modelled}")
    objective, seconds = importance(run.space, selection), time.monotonic() - run.begin
    status: Status = "no bound"
    gap = None
    if bound is not None:
        bound = max(bound, objective)
        # Of nothing kept any gap would be infinite.
        gap = (bound - objective) / max(objective, LEAST_KEPT * run.whole) if bound > objective else 0.0
        late: Status = "time limit" if seconds >= run.time_limit else "gap open"
        status = "optimal" if gap <= PROVEN else "gap reached" if closed(objective, bound, run.gap) else late
    certificate = Certificate(
        solver=run.solver,
        method=run.method,
        status=status,
        objective=objective,
        bound=bound,
        gap=gap,
        seconds=seconds,
        costs=evaluate(run.space, selection),
        modelled_costs=modelled,
        budgets=run.budgets,
        max_removed=run.max_removed,
        bound_from=bound_from,
    )
    logger.info("%s (%s): %s, gap %s, %.2f s", run.solver, run.method, status, gap, certificate.seconds)
    return selection, certificate
