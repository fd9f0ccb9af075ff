"""The decision on a search space alone, without a network: `solve`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mdp_fx.budgets import Budget, parse_budget
from mdp_fx.errors import InputError, one_of
from mdp_fx.passes import minlp
from mdp_fx.passes.arguments import check_is_space
from mdp_fx.passes.minlp import Certificate
from mdp_fx.passes.restrict import named_restrictions, restrict
from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate, importance

DEFAULT_GAP = 1e-4
"""Relative gap to prove; a saved space is solved at leisure."""


@dataclass(frozen=True)
class Decision:
    """What `solve` returns.

    Attributes:
        space: the search space it was asked, without the restrictions.
        selection: what is kept, re-evaluated: a size of each dimension, and the removed blocks.
        certificate: what is proven of it.
    """

    space: SearchSpace
    selection: Selection
    certificate: Certificate

    def to_json(self) -> dict[str, Any]:
        """JSON data: the certificate, sizes as `dims`, and "latency" in microseconds where there is such a cost."""
        latency = self.space.costs.get("latency")
        timed = latency is not None and latency.unit == "us"
        return {
            **self.certificate.to_json(),
            "latency_us": self.certificate.costs["latency"] if timed else None,
            "budget_us": self.certificate.budgets.get("latency") if timed else None,
            "dims": dict(self.selection.sizes),
            "removed_blocks": list(self.selection.removed_blocks),
            "dense_objective": importance(self.space, self.space.unpruned()),
            "dense_costs": evaluate(self.space, self.space.unpruned()),
            "units": {name: model.unit for name, model in self.space.costs.items()},
        }


def solve(
    space: SearchSpace,
    budgets: Mapping[str, str | float | Budget] | None = None,
    *,
    method: str = "mdp",
    solver: str = "auto",
    gap: float = DEFAULT_GAP,
    time_limit: float = minlp.DEFAULT_TIME_LIMIT,
    threads: int | None = None,
    seed: int = 0,
    min_keep: float | None = None,
    fixed: Mapping[str, int] | None = None,
    keep_blocks: Collection[str] = (),
    max_removed: int | None = None,
) -> Decision:
    """Chooses sizes and blocks of most importance within budgets.

    Args:
        space: from a file (`SearchSpace.load`) or a pruning run.
        budgets: by cost name: "30%" of the dense network, "12.5ms", "4M", "20MiB", or a share as a number. They take
            the place of those recorded in the space, cost by cost.
        method: "mdp", "mgp", "mdlm", "halp" or "uniform".
        solver: back end, see `mdp_fx.passes.solvers`.
        gap: relative optimality gap the solver may stop at.
        time_limit: seconds after which the best selection so far is taken; the status says so.
        threads: of the solver; None leaves it to the solver.
        seed: of the solver.
        min_keep: share of its dense size that every dimension keeps at least.
        fixed: dimensions held at a size.
        keep_blocks: blocks that must stay.
        max_removed: most blocks to remove, those inside of a removed block included.

    Raises:
        InputError: no budget at all, an unknown name, or an argument of another type.
        BudgetError: a budget makes no sense or cannot be met; the message states the smallest reachable value.
        SolverError: the solver is unknown or not installed, or found nothing in time.
    """
    check_is_space(space)
    limits = {**space.budgets, **_limits(space, {} if budgets is None else budgets)}
    if not limits:
        raise InputError("the search space records no budget: give one, such as --budget 30%")
    narrow = restrict(space, min_keep=min_keep, fixed=fixed, keep_blocks=keep_blocks)
    with named_restrictions(min_keep, fixed, keep_blocks):
        selection, certificate = minlp.solve(
            narrow,
            limits,
            method=method,
            solver=solver,
            gap=gap,
            time_limit=time_limit,
            threads=threads,
            seed=seed,
            max_removed=max_removed,
        )
    return Decision(space, selection, certificate)


def _limits(space: SearchSpace, budgets: Mapping[str, str | float | Budget]) -> dict[str, float]:
    """Budgets in the units of the costs."""
    if not isinstance(budgets, Mapping):
        raise InputError(f"budgets are {budgets!r}; they must be by cost, such as {{'latency': '30%'}}")
    dense, limits = evaluate(space, space.unpruned()), {}
    for name, budget in budgets.items():
        if name not in space.costs:
            raise InputError(f"budget for an unknown cost {name!r}{one_of(name, space.costs)}")
        unit = space.costs[name].unit
        scale = 1e6 if unit == "us" else 1.0  # Budgets of time are in seconds.
        limits[name] = scale * parse_budget(budget, name, unit).resolve(dense[name] / scale)
    return limits
