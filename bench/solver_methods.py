"""What the four methods keep at equal true latency, on the tables of a Titan V."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.solver_runs import GAP, THREADS
from mdp_fx.errors import BudgetError
from mdp_fx.passes import minlp
from mdp_fx.passes.minlp import Certificate
from mdp_fx.passes.search_space import SearchSpace, evaluate
from mdp_fx.passes.solvers.problem import OUT_ONLY, modelled_space

METHODS = ("halp", "mgp", "mdlm", "mdp")

SHARES = (0.3, 0.2, 0.15)

BATCH = 256

STEPS = 300
"""Budgets tried in the model of a method that does not see the true latency."""

FINER = 40
"""Budgets tried between two of them."""


class Method:
    """A method and the selections that its own model offers."""

    def __init__(self, space: SearchSpace, name: str, solver: str) -> None:
        self.space = space
        self.name = name
        self.solver = solver
        self.top = evaluate(modelled_space(space, name), space.dense())["latency"]
        self.offers: dict[float, Certificate | None] = {}

    def offer(self, budget: float) -> Certificate | None:
        """What it chooses within a budget of its model, None where that cannot be met."""
        # The tables hold whole microseconds: a half is never within a solver's tolerance of a selection's latency.
        budget = math.floor(budget) + 0.5
        if budget not in self.offers:
            options = {"method": self.name, "solver": self.solver, "gap": GAP, "threads": THREADS, "time_limit": 120}
            try:
                self.offers[budget] = minlp.solve(self.space, {"latency": budget}, **options)[1]
            except BudgetError:
                self.offers[budget] = None
        return self.offers[budget]

    def within(self, latency: float) -> Certificate | None:
        """The selection of most importance whose true latency is within `latency`, None where it offers none.

        The importance rises with the budget in its model, the true latency does not always: the largest budget counts
        whose selection is fast enough.
        """
        if self.name not in OUT_ONLY:
            return self.offer(latency)
        step = self.top / STEPS
        for i in range(STEPS, 0, -1):
            if self._fits(i * step, latency):
                finer = (i * step + j * step / FINER for j in range(FINER - 1, -1, -1))
                return self.offer(next(budget for budget in finer if self._fits(budget, latency)))
        return None

    def _fits(self, budget: float, latency: float) -> bool:
        found = self.offer(budget)
        return found is not None and found.costs["latency"] <= latency


def compare(space: SearchSpace, network: str, solver: str) -> list[dict[str, Any]]:
    """One row for each method and share of the dense latency, and whether the paper's order holds."""
    dense = evaluate(space, space.dense())["latency"]
    rows: list[dict[str, Any]] = []
    methods = [Method(space, name, solver) for name in METHODS]
    for share in SHARES:
        kept: dict[str, float] = {}
        for method in methods:
            row: dict[str, Any] = {"network": network, "share": share, "method": method.name}
            found = method.within(share * dense)
            if found is None:
                row["fault"] = "nothing that its model offers is as fast"
            else:
                true = found.costs["latency"]
                kept[method.name] = found.objective
                row |= {
                    "true_latency_us": true,
                    "true_share": true / dense,
                    "images_per_s": BATCH / true * 1e6,
                    "importance": found.objective,
                    "modelled_budget_us": found.budgets["latency"],
                    "gap": found.gap,
                }
            rows.append(row)
            print(row, flush=True)
        rows.append({"network": network, "share": share, "order_of_the_paper_holds": in_order(kept)})
    return rows


def in_order(kept: dict[str, float]) -> bool:
    """Whether halp < mgp, mdlm < mdp; a method that offers nothing keeps nothing."""
    halp, mgp, mdlm, mdp = (kept.get(method, -1.0) for method in METHODS)
    return halp < min(mgp, mdlm) and max(mgp, mdlm) < mdp
