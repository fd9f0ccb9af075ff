"""The baseline that decides nothing: one ratio everywhere, no block removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mdp_fx.passes.search_space import SearchSpace, Selection, evaluate
from mdp_fx.passes.space_blocks import emptied_by


@dataclass(frozen=True)
class UniformResult:
    """The selection of the largest ratio within the budgets, None if there is none, and the smallest costs."""

    selection: Selection | None
    smallest: dict[str, float]


def at_ratio(space: SearchSpace, ratio: float) -> Selection:
    """Every dimension at its largest size of at most `ratio` of the dense size, or else at its smallest one."""
    sizes, emptied = {}, emptied_by(space.blocks)
    for dim in space.dimensions:
        options = space.options(dim.name)[dim.name in emptied :]
        sizes[dim.name] = max((s for s in options if s <= ratio * dim.dense), default=options[0])
    return Selection(sizes)


def solve_uniform(space: SearchSpace, budgets: Mapping[str, float]) -> UniformResult:
    """The largest ratio at which the true costs meet all budgets.

    All ratios at which anything changes are tried from the top: measured tables are not monotone, so a bisection
    could stop below a larger ratio that also fits.
    """
    ratios = {size / dim.dense for dim in space.dimensions for size in space.options(dim.name) if dim.dense}
    smallest: dict[str, float] = {}
    for ratio in sorted(ratios | {1.0}, reverse=True):
        # The division above may round up what the product then misses by one bit.
        selection = at_ratio(space, ratio * (1 + 1e-12))
        costs = evaluate(space, selection)
        smallest = {name: min(cost, smallest.get(name, cost)) for name, cost in costs.items()}
        if all(costs[name] <= budget for name, budget in budgets.items()):
            return UniformResult(selection, smallest)
    return UniformResult(None, smallest)
