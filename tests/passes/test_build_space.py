"""The built search space: its costs are those of the rewritten network, its tables those that were measured."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.passes.build_space import MOST_POINTS, Points, build_space, reachable_sizes, thinned, unit_order
from mdp_fx.passes.choices import MAX_OPTIONS, Analysis, Choices, choose, option_sizes
from mdp_fx.passes.cost_regions import CostRegion
from mdp_fx.passes.importance import score
from mdp_fx.passes.search_space import (
    Block,
    Dimension,
    FloatArray,
    SearchSpace,
    Selection,
    evaluate,
    importance,
    normalise,
    violations,
)
from mdp_fx.pipeline import analyse, rewrite
from tests.cifar_resnet import resnet56
from tests.pruning import layer_macs, random_removed
from tests.zoo import ZOO, Specimen, conv_bn, image

READS_WHAT_IT_ADDS_TO = ("nested_blocks", "pre_activation")
"""Specimens in which one region holds a layer and the addition of the layer's own input."""


def table_points(analysis: Analysis, choices: Choices, region: CostRegion) -> Points:
    return thinned(reachable_sizes(analysis, choices, region))


def cost_of(sizes: Sequence[int]) -> float:
    """A made-up latency that no interpolation gets right between its points."""
    return 3.0 + float(np.prod([size**1.5 for size in sizes]))


def made_up_latency(analysis: Analysis, choices: Choices) -> dict[str, tuple[Points, FloatArray]]:
    tables: dict[str, tuple[Points, FloatArray]] = {}
    for region in analysis.regions:
        points = table_points(analysis, choices, region)
        values = np.empty([len(axis) for axis in points])
        for index in np.ndindex(values.shape):
            values[index] = cost_of([axis[i] for axis, i in zip(points, index, strict=True)])
        tables[region.name] = (points, values)
    return tables


def built(model: nn.Module, inputs: tuple[Tensor, ...], step: int = 2) -> tuple[Analysis, Choices, SearchSpace]:
    analysis = analyse(model, inputs, step=step)
    choices = choose(analysis)
    scores = score(analysis.graph, analysis.groups, "l2")
    return analysis, choices, build_space(analysis, choices, scores, made_up_latency(analysis, choices))


@functools.cache
def specimen_space(name: str) -> tuple[Analysis, Choices, SearchSpace]:
    torch.manual_seed(0)
    specimen = next(s for s in ZOO if s.name == name)
    return built(specimen.make().eval(), specimen.inputs())


def random_selection(analysis: Analysis, space: SearchSpace, seed: int, block_share: float = 0.3) -> Selection:
    rng = np.random.default_rng(seed)
    sizes = {d.name: int(rng.choice([s for s in space.options(d.name) if s])) for d in space.dimensions}
    removed = random_removed(analysis.blocks, rng, block_share)
    return normalise(space, Selection(sizes, tuple(removed)))


def rewritten(analysis: Analysis, selection: Selection) -> nn.Module:
    kept = {group.name: list(range(selection.sizes[group.name])) for group in analysis.groups}
    return rewrite(analysis, kept, selection.removed_blocks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_params_and_macs_are_those_of_the_rewritten_network(specimen: Specimen, seed: int) -> None:
    analysis, _, space = specimen_space(specimen.name)
    selection = random_selection(analysis, space, seed)
    assert violations(space, selection) == []
    slim = rewritten(analysis, selection)
    costs = evaluate(space, selection)
    assert costs["params"] == pytest.approx(sum(parameter.numel() for parameter in slim.parameters()), rel=1e-12)
    if specimen.name not in READS_WHAT_IT_ADDS_TO:
        assert costs["macs"] == pytest.approx(sum(layer_macs(slim, specimen.inputs())), rel=1e-12)


@pytest.mark.parametrize("name", READS_WHAT_IT_ADDS_TO)
def test_macs_of_a_layer_that_reads_what_it_adds_to(name: str) -> None:
    analysis, _, space = specimen_space(name)
    trunk = space.dimensions[0]
    for size in trunk.sizes:
        selection = Selection(space.dense().sizes | {trunk.name: size})
        counted = sum(layer_macs(rewritten(analysis, selection), (image(),)))
        assert evaluate(space, selection)["macs"] == pytest.approx(counted, rel=1e-12)


def test_params_and_macs_of_a_deep_network() -> None:
    torch.manual_seed(0)
    inputs = (image(side=16),)
    analysis, _, space = built(resnet56().eval(), inputs, step=4)
    for seed in range(2):
        selection = random_selection(analysis, space, seed)
        slim = rewritten(analysis, selection)
        costs = evaluate(space, selection)
        assert costs["params"] == pytest.approx(sum(parameter.numel() for parameter in slim.parameters()), rel=1e-12)
        assert costs["macs"] == pytest.approx(sum(layer_macs(slim, inputs)), rel=1e-12)


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_dense_costs_are_those_of_the_network(specimen: Specimen) -> None:
    analysis, _, space = specimen_space(specimen.name)
    dense = evaluate(space, space.dense())
    assert dense["params"] == sum(parameter.numel() for parameter in analysis.graph.module.parameters())
    regions = sum(cost_of(region.dense_sizes) for region in analysis.regions)
    assert dense["latency"] == pytest.approx(regions)


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_latency_is_exact_at_the_measured_points(specimen: Specimen) -> None:
    analysis, choices, space = specimen_space(specimen.name)
    terms = space.costs["latency"].terms
    assert [term.region for term in terms] == [region.name for region in analysis.regions]
    for region, term in zip(analysis.regions, terms, strict=True):
        points = table_points(analysis, choices, region)
        assert tuple(tuple(point for point in axis.points if point) for axis in term.axes) == points
        for index in itertools.product(*(range(len(axis.points)) for axis in term.axes)):
            sizes = [axis.points[i] for axis, i in zip(term.axes, index, strict=True)]
            # What has no entries costs nothing, and is not measured.
            assert term.table[index] == (pytest.approx(cost_of(sizes)) if all(sizes) else 0.0)
        # And the sizes that a selection gives are where the table is read.
        for selection in (space.dense(), Selection({d.name: d.sizes[0] or d.sizes[1] for d in space.dimensions})):
            at = [axis.size(selection.sizes) for axis in term.axes]
            if all(size in axis.points for size, axis in zip(at, term.axes, strict=True)):
                assert term.cost(selection.sizes) == pytest.approx(cost_of(at))


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_axis_sizes_are_those_of_the_rewritten_tensors(specimen: Specimen) -> None:
    analysis, _, space = specimen_space(specimen.name)
    selection = random_selection(analysis, space, 5, block_share=0.0)
    kept = {group.name: list(range(selection.sizes[group.name])) for group in analysis.groups}
    slim = dict(rewrite(analysis, kept, ()).named_parameters())
    for term in space.costs["params"].terms:
        assert round(term.cost(selection.sizes)) == slim[term.region].numel()


def test_tables_reach_from_the_smallest_option_to_the_dense_size() -> None:
    analysis, choices, _ = specimen_space("dense_concat")
    by_name = {region.name: region for region in analysis.regions}
    # stem 8 and grow1 6 in steps of two: the concatenation has 2 + 2 to 8 + 6 channels.
    assert table_points(analysis, choices, by_name["cat_1"])[0][:1] == (4,)
    out, inp = table_points(analysis, choices, by_name["grow2"])
    assert out == (2, 4, 6)
    assert (inp[0], inp[-1]) == (4, 14)


def test_reachable_sizes_are_those_that_the_options_add_up_to() -> None:
    analysis, choices, space = specimen_space("dense_concat")
    for region, term in zip(analysis.regions, space.costs["latency"].terms, strict=True):
        for axis, sizes in zip(term.axes, reachable_sizes(analysis, choices, region), strict=True):
            options = [space.options(dim) for dim in axis.dims]
            sums = {axis.size(dict(zip(axis.dims, each, strict=True))) for each in itertools.product(*options)}
            assert sizes == tuple(sorted(sums - {0}))


def test_what_is_held_has_one_size() -> None:
    analysis, choices, _ = specimen_space("plain_residual")
    held = replace(choices, held=frozenset({"stem.0"}))
    by_name = {region.name: region for region in analysis.regions}
    assert reachable_sizes(analysis, held, by_name["stem.0"]) == ((16,),)
    assert reachable_sizes(analysis, held, by_name["one.first.0"]) == ((2, 4, 6, 8, 10, 12), (16,))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_tables_hold_so_many_sizes_evenly_with_both_ends(axes: int) -> None:
    many = tuple(range(3, 3 + 7 * 200, 7))
    for axis in thinned((many,) * axes):
        assert len(axis) == len(set(axis)) == MOST_POINTS[axes]
        assert (axis[0], axis[-1]) == (many[0], many[-1])
        assert set(axis) <= set(many)
        gaps = np.diff(axis)
        assert gaps.max() <= gaps.min() + 7
    assert thinned(((2, 4, 6),) * axes) == ((2, 4, 6),) * axes


def test_what_goes_with_a_block_may_go_to_0() -> None:
    analysis, choices, space = specimen_space("inception")
    first = {dimension.name: dimension.sizes[:2] for dimension in choices.dimensions}
    assert (first["rows"], first["wide.0"], first["stem.0"], first["reduce.0"]) == ((0, 2), (0, 2), (2, 4), (2, 4))
    blocks = {block.name: (block.parent, block.empties) for block in space.blocks}
    assert blocks["cat_1"] == (None, ("rows", "columns"))
    assert blocks["rows"] == ("cat_1", ("rows",))
    assert [dim.values[0] for dim in space.importance if dim.dim == "rows"] == [0.0]
    # No axis is measured without entries, those that may have none say that they cost nothing then.
    by_name = {region.name: region for region in analysis.regions}
    assert table_points(analysis, choices, by_name["rows"]) == ((2, 4, 6, 8, 9), (2, 4))
    assert table_points(analysis, choices, by_name["cat_1"])[0][0] == 2
    points = {term.region: term.axes[0].points for term in space.costs["latency"].terms}
    assert points["rows"] == (0, 2, 4, 6, 8, 9)
    assert points["cat_1"][:2] == (0, 2)


def test_a_group_that_is_held_keeps_its_branch() -> None:
    analysis, _, _ = specimen_space("inception")
    choices = choose(analysis, keep=["rows"])
    assert choices.blocks == {"columns", "project", "point", "wide.0", "shrink"}
    assert next(d.sizes for d in choices.dimensions if d.name == "rows")[0] == 2
    held = choose(analysis, only=["shrink", "point.0"])
    assert held.blocks == {"shrink"}


@pytest.mark.parametrize("removed", [("rows",), ("cat_1",), ("cat_1", "point", "wide.0"), ("project", "shrink")])
def test_costs_without_branches_are_those_of_the_rewritten_network(removed: tuple[str, ...]) -> None:
    analysis, _, space = specimen_space("inception")
    selection = normalise(space, Selection(space.dense().sizes, removed))
    assert violations(space, selection) == []
    slim = rewritten(analysis, selection)
    costs = evaluate(space, selection)
    assert costs["params"] == pytest.approx(sum(parameter.numel() for parameter in slim.parameters()), rel=1e-12)
    assert costs["macs"] == pytest.approx(sum(layer_macs(slim, (image(),))), rel=1e-12)


def test_a_branch_beside_nothing_prunable_leaves_a_region_without_entries() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(11, 5, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.cat([x, self.branch(x)], 1)).mean((2, 3))

    torch.manual_seed(0)
    analysis, choices, space = built(Beside().eval(), (image(side=4),))
    by_name = {region.name: region for region in analysis.regions}
    assert table_points(analysis, choices, by_name["cat"])[0] == (2, 4, 6, 8)
    term = next(term for term in space.costs["latency"].terms if term.region == "cat")
    assert term.axes[0].points == (0, 2, 4, 6, 8)
    assert term.cost({"branch": 0}) == 0.0


def test_importance_adds_up_the_most_important_units_first() -> None:
    analysis, choices, space = specimen_space("plain_residual")
    scores = score(analysis.graph, analysis.groups, "l2")
    order = unit_order(scores, analysis.groups)
    offered = {dimension.name: dimension for dimension in choices.dimensions}
    for entry, term in zip(scores, space.importance, strict=True):
        assert (term.layer, term.dim) == (entry.layer, entry.group)
        kept = [entry.values[order[entry.group][:size]].sum() for size in offered[entry.group].sizes]
        assert term.values == pytest.approx(kept)
    assert importance(space, space.dense()) == pytest.approx(5.0)
    assert importance(space, Selection(space.dense().sizes, ("one",))) == pytest.approx(3.0)


def test_blocks_of_the_space() -> None:
    _, _, space = specimen_space("nested_blocks")
    assert space.blocks == (
        Block("add_1"),
        Block("inner", "add_1"),
        Block("left"),
        Block("left#2", "left"),
        Block("right"),
    )
    assert space.exclusive == (("left", "right"),)
    assert specimen_space("downsample")[2].exclusive == (("add", "shortcut"),)
    inside = {term.region: term.block for term in space.costs["latency"].terms}
    assert inside["inner.first.0"] == "inner"
    assert inside["enter"] == "add_1"
    assert inside["stem"] is None


def test_only_chosen_blocks_are_in_the_space() -> None:
    analysis, choices, _ = specimen_space("nested_blocks")
    scores = score(analysis.graph, analysis.groups, "l2")

    def space_of(*names: str) -> SearchSpace:
        return build_space(analysis, replace(choices, blocks=frozenset(names)), scores, {})

    assert space_of("inner").blocks == (Block("inner"),)
    assert space_of("inner", "add_1").blocks == (Block("add_1"), Block("inner", "add_1"))
    assert space_of("left#2", "right").blocks == (Block("left#2"), Block("right"))
    assert space_of("left", "left#2").exclusive == ()
    # Costs of a block that may not go are counted whatever is removed.
    params = {term.region: term.block for term in space_of("right").costs["params"].terms}
    assert params["left.weight"] is None
    assert params["right.weight"] == "right"
    assert space_of().blocks == ()


def test_regions_of_an_inner_block_that_is_not_offered_go_with_the_outer_one() -> None:
    analysis, choices, _ = specimen_space("nested_blocks")
    scores = score(analysis.graph, analysis.groups, "l2")
    space = build_space(analysis, replace(choices, blocks=frozenset({"add_1"})), scores, {})
    params = {term.region: term.block for term in space.costs["params"].terms}
    assert params["enter.weight"] == "add_1"
    assert params["inner.first.0.weight"] == "add_1"


def test_held_groups_keep_their_dense_size() -> None:
    analysis, choices, _ = specimen_space("vgg")
    held = replace(choices, held=frozenset({"features.3"}))
    space = build_space(analysis, held, score(analysis.graph, analysis.groups, "l2"), {})
    assert space.fixed == {"features.3": 6}
    assert space.options("features.3") == (6,)
    assert space.options("features.0") == (2, 4, 6, 8)
    # Tables say nothing about sizes that cannot be.
    axes = {term.region: [axis.points for axis in term.axes] for term in space.costs["params"].terms}
    assert axes["features.3.weight"] == [(6,), (2, 8)]
    assert axes["classifier.0.weight"] == [(2, 14), (54,)]


def test_without_a_target_there_is_no_latency() -> None:
    analysis, choices, _ = specimen_space("vgg")
    space = build_space(analysis, choices, (), {})
    assert set(space.costs) == {"params", "macs"}


def test_spaces_have_a_json_form() -> None:
    for name in ("nested_blocks", "grouped", "option_a"):
        space = specimen_space(name)[2]
        assert SearchSpace.from_json(space.to_json()) == space


@pytest.mark.parametrize(
    ("size", "step", "expected"),
    [
        (64, 8, (8, 16, 24, 32, 40, 48, 56, 64)),
        (20, 8, (8, 16, 20)),
        (8, 8, (8,)),
        (5, 8, (5,)),
        (9, 8, (8, 9)),
        (3, 1, (1, 2, 3)),
        (100, 8, (*range(8, 100, 8), 100)),
        (300, 8, (*range(16, 300, 16), 300)),
        (2048, 8, tuple(range(64, 2049, 64))),
    ],
)
def test_options_by_hand(size: int, step: int, expected: tuple[int, ...]) -> None:
    assert option_sizes(size, step) == expected


@pytest.mark.parametrize("most", [2, 5, MAX_OPTIONS])
@pytest.mark.parametrize("step", [1, 4, 8, 32])
def test_options_are_multiples_of_the_step_and_the_dense_size(step: int, most: int) -> None:
    for size in range(1, 300, 7):
        options = option_sizes(size, step, most)
        assert options[-1] == size
        assert all(option % step == 0 for option in options[:-1])
        assert list(options) == sorted(set(options))
        assert len(options) <= most


class SharedFeed(nn.Module):
    """One convolution that only two blocks read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.shared = nn.Conv2d(8, 6, 1)
        self.a = conv_bn(6, 8)
        self.b = conv_bn(6, 8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        fed = self.shared(x)
        return self.head((x + self.a(fed)) + self.b(fed)).mean((2, 3))


def test_what_two_removed_blocks_share_is_counted_as_if_it_stayed() -> None:
    torch.manual_seed(0)
    inputs = (image(side=4),)
    analysis, _, space = built(SharedFeed().eval(), inputs)
    assert [block.name for block in analysis.blocks.removable] == ["a", "a#2", "b"]
    selection = normalise(space, Selection(space.dense().sizes, ("a#2", "b")))
    slim = rewritten(analysis, selection)
    shared = 8 * 6 + 6
    assert evaluate(space, selection)["params"] == sum(parameter.numel() for parameter in slim.parameters()) + shared


def test_smallest_reachable_sizes() -> None:
    analysis, choices, _ = specimen_space("vgg")
    by_dim = {g.dim: d for g, d in zip(analysis.groups, choices.dimensions, strict=True)}
    flat = next(r for r in analysis.regions if r.name == "classifier.0").axes[1]
    assert choices.smallest(flat, by_dim) == 2 * 9
    assert replace(choices, held=frozenset({"features.3"})).smallest(flat, by_dim) == 54
    assert choices.smallest(flat, {}) == 54
    assert choices.dimensions[0] == Dimension("features.0", (2, 4, 6, 8))
