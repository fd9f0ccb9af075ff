"""The tables of a decision: every fact is there, at 80 columns and at 120, in a pipe and on a terminal."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from mdp_fx.passes.minlp import Certificate
from mdp_fx.passes.search_space import (
    Block,
    CostModel,
    CostTerm,
    Dimension,
    ImportanceTerm,
    SearchSpace,
    Selection,
)
from mdp_fx.report import cells
from mdp_fx.report.decision import decision_tables
from tests.passes.spaces import axis
from tests.report.rendering import has_row, lines

COUNT = 20
NAMES = tuple(f"d[{i}]" for i in range(COUNT))


def cost(name: str, block: str | None, each: float) -> CostTerm:
    return CostTerm(name, block, (axis("out", name, points=(1, 64)),), np.array([each / 4, each]))


def terms(each: float) -> tuple[CostTerm, ...]:
    return tuple(cost(name, "last" if name == NAMES[-1] else None, each) for name in NAMES)


SPACE = SearchSpace(
    dimensions=tuple(Dimension(name, (1, 64)) for name in NAMES),
    blocks=(Block("last"), Block("other")),
    exclusive=(),
    importance=tuple(ImportanceTerm(name, name, "last" if name == NAMES[-1] else None, (1e5, 5e5)) for name in NAMES),
    costs={
        "latency": CostModel("us", 0.0, terms(1000.0)),
        "memory": CostModel("bytes", 0.0, terms(2.0**20)),
        "params": CostModel("params", 0.0, terms(4000.0)),
    },
)
SELECTION = Selection({name: 64 if i in (0, COUNT - 1) else 1 for i, name in enumerate(NAMES)}, ("last",))
CERTIFICATE = Certificate(
    solver="exact",
    method="mdp",
    status="gap reached",
    objective=2_300_000.0,
    bound=2_300_200.0,
    gap=200 / 2_300_000,
    seconds=1.234,
    costs={"latency": 5500.0, "memory": 5.5 * 2**20, "params": 22000.0},
    modelled_costs={},
    budgets={"latency": 6000.0, "memory": 8.0 * 2**20},
)


def shown(certificate: Certificate = CERTIFICATE, *, verbose: bool = False, width: int = 80) -> list[str]:
    return lines(decision_tables("space.json", SPACE, SELECTION, certificate, "out.json", verbose=verbose), width)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_every_fact_is_there(width: int, terminal: bool) -> None:
    parts = decision_tables("space.json", SPACE, SELECTION, CERTIFICATE, "out.json", verbose=False)
    found = lines(parts, width, terminal)
    assert all(len(line) <= width for line in found)
    assert found[0] == "space.json: 23.0 % of the importance kept"
    assert found[1] == "mdp, exact solver: gap reached, 1.23 s"
    assert has_row(found, "objective", "2,300,000 of 10,000,000")
    assert has_row(found, "bound", "2,300,200")
    assert has_row(found, "gap", "0.0087 %")
    assert has_row(found, "latency", "20 ms", "6 ms", "5.5 ms", "91.7 %", "27.5 %")
    assert has_row(found, "memory", "20 MiB", "8 MiB", "5.5 MiB", "68.8 %", "27.5 %")
    assert has_row(found, "params", "80,000 params", "-", "22,000 params", "-", "27.5 %")
    assert "18 of 20 dimensions cut" in found
    assert has_row(found, "d[1]", "64", "1", "2 %")
    assert has_row(found, "blocks", "1 of 2 removed: last")
    assert has_row(found, "wrote", "out.json")
    assert not any("warning" in line for line in found)


def test_long_lists_are_cut_without_verbose() -> None:
    short, full = shown(), shown(verbose=True)
    assert sum(line.startswith("d[") for line in short) == cells.SHOWN
    assert f"... and {18 - cells.SHOWN} more (-v shows all)" in short
    assert sum(line.startswith("d[") for line in full) == COUNT
    # What only a removed block uses has no size.
    assert has_row(full, "d[19]", "64", "-", "unused")
    assert has_row(full, "d[0]", "64", "64")


def test_many_removed_blocks_are_cut_unless_verbose() -> None:
    names = tuple(f"block.{number}" for number in range(40))
    further = tuple(dataclasses.replace(SPACE.blocks[-1], name=name) for name in names)
    space = dataclasses.replace(SPACE, blocks=(*SPACE.blocks, *further))
    some = dataclasses.replace(SELECTION, removed_blocks=names)
    short, full = (
        " ".join(lines(decision_tables("s.json", space, some, CERTIFICATE, None, verbose=v), 999))
        for v in (False, True)
    )
    assert f"40 of 42 removed: {', '.join(names[: cells.SHOWN])} and {40 - cells.SHOWN} more (-v shows all)" in short
    assert f"40 of 42 removed: {', '.join(names)}" in full


def test_a_proof_that_is_missing_is_said() -> None:
    open_gap = dataclasses.replace(CERTIFICATE, status="time limit", max_removed=3)
    found = shown(open_gap)
    assert has_row(found, "warning", "the time limit came before the gap was proven; allow more with --time-limit")
    assert has_row(found, "blocks", "1 of 2 removed (at most 3 were to go): last")
    found = shown(dataclasses.replace(CERTIFICATE, status="no bound", bound=None, gap=None))
    assert has_row(found, "bound", "none is known")
    assert has_row(found, "gap", "none is known")
    found = shown(dataclasses.replace(CERTIFICATE, status="gap open", bound_from="lagrangian"))
    assert has_row(found, "bound", "2,300,200, proven by the lagrangian solver")


def test_a_budget_that_is_truly_exceeded_is_said() -> None:
    over = {**CERTIFICATE.costs, "latency": 9000.0}
    modelled = {**CERTIFICATE.costs, "latency": 6000.0}
    halp = dataclasses.replace(CERTIFICATE, method="halp", costs=over, modelled_costs=modelled)
    assert (halp.misjudged, halp.exceeded) == (("latency",), ("latency",))
    found = shown(halp)
    assert any("in halp" in line for line in found)
    assert has_row(found, "latency", "20 ms", "6 ms", "6 ms", "9 ms", "150.0 %", "45.0 %")
    said = "the latency kept is 150.0 % of its budget: halp was held to it by its 1-D tables; mdp knows the true cost"
    assert has_row(found, "warning", said)
    right = dataclasses.replace(CERTIFICATE, method="halp", modelled_costs=CERTIFICATE.costs)
    assert (right.misjudged, right.exceeded) == ((), ())
    assert not any("in halp" in line or "warning" in line for line in shown(right))


def test_spaces_in_which_little_can_be_said() -> None:
    bare = replace(SPACE, blocks=(), importance=(), costs={"latency": CostModel("us", 0.0, ())})
    dense = bare.dense()
    certificate = dataclasses.replace(
        CERTIFICATE, objective=0.0, bound=0.0, gap=0.0, costs={"latency": 0.0}, budgets={"latency": 6000.0}
    )
    found = lines(decision_tables("bare", bare, dense, certificate, verbose=False))
    assert found[0] == "bare: nothing is important"
    assert has_row(found, "latency", "0 ms", "6 ms", "0 ms", "0.0 %", "-")
    assert "0 of 20 dimensions cut" in found
    assert has_row(found, "blocks", "the search space has no removable blocks")
