"""The merged form of the decision: axes resolved, terms added up, the methods' switches."""

from __future__ import annotations

import numpy as np
import pytest

from mdp_fx.passes.search_space import (
    Block,
    CostAxis,
    CostModel,
    CostTerm,
    Dimension,
    ImportanceTerm,
    SearchSpace,
    Selection,
    SizeTerm,
    evaluate,
    importance,
)
from mdp_fx.passes.solvers import problem as module
from mdp_fx.passes.solvers.problem import DimAxis, SizeAxis, compile_problem, modelled_space
from tests.passes.spaces import axis, branch_space, chain_space


def space_of(*terms: CostTerm, fixed: dict[str, int] | None = None) -> SearchSpace:
    dims = tuple(Dimension(name, (1, 2, 4)) for name in "abc")
    cost = CostModel("us", 1.0, terms)
    return SearchSpace(
        dims, (Block("k"),), (), (ImportanceTerm("l", "a", None, (1, 2, 3)),), {"latency": cost}, fixed or {}
    )


def ramp(region: str, block: str | None, *axes: CostAxis) -> CostTerm:
    """A table that is the sum of its sizes."""
    table = np.zeros([len(a.points) for a in axes])
    for index in np.ndindex(table.shape):
        table[index] = sum(a.points[i] for a, i in zip(axes, index, strict=True))
    return CostTerm(region, block, axes, table)


def test_terms_over_the_same_axes_are_one_factor() -> None:
    a, b = axis("out", "a", points=(1, 4)), axis("in", "b", points=(1, 4))
    problem = compile_problem(
        space_of(ramp("one", None, a, b), ramp("two", None, b, a), ramp("three", "k", a, b)), ["latency"]
    )
    merged, inner = problem.factors
    assert merged.axes == inner.axes == (DimAxis("a"), DimAxis("b"))
    assert (merged.block, inner.block) == (None, "k")
    assert merged.tables["latency"].tolist() == [[4, 6, 10], [6, 8, 12], [10, 12, 16]]


def test_an_axis_twice_is_the_diagonal() -> None:
    a = axis("out", "a", points=(1, 4))
    (factor,) = compile_problem(space_of(ramp("depthwise", None, a, a)), ["latency"]).factors
    assert factor.axes == (DimAxis("a"),)
    assert factor.tables["latency"].tolist() == [2, 4, 8]


def test_fixed_dimensions_leave_the_tables() -> None:
    mixed = CostAxis("in", 1, (SizeTerm(2, ("a", "b")), SizeTerm(1, ("b",))), (0, 37))
    problem = compile_problem(space_of(ramp("r", None, mixed), fixed={"b": 2}), ["latency"])
    (factor,) = problem.factors
    assert factor.axes == (DimAxis("a"),)
    assert factor.tables["latency"] == pytest.approx([7, 11, 19])
    # c is in no term: it keeps its dense size and is no decision.
    assert problem.held == {"b": 2, "c": 4}


def test_constant_regions() -> None:
    always, gated = ramp("always", None), CostTerm("gated", "k", (), np.array(5.0))
    held = ramp("held", None, axis("out", "b", points=(1, 4)))
    problem = compile_problem(space_of(always, gated, held, fixed={"b": 2}), ["latency"])
    assert problem.constants == {"latency": 1.0 + 0.0 + 2.0}
    (factor,) = problem.factors
    assert (factor.axes, factor.block, float(factor.tables["latency"])) == ((), "k", 5.0)


def test_sizes_of_several_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = CostAxis("in", 0, (SizeTerm(1, ("a",)), SizeTerm(1, ("b",))), (2, 8))
    (joint,) = compile_problem(space_of(ramp("cat", None, sums)), ["latency"]).factors
    assert isinstance(joint.axes[0], SizeAxis)
    assert (joint.axes[0].kind, joint.axes[0].positions) == ("joint", (2, 3, 4, 5, 6, 8))
    monkeypatch.setattr(module, "MAX_COMBINATIONS", 8)
    (between,) = compile_problem(space_of(ramp("cat", None, sums)), ["latency"]).factors
    assert isinstance(between.axes[0], SizeAxis)
    assert (between.axes[0].kind, between.axes[0].positions) == ("between", (2, 8))
    other = CostAxis("out", 0, (SizeTerm(1, ("b", "c")),), (1, 16))
    (both,) = compile_problem(space_of(ramp("cat", None, sums, other)), ["latency"]).factors
    # Interpolating on two axes at once would be ambiguous: one of them gets all of its sizes.
    kinds = {a.kind for a in both.axes if isinstance(a, SizeAxis)}
    assert kinds == {"between", "exact"}


def test_homes_are_the_blocks_around_all_uses() -> None:
    a, b, c = (axis("out", d, points=(1, 4)) for d in "abc")
    problem = compile_problem(space_of(ramp("r", "k", a, b), ramp("s", "k", b), ramp("t", "k", c)), ["latency"])
    assert problem.homes == {"a": None, "b": "k", "c": "k"}


@pytest.mark.parametrize(
    ("method", "dense", "blocks", "axes"),
    [("mdp", 15, 1, 2), ("mdlm", 15, 0, 2), ("mgp", 15, 1, 1), ("halp", 15, 0, 1)],
)
def test_methods_are_switches(method: module.Method, dense: float, blocks: int, axes: int) -> None:
    space = modelled_space(chain_space(), method)
    assert evaluate(space, space.dense()) == {"latency": dense}
    assert len(space.blocks) == blocks
    two = space.costs["latency"].terms[1]
    assert len(two.axes) == axes
    assert two.table.tolist() == ([2.0, 8.0] if axes == 1 else [[1.0, 2.0], [4.0, 8.0]])


@pytest.mark.parametrize("method", ["mdlm", "halp"])
def test_methods_that_hold_blocks_never_empty_a_dimension(method: module.Method) -> None:
    space = modelled_space(branch_space(), method)
    assert [dim.sizes for dim in space.dimensions] == [(2, 4), (2, 4)]
    assert [term.values for term in space.importance] == [(1.0, 2.0), (4.0, 5.0)]
    assert evaluate(space, space.dense()) == evaluate(branch_space(), branch_space().dense())


def test_a_dimension_is_looked_at_where_the_blocks_that_empty_it_lie() -> None:
    space = branch_space()
    inner = (Block("a", "outer", ("a",)), Block("b", "outer", ("b",)), Block("outer"))
    problem = compile_problem(
        SearchSpace(space.dimensions, inner, (), space.importance, {"latency": CostModel("us", 0.0, ())}), ["latency"]
    )
    assert problem.homes == {"a": "outer", "b": "outer"}
    assert problem.emptied_by == {"a": ("a",), "b": ("b",)}
    assert problem.never_zero("a", "a")
    assert not problem.never_zero("a", "b")
    assert not problem.never_zero("a", "outer")


def test_the_worth_of_a_selection() -> None:
    space = branch_space()
    problem = compile_problem(space, ["latency"])
    for selection in (space.dense(), Selection({"a": 2, "b": 4}), Selection({"a": 0, "b": 2}, ("a",))):
        assert problem.worth(selection) == importance(space, selection)
