"""The decision against exhaustion, its certificate, and what it says about bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from mdp_fx.errors import BudgetError, InputError, SolverError
from mdp_fx.passes import minlp
from mdp_fx.passes.minlp import solve
from mdp_fx.passes.restrict import restrict
from mdp_fx.passes.search_space import (
    CostModel,
    CostTerm,
    SearchSpace,
    Selection,
    evaluate,
)
from mdp_fx.passes.solvers import Limits, Outcome, elimination, problem
from tests.passes.spaces import (
    MINLP_DATA,
    axis,
    branch_space,
    chain_space,
    needs_minlp_data,
    nested_space,
)


def reference_space(name: str) -> SearchSpace:
    return SearchSpace.load(MINLP_DATA / f"{name}_titan_v.json")


@needs_minlp_data
@pytest.mark.parametrize(
    ("name", "share", "objective"),
    [
        ("resnet50", 0.70, 6258308),
        ("resnet50", 0.30, 4648466),
        ("resnet50", 0.15, 3427480),
        ("resnet101", 0.10, 3350920),
        ("resnet101", 0.30, 5246287),
    ],
)
def test_reference_objectives(name: str, share: float, objective: float) -> None:
    space = reference_space(name)
    budgets = {"latency": share * evaluate(space, space.dense())["latency"]}
    selection, certificate = solve(space, budgets, gap=1e-5, threads=1)
    # The references were proven to 1e-4, so a slightly better objective is right too.
    assert objective * (1 - 1e-5) <= certificate.objective <= objective * (1 + 1e-4)
    assert certificate.gap is not None
    assert certificate.gap <= 1e-5
    assert certificate.costs["latency"] <= budgets["latency"]
    assert certificate.seconds < 60
    assert selection.sizes["d0"] == space.options("d0")[-1]


@needs_minlp_data
def test_fuller_models_keep_more_within_the_same_budget() -> None:
    """Every model holds itself to the budget as it sees it; at the true cost it ends at, mdp keeps as much or more."""
    space = reference_space("resnet50")
    dense = evaluate(space, space.dense())["latency"]
    budget = 0.3 * dense
    kept, cost = {}, {}
    for method in ("halp", "mgp", "mdlm", "mdp", "uniform"):
        _, certificate = solve(space, {"latency": budget}, method=method, gap=1e-4, threads=1)
        kept[method], cost[method] = certificate.objective, certificate.costs["latency"]
        assert cost[method] <= budget
    assert kept["halp"] < kept["mgp"] < kept["mdp"]
    assert kept["halp"] < kept["mdlm"] < kept["mdp"]
    assert kept["uniform"] < kept["mdlm"]
    # The output-only model over-estimates what it costs, so it stops far short of the budget.
    assert cost["halp"] < 0.9 * budget < cost["mdlm"]
    for method in ("halp", "mgp", "uniform"):
        _, certificate = solve(space, {"latency": cost[method]}, gap=1e-4, threads=1)
        assert certificate.objective >= kept[method] * (1 - 1e-4)


@needs_minlp_data
@pytest.mark.parametrize("solver", ["exact", "lagrangian"])
def test_same_seed_and_threads_give_the_same_selection(solver: str) -> None:
    space = reference_space("resnet50")
    options: Any = {"solver": solver, "gap": 1e-3, "seed": 2**32 - 1, "threads": 2}
    budgets = {"latency": 0.5 * evaluate(space, space.dense())["latency"]}
    assert solve(space, budgets, **options)[0] == solve(space, budgets, **options)[0]


def test_chain_by_hand() -> None:
    # Dense costs 1 + 6 + 8; with 9 the best is a=1, b=2 (cost 1 + 2 + 4, importance 3 + 5).
    selection, certificate = solve(chain_space(), {"latency": 9.0}, gap=0.0)
    assert selection == Selection({"a": 1, "b": 2}, ())
    assert (certificate.objective, certificate.bound, certificate.gap) == (8.0, 8.0, 0.0)
    assert certificate.costs == certificate.modelled_costs == {"latency": 7.0}
    assert certificate.status == "optimal"
    assert json.loads(json.dumps(certificate.to_json()))["budgets"] == {"latency": 9.0}


def test_removed_block_leaves_its_dimensions_dense() -> None:
    selection, certificate = solve(chain_space(), {"latency": 3.5})
    assert selection == Selection({"a": 1, "b": 2}, ("block",))
    assert certificate.objective == 3.0


def test_removed_blocks_are_counted() -> None:
    budgets = {"latency": 3.5}
    assert solve(chain_space(), budgets, max_removed=1)[0].removed_blocks == ("block",)
    with pytest.raises(BudgetError, match=r"at most 0 blocks removed: the smallest is 0\.004 ms \(26\.7% of dense\)"):
        solve(chain_space(), budgets, max_removed=0)
    # With it, inner blocks count too.
    nested, free = nested_space(), {"params": 1.0}
    unfree = CostTerm("in", "outer", (), np.array(5.0))
    space = replace(nested, costs={"params": replace(nested.costs["params"], terms=(unfree,))})
    assert solve(space, free, max_removed=3)[0].removed_blocks == ("outer", "left", "right")
    with pytest.raises(BudgetError, match="with at most 2 blocks removed: the smallest is 5 params"):
        solve(space, free, max_removed=2)


def test_an_answer_with_too_many_removed_blocks_is_not_passed_on() -> None:
    def liar(*_: object) -> Outcome:
        return Outcome(Selection({"a": 1, "b": 2}, ("block",)), 3.0, 9.0)

    with patch.object(minlp, "get_solver", lambda _: liar), pytest.raises(SolverError, match="'removed blocks': 1"):
        solve(chain_space(), {"latency": 9.0}, max_removed=0)


def test_a_branch_goes_with_its_units() -> None:
    # Dense costs 1 + 5 + 5 + 8. Without a: 1 + 5 + 4 = 10 keeps 5; both at 2 cost 1 + 3 + 3 + 4 = 11 and keep 5 too.
    selection, certificate = solve(branch_space(), {"latency": 10.0})
    assert selection == Selection({"a": 0, "b": 4}, ("a",))
    assert (certificate.objective, certificate.costs) == (5.0, {"latency": 10.0})
    assert solve(branch_space(), {"latency": 6.0})[0] == Selection({"a": 0, "b": 2}, ("a",))
    with pytest.raises(BudgetError, match=r"smallest is 0\.006 ms"):
        solve(branch_space(), {"latency": 5.9})


@pytest.mark.parametrize("method", ["mdlm", "halp", "uniform"])
def test_methods_that_hold_blocks_keep_every_branch(method: str) -> None:
    selection, _ = solve(branch_space(), {"latency": 15.0}, method=method)
    assert selection.removed_blocks == ()
    assert min(selection.sizes.values()) == 2


def test_halp_holds_blocks_and_inputs() -> None:
    # By outputs alone block "two" costs 2 or 8, so with 8 only a=1, b=1 is left (1 + 2 + 2).
    selection, certificate = solve(chain_space(), {"latency": 8.0}, method="halp")
    assert selection == Selection({"a": 1, "b": 1}, ())
    assert certificate.modelled_costs == {"latency": 5.0}
    assert certificate.costs == {"latency": 4.0}
    with pytest.raises(BudgetError, match=r"smallest is 0\.005 ms \(33\.4% of dense\), by the 1-D tables of halp$"):
        solve(chain_space(), {"latency": 3.5}, method="halp")


def test_halp_holds_inputs_at_the_size_they_are_fixed_at() -> None:
    # With a=1 the second layer costs 1 or 4, and the budget of 7 is what b=2 costs.
    space = restrict(chain_space(), fixed={"a": 1})
    selection, certificate = solve(space, {"latency": 7.0}, method="halp")
    assert selection == Selection({"a": 1, "b": 2}, ())
    assert certificate.modelled_costs == certificate.costs == {"latency": 7.0}


def test_halp_counts_parameters_as_they_are() -> None:
    chain = chain_space()
    costs = chain.costs | {"params": replace(chain.costs["latency"], unit="params")}
    # By outputs alone a=1, b=2 would have 1 + 2 + 8.
    selection, certificate = solve(replace(chain, costs=costs), {"params": 7.0}, method="halp")
    assert selection == Selection({"a": 1, "b": 2}, ())
    assert certificate.modelled_costs == {"latency": 11.0, "params": 7.0}


def test_dense_network_within_budget_is_kept() -> None:
    for method in minlp.METHODS:
        selection, certificate = solve(chain_space(), {"latency": 15.0}, method=method)
        assert selection == chain_space().dense()
        assert certificate.objective == 9.0


def test_nothing_to_decide() -> None:
    chain = chain_space()
    terms = tuple(replace(t, block=None) for t in chain.costs["latency"].terms)
    costs = {"latency": CostModel("us", 1.0, terms)}
    space = SearchSpace(chain.dimensions, (), (), (), costs, fixed={"a": 2, "b": 2})
    selection, certificate = solve(space, {"latency": 15.0})
    assert selection.sizes == {"a": 2, "b": 2}
    assert certificate.status == "optimal"
    with pytest.raises(BudgetError, match=r"smallest is 0\.015 ms \(100\.0% of dense\)"):
        solve(space, {"latency": 14.0})


def test_no_budget_keeps_everything() -> None:
    assert solve(chain_space(), {})[0] == chain_space().dense()


@pytest.mark.parametrize("method", minlp.METHODS)
def test_infeasible_budget_states_the_smallest(method: str) -> None:
    with pytest.raises(BudgetError, match=r"budget of 0.0001 ms .* cannot be met: the smallest is") as caught:
        solve(chain_space(), {"latency": 0.1}, method=method)
    smallest = {"mdp": "0.003 ms", "mgp": "0.003 ms", "mdlm": "0.004 ms", "halp": "0.005 ms", "uniform": "0.004 ms"}
    assert smallest[method] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_out_of_reach_is_told_whatever_the_time() -> None:
    def out_of_time(*_: object) -> Outcome:
        return Outcome(None, -math.inf, -math.inf)

    with patch.object(minlp, "get_solver", lambda _: out_of_time):
        with pytest.raises(BudgetError, match=r"cannot be met: the smallest is 0\.003 ms \(20\.0% of dense\)"):
            solve(chain_space(), {"latency": 2.9}, time_limit=1e-6)
        # Where only the exact model could say, the dense network is what is known.
        with (
            patch.object(elimination, "MOST_CELLS", 5),
            pytest.raises(BudgetError, match=r"the smallest found in 1e-06 s is 0\.015 ms \(100\.0% of dense\)"),
        ):
            solve(chain_space(), {"latency": 2.9}, time_limit=1e-6)
        with patch.object(elimination, "MOST_CELLS", 5), pytest.raises(BudgetError, match=r"the smallest is 0\.003 ms"):
            solve(chain_space(), {"latency": 2.9})


def test_budgets_that_exclude_each_other() -> None:
    space = chain_space()
    falling = CostTerm("other", None, (axis("out", "a", points=(1, 2)),), np.array([9.0, 0.0]))
    space = replace(space, costs={**space.costs, "params": CostModel("params", 1.0, (falling,))})
    with pytest.raises(BudgetError, match=r"cannot be met together; .*latency 0.003 ms .*params 1 params"):
        solve(space, {"latency": 3.0, "params": 1.0})


@pytest.mark.parametrize(
    ("budgets", "options", "message"),
    [
        ({"speed": 1.0}, {}, "budget for an unknown cost 'speed'; the search space has latency"),
        ({"latency": math.nan}, {}, "the latency budget is nan"),
        ({"latency": -1.0}, {}, "the latency budget is -1.0"),
        ({"latency": 9.0}, {"method": "mpd"}, "unknown method 'mpd'; methods are halp, mgp, mdlm, mdp, uniform"),
        ({"latency": 9.0}, {"gap": -1.0}, "gap is -1.0"),
        ({"latency": 9.0}, {"time_limit": 0.0}, "the time limit is 0.0"),
        ({"latency": 9.0}, {"max_removed": -1}, "max_removed is -1; it must be an int of at least 0"),
    ],
)
def test_bad_arguments(budgets: dict[str, float], options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(chain_space(), budgets, **options)  # type: ignore[arg-type]


def test_removed_blocks_need_their_name() -> None:
    space = replace(chain_space(), costs={problem.REMOVED: chain_space().costs["latency"]})
    with pytest.raises(InputError, match="the cost 'removed blocks' needs another name"):
        solve(space, {problem.REMOVED: 9.0}, max_removed=1)


def test_memory_is_shown_in_mebibytes() -> None:
    terms = chain_space().costs["latency"].terms
    mebi = tuple(replace(term, table=term.table * 2**20) for term in terms)
    space = replace(chain_space(), costs={"memory": CostModel("bytes", 2.0**20, mebi)})
    assert solve(space, {"memory": 9.0 * 2**20})[0] == Selection({"a": 1, "b": 2}, ())
    with pytest.raises(BudgetError, match=r"memory budget of 1 MiB \(6\.6% .* smallest is 3 MiB \(20\.0% of dense\)"):
        solve(space, {"memory": 1.0 * 2**20})


def test_a_solver_that_is_not_installed_says_how_to_install_it() -> None:
    missing = ModuleNotFoundError("No module named 'highspy.cb'", name="highspy.cb")
    with (
        patch("importlib.import_module", side_effect=missing),
        pytest.raises(SolverError, match="'exact' needs highspy, which is not installed: pip install highspy"),
    ):
        solve(chain_space(), {"latency": 9.0}, solver="exact")


def test_unknown_solver() -> None:
    with pytest.raises(SolverError, match=r"unknown solver 'exakt' .*did you mean 'exact'"):
        solve(chain_space(), {"latency": 9.0}, solver="exakt")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Outcome(Selection({"a": 2, "b": 2}), 9.0, 9.0), "returned a selection of cost"),
        (Outcome(Selection({"a": 1, "b": 1}), 9.0, 9.0), "claims an importance of 9; re-evaluation gives 4"),
        (Outcome(Selection({"a": 1, "b": 3}), 4.0, 9.0), "unusable selection: dimension 'b' may not have size 3"),
        (Outcome(None, -math.inf, 9.0), "no selection found in 60 s"),
    ],
)
def test_a_wrong_answer_is_not_passed_on(answer: Outcome, message: str) -> None:
    def liar(*_: object) -> Outcome:
        return answer

    with patch.object(minlp, "get_solver", lambda _: liar), pytest.raises(SolverError, match=message):
        solve(chain_space(), {"latency": 9.0})


def test_no_bound_is_nobodys() -> None:
    def honest(*_: object) -> Outcome:
        return Outcome(Selection({"a": 1, "b": 2}), 8.0, math.inf, bound_from="lagrangian")

    with patch.object(minlp, "get_solver", lambda _: honest):
        _, certificate = solve(chain_space(), {"latency": 9.0})
    assert (certificate.status, certificate.bound, certificate.gap) == ("no bound", None, None)
    assert certificate.bound_from is None


def test_answer_over_budget_by_rounding_is_asked_again() -> None:
    asked, deadlines = [], []

    def sloppy(_: object, budgets: dict[str, float], limits: Limits) -> Outcome:
        asked.append(budgets["latency"])
        deadlines.append(limits.deadline)
        first = len(asked) == 1
        return Outcome(Selection({"a": 1, "b": 2} if first else {"a": 1, "b": 1}), 8.0 if first else 4.0, 8.5)

    budget = 7.0 * (1 - 1e-7)
    with patch.object(minlp, "get_solver", lambda _: sloppy):
        selection, certificate = solve(chain_space(), {"latency": budget})
    assert selection.sizes == {"a": 1, "b": 1}
    assert asked[0] == budget > asked[1]
    assert deadlines[0] == deadlines[1]
    assert certificate.bound == 8.5
    # The bound is that of the first answer: the gap is open though there was time.
    assert certificate.status == "gap open"


@needs_minlp_data
def test_time_limit_returns_the_best_so_far_with_its_gap() -> None:
    space = reference_space("resnet101")
    budgets = {"latency": 0.3 * evaluate(space, space.dense())["latency"]}
    _, certificate = solve(space, budgets, time_limit=1e-3, threads=1)
    assert certificate.status == "time limit"
    assert certificate.gap is not None
    assert certificate.gap > 1e-3
    assert certificate.costs["latency"] <= budgets["latency"]
