"""Decisions of a problem: partial sums are shared, rules say what goes together."""

from __future__ import annotations

import numpy as np

from mdp_fx.passes.solvers.decisions import Decisions
from mdp_fx.passes.solvers.problem import compile_problem
from tests.passes.spaces import nested_space, sum_space


def test_longer_sums_go_on_from_shorter_ones() -> None:
    short = Decisions(compile_problem(sum_space(layers=4, options=3), ["latency"]), ["latency"])
    long = Decisions(compile_problem(sum_space(layers=5, options=3), ["latency"]), ["latency"])
    results = [[rule for rule in found.rules if rule.result is not None] for found in (short, long)]
    assert len(results[1]) == len(results[0]) + 1


def test_a_sum_follows_from_what_it_adds_up() -> None:
    found = Decisions(compile_problem(sum_space(layers=4, options=3), ["latency"]), ["latency"])
    rule = next(rule for rule in found.rules if rule.result is not None)
    others = [v for v in rule.variables if v != rule.result]
    assert rule.result is not None
    assert found.follows(rule.result, others)
    assert not found.follows(rule.result, others[:1])
    # Every combination of what is added up is there once.
    assert len(rule.rows) == np.prod([found.counts[v] for v in others])


def test_an_inner_block_is_not_alive_alone() -> None:
    space = nested_space()
    found = Decisions(compile_problem(space, ["params"]), ["params"])
    pair = (found.blocks["outer"], found.blocks["left"])
    rule = next(rule for rule in found.rules if rule.variables == pair)
    assert (0, 1) not in set(map(tuple, rule.rows.tolist()))
