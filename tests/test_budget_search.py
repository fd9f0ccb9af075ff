"""Meeting a measured budget on a target whose times are a formula: no clocks, so every number is exact."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mdp_fx import budget_search
from mdp_fx.budget_search import OVER, BudgetSearch
from mdp_fx.budgets import Budget
from mdp_fx.errors import BudgetError, InputError
from mdp_fx.latency import LatencyTable
from mdp_fx.outcome import Outcome, SolverOptions, selection_changes
from mdp_fx.passes import minlp
from mdp_fx.passes.choices import choose
from mdp_fx.passes.importance import score
from mdp_fx.passes.restrict import restrict
from mdp_fx.passes.search_space import Selection, evaluate
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import error, randomise, reference
from tests.work_target import (
    CALIBRATING,
    LEAST,
    MEASURING,
    STEP,
    Analysed,
    WorkTarget,
    analysed,
    dense_time,
    no_clocks,
    search,
    table,
    work,
)
from tests.zoo import FireModules, image

__all__ = ["analysed", "no_clocks", "table"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_clocks")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
def test_the_measured_latency_meets_the_budget(share: float, analysed: Analysed, table: LatencyTable) -> None:
    target = WorkTarget()
    outcome = search(analysed, target, table).run(Budget(share=share), {})
    assert outcome.asked_s == pytest.approx(share * dense_time(analysed))
    assert LEAST <= outcome.ratio <= OVER
    assert outcome.slim.median_s == pytest.approx(work(outcome.module, analysed[2]))
    # Regions at their exact sizes say what the network takes.
    assert outcome.predicted_s == pytest.approx(outcome.slim.median_s, rel=1e-3)
    assert outcome.dense_sum_s == pytest.approx(dense_time(analysed), rel=1e-3)
    assert 1 <= outcome.rounds <= 3
    assert target.open == set()


def test_an_absolute_budget_counts_in_seconds(analysed: Analysed, table: LatencyTable) -> None:
    wanted = 0.6 * dense_time(analysed)
    outcome = search(analysed, WorkTarget(), table).run(Budget(amount=wanted), {})
    assert outcome.asked_s == wanted
    assert LEAST * wanted <= outcome.slim.median_s <= OVER * wanted


def test_restrictions_hold_and_the_space_without_them_is_handed_back(analysed: Analysed, table: LatencyTable) -> None:
    analysis = analysed[0]
    free = search(analysed, WorkTarget(), table, min_keep=1.0).run(Budget(share=0.6), {"params": Budget(share=0.9)})
    assert free.selection.sizes == {each.name: each.size for each in analysis.groups}
    gone = free.selection.removed_blocks
    assert gone
    # Asked again, the space gives what was chosen.
    assert set(free.space.budgets) == {"latency", "params"}
    again = restrict(free.space, min_keep=1.0)
    assert minlp.solve(again, free.space.budgets, gap=1e-3, threads=1)[0] == free.selection
    # Without the restriction it may be decided otherwise.
    assert minlp.solve(free.space, free.space.budgets, gap=1e-3, threads=1)[0] != free.selection

    group, restrictions = analysis.groups[1], {"keep_blocks": gone[:1], "max_removed": 1, "min_keep": 0.25}
    held = search(analysed, WorkTarget(), table, fixed={group.name: group.size}, **restrictions)
    chosen = held.run(Budget(share=0.6), {}).selection
    assert chosen.sizes[group.name] == group.size
    assert len(chosen.removed_blocks) <= 1
    assert gone[0] not in chosen.removed_blocks


def test_unknown_restrictions_are_refused_before_anything_is_measured(analysed: Analysed, table: LatencyTable) -> None:
    target = WorkTarget()
    with pytest.raises(InputError, match=r"unknown dimension 'stem' is to be held at 8; did you mean 'stem\.0'"):
        search(analysed, target, table, fixed={"stem": 8}).run(Budget(share=0.5), {})
    with pytest.raises(InputError, match="unknown block 'two' is to stay"):
        search(analysed, target, table, keep_blocks=("two",)).measured_space()
    assert target.asked == target.prepared == []


def test_the_measured_space_is_what_the_first_round_is_asked(
    analysed: Analysed, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = WorkTarget(whole=lambda seconds, _: 2 * seconds)
    space = search(analysed, target, table, min_keep=0.25).measured_space()
    assert evaluate(space, space.unpruned())["latency"] == pytest.approx(2e6 * dense_time(analysed), rel=1e-4)
    assert set(space.costs) == {"latency", "params", "macs"}
    assert target.open == set()
    # Only the dense network is built for it, and the slim ones that calibrate.
    dense, *mixed, slim = target.prepared
    assert len(target.prepared) == CALIBRATING
    assert dense == pytest.approx(2 * dense_time(analysed))
    assert slim < 0.3 * dense
    assert max(mixed) < dense
    monkeypatch.setattr(budget_search, "MOST_ROUNDS", 1)
    outcome = search(analysed, target, table, min_keep=0.25).run(Budget(share=0.6), {})
    assert restrict(replace(outcome.space, budgets={}), min_keep=0.25) == space


def test_the_most_important_units_are_kept(analysed: Analysed, table: LatencyTable) -> None:
    analysis, importance, _ = analysed
    outcome = search(analysed, WorkTarget(), table).run(Budget(share=0.5), {})
    assert selection_changes(outcome.selection, analysis)
    for group in analysis.groups:
        worth = sum((entry.values for entry in importance if entry.group == group.name), np.zeros(group.size))
        kept = outcome.kept[group.name]
        assert len(kept) == outcome.selection.sizes[group.name]
        assert kept == sorted(kept)
        left_out = set(range(group.size)) - set(kept)
        assert not left_out or worth[kept].min() >= worth[sorted(left_out)].max()


def test_an_impossible_latency_states_the_smallest(analysed: Analysed, table: LatencyTable) -> None:
    target = WorkTarget()
    with pytest.raises(
        BudgetError, match=r"^the latency budget of .* cannot be met: the smallest reachable is "
    ) as caught:
        search(analysed, target, table).run(Budget(share=0.001), {})
    text = str(caught.value)
    smallest = float(text.rpartition("smallest reachable is ")[2].partition(" ms")[0])
    assert "\n" not in text
    assert 0.001 * dense_time(analysed) < smallest * 1e-3 < 0.3 * dense_time(analysed)
    assert target.open == set()
    # What the message promises can be had.
    outcome = search(analysed, WorkTarget(), table).run(Budget(amount=1.02 * smallest * 1e-3), {})
    assert outcome.slim.median_s <= OVER * 1.02 * smallest * 1e-3


def test_a_latency_above_the_dense_one_is_refused(analysed: Analysed, table: LatencyTable) -> None:
    dense = dense_time(analysed)
    target = WorkTarget()
    message = (
        rf"^the latency budget of {2e3 * dense:.4g} ms is above the {1e3 * dense:.4g} ms of the dense network on work: "
        r"nothing needs pruning$"
    )
    with pytest.raises(BudgetError, match=message):
        search(analysed, target, table).run(Budget(amount=2 * dense), {})
    assert target.open == set()
    assert len(target.prepared) == CALIBRATING


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("what", ["params", "macs"])
def test_a_budget_of_parameters_or_macs_needs_no_tables(
    what: str, share: float, analysed: Analysed, table: LatencyTable
) -> None:
    target = WorkTarget()
    outcome = search(analysed, target, table).run(None, {what: Budget(share=share)})
    assert target.asked == []
    assert (outcome.asked_s, outcome.predicted_s, outcome.calibration, outcome.dense_sum_s) == (None, None, None, None)
    assert (outcome.rounds, outcome.ratio) == (1, 0.0)
    dense = analysed[0].graph.module
    counts = {
        "params": parameters(outcome.module) / parameters(dense),
        "macs": (outcome.slim.median_s - 1e-6 * layers(outcome.module))
        / (outcome.dense.median_s - 1e-6 * layers(dense)),
    }
    assert 0.9 * share <= counts[what] <= share * (1 + 1e-9)
    assert target.open == set()


def layers(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())


def test_several_budgets_hold_together(analysed: Analysed, table: LatencyTable) -> None:
    outcome = search(analysed, WorkTarget(), table).run(Budget(share=0.7), {"params": Budget(share=0.3)})
    assert parameters(outcome.module) <= 0.3 * parameters(analysed[0].graph.module)
    assert outcome.slim.median_s <= OVER * 0.7 * outcome.dense.median_s
    amount = 0.5 * parameters(analysed[0].graph.module)
    outcome = search(analysed, WorkTarget(), table).run(None, {"params": Budget(amount=amount)})
    assert parameters(outcome.module) <= amount


def test_impossible_parameters_state_the_smallest(analysed: Analysed, table: LatencyTable) -> None:
    target = WorkTarget()
    with pytest.raises(BudgetError, match=r"^the params budget of .* cannot be met: the smallest is [\d,]+ params \("):
        search(analysed, target, table).run(None, {"params": Budget(amount=10.0)})
    assert target.open == set()


@pytest.mark.parametrize("method", ["mdp", "mgp", "mdlm", "halp", "uniform"])
def test_every_method_stays_within_the_budget(method: str, analysed: Analysed, table: LatencyTable) -> None:
    outcome = search(analysed, WorkTarget(), table, method=method).run(Budget(share=0.6), {})
    assert outcome.certificate.method == method
    assert outcome.ratio <= OVER
    if method in ("mdlm", "halp", "uniform"):
        assert outcome.selection.removed_blocks == ()


def test_stages_are_told_in_order(analysed: Analysed, table: LatencyTable) -> None:
    analysis, importance, inputs = analysed
    told: list[str] = []
    measured: list[tuple[int, int, str]] = []
    BudgetSearch(
        analysis,
        choose(replace(analysis, step=8)),
        importance,
        WorkTarget(),
        table,
        inputs,
        options=SolverOptions(gap=0.05),
        stage=told.append,
        progress=lambda *call: measured.append(call),
    ).run(Budget(share=0.5), {})
    assert told[:4] == ["prepare the dense network", *MEASURING]
    assert told[4:8] == ["solve", "measure the chosen regions", "rewrite", "time dense and slim in turn"]
    assert measured[-1][0] == measured[-1][1]
    assert max(total for _, total, _ in measured) > 10


def test_a_selection_that_changes_something(analysed: Analysed) -> None:
    analysis = analysed[0]
    dense = {group.name: group.size for group in analysis.groups}
    assert not selection_changes(Selection(dense), analysis)
    assert selection_changes(Selection(dense | {"stem.0": 8}), analysis)
    assert selection_changes(Selection(dense, ("one.0",)), analysis)


def test_the_certificate_is_about_the_selection(analysed: Analysed, table: LatencyTable) -> None:
    outcome: Outcome = search(analysed, WorkTarget(), table).run(Budget(share=0.5), {})
    certificate = outcome.certificate
    assert certificate.costs["params"] == parameters(outcome.module)
    assert certificate.costs["latency"] <= certificate.budgets["latency"] * (1 + 1e-9)
    assert certificate.bound is not None
    assert certificate.bound >= certificate.objective


@pytest.fixture(scope="module")
def fires() -> Analysed:
    torch.manual_seed(0)
    inputs = (image(side=16, batch=1).double(),)
    analysis = analyse(randomise(FireModules()).double().eval(), inputs, step=STEP)
    return analysis, score(analysis.graph, analysis.groups, "l1"), inputs


def test_branches_of_a_concatenation_go_with_their_units(fires: Analysed, table: LatencyTable) -> None:
    analysis, _, inputs = fires
    target = WorkTarget()
    outcome = search(fires, target, table).run(Budget(share=0.25), {})
    gone = [block for block in analysis.blocks.removable if block.name in outcome.selection.removed_blocks]
    emptied = {name for block in gone for name in block.empties}
    assert emptied
    assert {name for name, size in outcome.selection.sizes.items() if size == 0} == emptied
    assert {name for name, units in outcome.kept.items() if not units} == emptied
    assert all(all(sizes) for sizes in target.asked)
    assert outcome.ratio <= OVER
    assert outcome.predicted_s == pytest.approx(outcome.slim.median_s, rel=1e-3)
    removed = outcome.selection.removed_blocks
    with torch.no_grad():
        expected = reference(analysis, outcome.kept, removed).run(*inputs)
        assert error(expected, outcome.module(*inputs)) <= 1e-12
        again = json.loads(json.dumps({"kept": outcome.kept, "removed": removed}))
        twin = rewrite(analysis, again["kept"], again["removed"])
        assert torch.equal(twin(*inputs), outcome.module(*inputs))


@pytest.mark.parametrize("method", ["halp", "mdlm", "uniform"])
def test_methods_that_hold_blocks_keep_every_branch(method: str, fires: Analysed, table: LatencyTable) -> None:
    outcome = search(fires, WorkTarget(), table, method=method).run(Budget(share=0.6), {})
    assert outcome.selection.removed_blocks == ()
    assert min(outcome.selection.sizes.values()) > 0


def test_a_plan_is_what_the_first_round_builds(
    analysed: Analysed, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_search, "MOST_ROUNDS", 1)
    target = WorkTarget()
    plan = search(analysed, target, table).plan(Budget(share=0.5), {})
    assert len(target.prepared) == CALIBRATING, "only the networks that calibrate are timed"
    assert target.open == set()
    assert (plan.dense, plan.slim) == (None, None)
    outcome = search(analysed, WorkTarget(), table).run(Budget(share=0.5), {})
    assert plan.selection == outcome.selection
    assert plan.kept == outcome.kept
    assert (plan.asked_s, plan.predicted_s) == pytest.approx((outcome.asked_s, outcome.predicted_s))
    assert plan.predicted_s <= plan.asked_s
    assert search(analysed, target, table).plan(None, {"params": Budget(share=0.6)}).asked_s is None
    with pytest.raises(BudgetError, match="the smallest reachable is"):
        search(analysed, target, table).plan(Budget(share=0.001), {})
    with pytest.raises(BudgetError, match=r"is above the .* ms of the dense network on work: nothing needs pruning"):
        search(analysed, target, table).plan(Budget(amount=1.1 * dense_time(analysed)), {})


def test_plans_share_what_was_measured_of_the_dense_network(analysed: Analysed, table: LatencyTable) -> None:
    target = WorkTarget()
    measured = search(analysed, target, table).measure()
    assert len(target.prepared) == CALIBRATING
    plans = [search(analysed, target, table).plan(Budget(share=share), {}, measured) for share in (0.7, 0.5)]
    assert len(target.prepared) == CALIBRATING
    assert [plan.asked_s for plan in plans] == pytest.approx([0.7 * dense_time(analysed), 0.5 * dense_time(analysed)])


@pytest.mark.parametrize("method", ["mdp", "mgp", "mdlm", "halp"])
def test_a_later_step_takes_more_of_what_an_earlier_one_left(
    method: str, analysed: Analysed, table: LatencyTable
) -> None:
    first = search(analysed, WorkTarget(), table, method=method).plan(Budget(share=0.7), {})
    at_most = {name: size for name, size in first.selection.sizes.items() if size}
    removed = first.selection.removed_blocks
    held = search(analysed, WorkTarget(), table, method=method, at_most=at_most, removed=removed)
    second = held.run(Budget(share=0.45), {})
    # The model of mgp and halp is not the tables: what really fits may be smaller than what was asked.
    assert (LEAST if method in ("mdp", "mdlm") else 0.8) <= second.ratio <= OVER
    assert set(removed) <= set(second.selection.removed_blocks)
    assert all(second.selection.sizes[name] <= size for name, size in at_most.items())
    assert second.certificate.costs["params"] == parameters(second.module)
