"""The decision on a search space alone: budgets as users write them, restrictions, and what is handed back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import mdp_fx
from mdp_fx.budgets import Budget
from mdp_fx.errors import BudgetError, InputError
from mdp_fx.passes.search_space import CostModel, SearchSpace, Selection
from tests.passes.spaces import branch_space, chain_space


def several_costs() -> SearchSpace:
    """The chain (dense: 15 us) with the same tables in other units."""
    terms = chain_space().costs["latency"].terms
    units = {"latency": "us", "params": "params", "memory": "bytes", "energy": "macs"}
    costs = {name: CostModel(unit, 1.0, terms) for name, unit in units.items()}  # type: ignore[arg-type]
    return replace(chain_space(), costs=costs)


@pytest.mark.parametrize(
    ("name", "budget", "limit"),
    [
        ("latency", "60%", 9.0),
        ("latency", 0.6, 9.0),
        ("latency", Budget(share=0.6), 9.0),
        ("latency", "9us", 9.0),
        ("latency", "0.009ms", 9.0),
        ("params", "9", 9.0),
        ("params", 9, 9.0),
        ("memory", "9B", 9.0),
        ("memory", "60%", 9.0),
        ("energy", "9", 9.0),
    ],
)
def test_budgets_are_in_the_unit_of_their_cost(name: str, budget: Any, limit: float) -> None:
    decision = mdp_fx.solve(several_costs(), {name: budget}, solver="exact")
    assert decision.certificate.budgets == {name: pytest.approx(limit)}
    assert decision.selection == Selection({"a": 1, "b": 2}, ())


@pytest.mark.parametrize(
    ("budgets", "error", "message"),
    [
        ({"latency": "9"}, BudgetError, "cannot read the latency budget '9': write it as 50% or 12.5ms"),
        ({"memory": "9ms"}, BudgetError, "cannot read the memory budget '9ms': write it as 60% or 20MiB"),
        ({"energy": "9us"}, BudgetError, "cannot read the energy budget '9us': write it as 60% or 4M"),
        ({"energie": "60%"}, InputError, "unknown cost 'energie'; did you mean 'energy'?"),
        ({"latency": "10%"}, BudgetError, r"latency budget of 0.0015 ms \(10.0% of dense\) cannot be met"),
        ({}, InputError, "the search space records no budget: give one, such as --budget 30%"),
    ],
)
def test_budgets_that_cannot_be_used(budgets: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mdp_fx.solve(several_costs(), budgets, solver="exact")


def test_the_cost_that_cannot_be_met_is_named_beside_one_with_nothing_to_decide() -> None:
    held = SearchSpace((), (), (), (), {"latency": CostModel("us", 9.0, ()), "params": CostModel("params", 0.0, ())})
    with pytest.raises(BudgetError, match=r"latency budget of 0.007 ms .* cannot be met: the smallest is 0.009 ms"):
        mdp_fx.solve(held, {"params": "1", "latency": "7us"})


def test_recorded_budgets_hold_until_others_take_their_place() -> None:
    space = replace(several_costs(), budgets={"latency": 9.0, "params": 14.0})
    assert mdp_fx.solve(space).certificate.budgets == {"latency": 9.0, "params": 14.0}
    decision = mdp_fx.solve(space, {"latency": "5us", "memory": "14B"})
    assert decision.certificate.budgets == {"latency": pytest.approx(5.0), "params": 14.0, "memory": 14.0}
    assert decision.certificate.costs["latency"] <= 5.0


def test_shares_are_of_the_whole_network_whatever_is_held() -> None:
    decision = mdp_fx.solve(chain_space(), {"latency": "60%"}, fixed={"a": 1})
    assert decision.certificate.budgets == {"latency": pytest.approx(9.0)}
    assert decision.selection.sizes == {"a": 1, "b": 2}


def test_restrictions_reach_the_solver() -> None:
    space, budget = chain_space(), {"latency": "3.5us"}
    assert mdp_fx.solve(space, budget).selection.removed_blocks == ("block",)
    for restrictions in ({"keep_blocks": ["block"]}, {"max_removed": 0}, {"min_keep": 0.6}, {"fixed": {"a": 2}}):
        with pytest.raises(BudgetError, match="cannot be met"):
            mdp_fx.solve(space, budget, **restrictions)  # type: ignore[arg-type]
    assert mdp_fx.solve(branch_space(), {"latency": "15us"}, min_keep=1.0).selection.sizes == {"a": 0, "b": 4}


@pytest.mark.parametrize(
    ("restrictions", "said"),
    [
        ({"keep_blocks": ["block"]}, ", where block stays"),
        ({"min_keep": 0.6, "fixed": {"a": 2}}, ", where every dimension keeps 60 %, a is held at 2"),
        ({"min_keep": 0.0}, r" \(20.0% of dense\)"),
    ],
)
def test_what_cannot_be_met_names_the_restrictions(restrictions: dict[str, Any], said: str) -> None:
    with pytest.raises(BudgetError, match=f"cannot be met: the smallest is .*{said}$") as caught:
        mdp_fx.solve(chain_space(), {"latency": "1us"}, **restrictions)
    assert caught.value.smallest["latency"] >= 3.0


def test_a_budget_that_makes_no_sense_has_nothing_to_do_with_restrictions() -> None:
    with pytest.raises(BudgetError, match=r"or as a share of the dense network$"):
        mdp_fx.solve(chain_space(), {"latency": None}, keep_blocks=["block"])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("unit", "asked", "shown"),
    [("us", "10.903ms", "10.9 ms"), ("bytes", "10903B", "0.01039 MiB"), ("params", "10903", "10,903 params")],
)
def test_what_is_called_the_smallest_is_enough(unit: Any, asked: str, shown: str) -> None:
    """It is rounded up, and the budget that it is held against down: they never read the same."""
    terms = tuple(replace(t, table=10903.4 * t.table / 3.0) for t in chain_space().costs["latency"].terms)
    space = replace(chain_space(), costs={"cost": CostModel(unit, 10903.4 / 3.0, terms)})
    with pytest.raises(BudgetError, match=rf"budget of {shown} \(19.9% of dense\)") as caught:
        mdp_fx.solve(space, {"cost": asked})
    said = re.search(r"the smallest is (.*) \((.*) of dense\)", str(caught.value))
    assert said is not None
    for enough in said.groups():
        again = mdp_fx.solve(space, {"cost": enough.replace(",", "").removesuffix(" params")})
        assert again.selection.removed_blocks == ("block",)


def test_the_json_form_has_the_documented_keys() -> None:
    found = json.loads(json.dumps(mdp_fx.solve(chain_space(), {"latency": "3.5us"}, solver="exact").to_json()))
    assert found.pop("seconds") >= 0
    assert found == {
        "objective": 3.0,
        "bound": 3.0,
        "gap": 0.0,
        "latency_us": 3.0,
        "budget_us": pytest.approx(3.5),
        "dims": {"a": 1, "b": 2},
        "removed_blocks": ["block"],
        "solver": "exact",
        "status": "optimal",
        "method": "mdp",
        "costs": {"latency": 3.0},
        "modelled_costs": {"latency": 3.0},
        "budgets": {"latency": pytest.approx(3.5)},
        "max_removed": None,
        "bound_from": None,
        "dense_objective": 9.0,
        "dense_costs": {"latency": 15.0},
        "units": {"latency": "us"},
    }


def test_a_space_without_latency_has_none_to_report() -> None:
    costs = {"params": CostModel("params", 1.0, chain_space().costs["latency"].terms)}
    found = mdp_fx.solve(replace(chain_space(), costs=costs), {"params": "60%"}).to_json()
    assert found["latency_us"] is found["budget_us"] is None
    assert found["costs"] == {"params": 7.0}


def test_a_space_without_choices_is_decided() -> None:
    empty = SearchSpace((), (), (), (), {"latency": CostModel("us", 2.0, ())})
    decision = mdp_fx.solve(empty, {"latency": "100%"})
    assert decision.selection == Selection({}, ())
    with pytest.raises(BudgetError, match=r"the smallest is 0.002 ms \(100.0% of dense\)"):
        mdp_fx.solve(empty, {"latency": "50%"})


def test_tables_are_not_copied_into_the_decision() -> None:
    space = chain_space()
    assert mdp_fx.solve(space, {"latency": "60%"}, keep_blocks=["block"]).space is space
    assert np.array_equal(space.costs["latency"].terms[1].table, [[1.0, 2.0], [4.0, 8.0]])
