"""An independent check: the bilinear model, solved to proven optimality by SCIP.

It shares nothing with the solvers of mdp-fx but the search space: no merged tables, no reductions. Every product of two
decisions is a constraint of SCIP; of the plain model without the redundant sums it still has a gap of 51 % after two
minutes (resnet50 at 30 %).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyscipopt import Model, quicksum

from mdp_fx.passes.search_space import CostTerm, SearchSpace, Selection, evaluate, importance, normalise, violations

SCALE = 1e3
"""Budget and importance in SCIP's model: its tolerances of 1e-6 are then 1e-9 of either."""


def solve_scip(space: SearchSpace, budgets: Mapping[str, float], gap: float, time_limit: float) -> dict[str, Any]:
    """Status, objective, bound, gap and share of the budget of SCIP's answer, re-evaluated.

    Args:
        space: blocks without blocks inside, every axis of a table one dimension at its points, as the published MINLPs.
    """
    model = Model()
    model.hideOutput()
    model.setParam("limits/gap", gap)
    model.setParam("limits/time", time_limit)
    model.setParam("parallel/maxnthreads", 1)
    keep = {d.name: [model.addVar(vtype="B") for _ in space.options(d.name)] for d in space.dimensions}
    alive = {b.name: model.addVar(vtype="B") for b in space.blocks}
    for options in keep.values():
        model.addCons(quicksum(options) == 1)

    def product(one: Any, other: Any) -> Any:
        both = model.addVar(lb=0.0, ub=1.0)
        model.addCons(both == one * other)
        return both

    @cache
    def gated(dim: str, block: str | None) -> list[Any]:
        """block * one-hot; their sum says nothing new of binaries, but much of fractions."""
        if block is None:
            return keep[dim]
        inside = [product(alive[block], x) for x in keep[dim]]
        model.addCons(quicksum(inside) == alive[block])
        return inside

    def cost(term: CostTerm) -> Any:
        """block * sum of entry * one-hot * one-hot, with the sums of rows and columns as redundant rows."""
        sizes = [[axis.points.index(size) for size in space.options(axis.dims[0])] for axis in term.axes]
        hots = [gated(axis.dims[0], term.block) for axis in term.axes]
        if len(hots) == 1:
            return quicksum(float(term.table[p]) * x for p, x in zip(sizes[0], hots[0], strict=True))
        cells = [[product(x, z) for z in hots[1]] for x in hots[0]]
        for line, x in zip([*cells, *zip(*cells, strict=True)], [*hots[0], *hots[1]], strict=True):
            model.addCons(quicksum(line) == x)
        return quicksum(
            float(term.table[p, q]) * cell
            for p, row in zip(sizes[0], cells, strict=True)
            for q, cell in zip(sizes[1], row, strict=True)
        )

    for name, budget in budgets.items():
        used = quicksum(cost(t) * (SCALE / budget) for t in space.costs[name].terms)
        model.addCons(used <= SCALE * (1 - space.costs[name].constant / budget))
    scale = SCALE / importance(space, space.dense())
    sizes = {d.name: d.sizes for d in space.dimensions}
    worth = quicksum(
        scale * t.values[sizes[t.dim].index(size)] * x
        for t in space.importance
        for size, x in zip(space.options(t.dim), gated(t.dim, t.block), strict=True)
    )
    model.setObjective(worth, "maximize")
    model.optimize()

    found: dict[str, Any] = {"status": model.getStatus(), "bound": model.getDualbound() / scale}
    if model.getNSols() == 0:
        return {**found, "fault": "no solution found"}
    chosen = {
        name: space.options(name)[max(range(len(options)), key=lambda i, o=options: model.getVal(o[i]))]
        for name, options in keep.items()
    }
    gone = tuple(b.name for b in space.blocks if model.getVal(alive[b.name]) < 0.5)
    selection = normalise(space, Selection(chosen, gone))
    share = max(evaluate(space, selection)[name] / budget for name, budget in budgets.items())
    objective = importance(space, selection)
    if violations(space, selection) or share > 1 + 1e-6:
        return {**found, "fault": f"a selection at {share:.6f} of the budget"}
    return {**found, "objective": objective, "gap": max(found["bound"] / objective - 1, 0.0), "share": share}
