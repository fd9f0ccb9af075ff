"""Cost regions: a partition of the network, with names, axes and blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mdp_fx.graph.axes import free_dims
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.passes.cost_regions import find_cost_regions, innermost_blocks, parts_of
from mdp_fx.passes.residual_blocks import Blocks, ResidualBlock
from mdp_fx.pipeline import analyse
from tests.graph.small import net, parameter
from tests.passes.specimens import analysed
from tests.zoo import ZOO, Specimen, image

# Nodes that only name or re-arrange memory.
FREE = frozenset("getitem reshape view flatten transpose contiguous chunk split size dropout".split())


def rows(name: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], str | None]]:
    return {r.name: (r.nodes, r.roles, r.dense_sizes, r.block) for r in analysed(name).regions}


def test_regions_of_a_residual_network() -> None:
    assert rows("plain_residual") == {
        "stem.0": (("stem_0", "stem_1", "relu"), ("out",), (16,), None),
        "one.first.0": (("one_first_0", "one_first_1", "relu_1"), ("out", "in"), (12, 16), "one"),
        "one.second.0": (("one_second_0", "one_second_1", "add", "relu_2"), ("out", "in"), (16, 12), "one"),
        "two.first.0": (("two_first_0", "two_first_1", "relu_3"), ("out", "in"), (20, 16), "two"),
        "two.second.0": (("two_second_0", "two_second_1", "add_1", "relu_4"), ("out", "in"), (16, 20), "two"),
        "head.pool": (("head_pool",), ("out",), (16,), None),
        "head.fc": (("head_fc",), ("in",), (16,), None),
    }


def test_a_projected_shortcut_carries_the_addition_that_follows_it() -> None:
    found = rows("downsample")
    assert found["second.0"][0] == ("second_0", "second_1")
    assert found["shortcut.0"] == (("shortcut_0", "shortcut_1", "add", "relu_2"), ("out", "in"), (16, 8), "shortcut")


def test_a_concatenation_has_one_axis_for_all_its_parts() -> None:
    found = rows("dense_concat")
    assert found["cat_2"] == (("cat_2", "norm3", "relu_2"), ("out",), (20,), None)
    assert found["grow2"] == (("grow2",), ("out", "in"), (6, 14), "grow2")


class Joined(nn.Module):
    """Concatenates as many channels as `parts` says, each made by a convolution of its own."""

    def __init__(self, parts: tuple[int, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, size, 1) for size in parts])
        self.last = nn.Conv2d(sum(parts), 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.cat([part(x) for part in self.parts], 1)).mean((2, 3))


@given(
    st.lists(st.integers(2, 48), min_size=2, max_size=5).map(tuple),
    st.sampled_from([1, 4, 8]),
    st.lists(st.floats(0.01, 0.99), min_size=4, max_size=4),
)
@settings(max_examples=20, deadline=None)
def test_the_parts_of_a_concatenation_are_such_as_are_asked_for(
    parts: tuple[int, ...], step: int, shares: list[float]
) -> None:
    regions = analyse(Joined(parts), (image(side=4),), step=step).regions
    (joined,) = (region for region in regions if region.nodes[0] == "cat")
    whole = sum(parts)
    (dense,) = joined.dense_sizes
    assert dense == whole
    assert [x.shape[1] for x in joined.build((whole,))[1]] == list(parts), "as it is"
    for total in {max(1, round(share * whole)) for share in shares}:
        assert [x.shape[1] for x in joined.build((total,))[1]] == parts_of(total, parts, step)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.sampled_from([1, 3, 4, 8]), st.data())
@settings(max_examples=300, deadline=None)
def test_a_network_may_have_the_parts(dense: list[int], step: int, data: st.DataObject) -> None:
    sizes = [data.draw(st.sampled_from([*range(step, whole, step), whole])) for whole in dense]
    parts = parts_of(sum(sizes), dense, step)
    assert sum(parts) == sum(sizes)
    assert all(0 < part <= whole for part, whole in zip(parts, dense, strict=True))
    odd = [part for part, whole in zip(parts, dense, strict=True) if part % step and part != whole]
    assert len(odd) <= 1, "what is over"
    if all(whole % step == 0 for whole in dense):
        assert odd == []


@pytest.mark.parametrize("total", range(1, 17))
def test_what_is_not_enough_for_a_step_each_is_in_proportion(total: int) -> None:
    parts = parts_of(total, (16, 8, 8), 8)
    assert sum(parts) == total
    assert min(parts) == (total >= 3) * min(parts)
    assert parts[0] >= max(parts[1:])


@pytest.mark.parametrize("dense", [[5], [8, 12]])
@pytest.mark.parametrize("step", [1, 8])
def test_a_size_above_the_dense_one_is_made_up_too(dense: list[int], step: int) -> None:
    assert sum(parts_of(50, dense, step)) == 50


def test_a_region_is_made_at_the_sizes_of_a_wider_one_of_its_key() -> None:
    regions = {region.name: region for region in analysed("plain_residual").regions}
    narrow, wide = regions["one.first.0"], regions["two.first.0"]
    assert narrow.key == wide.key
    sizes = wide.dense_sizes
    assert sizes > narrow.dense_sizes
    assert [x.shape for x in narrow.build(sizes)[1]] == [x.shape for x in wide.build(sizes)[1]]
    assert narrow.macs(sizes) == wide.macs(sizes)


def test_measurements_of_other_parts_are_others() -> None:
    by_step = {step: analyse(Joined((16, 8)), (image(side=4),), step=step).regions for step in (1, 4, 8)}
    keys = [{region.nodes[0]: region.key for region in regions} for regions in by_step.values()]
    assert len({each["cat"] for each in keys}) == 3
    assert "parts of 8" in keys[2]["cat"]
    assert len({each["last"] for each in keys}) == 1
    other = analyse(Joined((12, 12)), (image(side=4),), step=8).regions
    assert {region.nodes[0]: region.key for region in other}["cat"] != keys[2]["cat"], "shared in another way"


def test_a_grouped_convolution_has_an_axis_for_its_groups() -> None:
    found = rows("grouped")
    assert found["grouped.0"][1:3] == (("out", "out", "in"), (5, 4, 3))
    assert found["point.0"][2] == (6, 20)
    assert rows("depthwise")["depth.0"][1:3] == (("out",), (10,))


def test_nested_blocks_hold_their_own_regions() -> None:
    assert {name: row[3] for name, row in rows("nested_blocks").items()} == {
        "stem": None,
        "enter": "add_1",
        "inner.first.0": "inner",
        "inner.second.0": "inner",
        "leave": "add_1",
        "left": "left#2",
        "right": "right",
        "head.pool": None,
        "head.fc": None,
    }


def test_innermost_blocks() -> None:
    outer = ResidualBlock("outer", "add", "x", ("a", "b", "c"), None)
    inner = ResidualBlock("inner", "b", "a", ("b",), "outer")
    assert innermost_blocks(Blocks((inner, outer), (), ())) == {"a": "outer", "b": "inner", "c": "outer"}


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_every_computing_node_is_in_exactly_one_region(specimen: Specimen) -> None:
    graph = analyse(specimen.make(), specimen.inputs()).graph
    regions = find_cost_regions(graph, Blocks((), (), ()), 2)
    inside = [name for region in regions for name in region.nodes]
    assert len(inside) == len(set(inside))
    left = [node for node in graph.module.graph.nodes if node.name not in set(inside)]
    for node in left:
        free = node.op in ("placeholder", "output", "get_attr") or str(node.name).rstrip("_0123456789") in FREE
        assert free or isinstance(graph.module.get_submodule(str(node.target)), nn.Dropout | nn.Identity)
    order = {node.name: i for i, node in enumerate(graph.module.graph.nodes)}
    assert [order[r.nodes[0]] for r in regions] == sorted(order[r.nodes[0]] for r in regions)
    again = find_cost_regions(graph, Blocks((), (), ()), 2)
    assert [(r.name, r.key, r.nodes) for r in again] == [(r.name, r.key, r.nodes) for r in regions]


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_axes_are_those_of_the_network_and_have_the_dense_sizes(specimen: Specimen) -> None:
    analysis = analyse(specimen.make(), specimen.inputs())
    dims = {group.dim for group in analysis.groups}
    for region in analysis.regions:
        assert tuple(kept_size(axis, lambda dim: dim.size) for axis in region.axes) == region.dense_sizes
        assert len(region.axes) == len(region.roles) <= 3
        assert any(set(free_dims(axis)) <= dims for axis in region.axes) or not region.axes


def test_a_module_called_twice_makes_two_regions() -> None:
    shared = [region for region in analysed("twice").regions if region.nodes[0].startswith("shared")]
    assert [region.nodes for region in shared] == [("shared", "norm", "relu_1"), ("shared_1", "norm_1", "relu_2")]
    assert shared[0].key == shared[1].key


def test_names_of_regions_are_unique() -> None:
    # Latency tables and exact sums are kept by the region's name.
    names = [region.name for region in analysed("twice").regions]
    assert len(set(names)) == len(names)


def test_a_concatenation_of_a_whole_split_is_a_region() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.last = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Any:
            return self.last(torch.cat(self.first(x).split([3, 5], 1), 1)).mean((2, 3))

    regions = analyse(Shuffled(), (image(side=4),)).regions
    assert "cat" in [name for region in regions for name in region.nodes]


def after_a_convolution(follows: Callable[[Any, Tensor], Tensor]) -> tuple[str, ...]:
    """Nodes of a convolution's region, which this follows."""

    def body(net: Any, x: Tensor) -> Any:
        return net.fc(F.max_pool2d(follows(net, net.conv(x)), 2).mean((2, 3)))

    layers = {
        "norm": nn.BatchNorm2d(8),
        "group": nn.GroupNorm(2, 8),
        "pool": nn.MaxPool2d(3, 1, 1),
        "drop": nn.Dropout(),
        "shift": parameter(8),
    }
    model = net(body, conv=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(8, 5), **layers)
    regions = {region.name: region.nodes for region in analyse(model, (image(),)).regions}
    return regions["conv"]


@pytest.mark.parametrize(
    ("follows", "fused"),
    [
        (lambda net, x: net.norm(x), ("norm",)),
        (
            lambda net, x: F.batch_norm(x, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias),
            ("batch_norm",),
        ),
        (lambda net, x: F.relu(x), ("relu",)),
        (lambda net, x: F.prelu(x, net.shift), ("prelu",)),
        (lambda net, x: x.clamp(0, 6) * 2, ("clamp", "mul")),
        (lambda net, x: net.group(x), ()),
        (lambda net, x: net.pool(x), ()),
        (lambda net, x: x.softmax(1), ()),
        (lambda net, x: F.layer_norm(x, (8, 8)), ()),
        (lambda net, x: F.normalize(x), ()),
        (lambda net, x: x.cumsum(2), ()),
        (lambda net, x: x.sort(2)[0], ()),
        (lambda net, x: x.flip(2), ()),
        (lambda net, x: x.roll(1, 2), ()),
        (lambda net, x: torch.logcumsumexp(x, 2), ()),
        (lambda net, x: net.drop(x), ()),
        (lambda net, x: x.transpose(2, 3), ()),
    ],
)
def test_what_works_entry_by_entry_is_fused_with_what_is_before(
    follows: Callable[[Any, Tensor], Tensor], fused: tuple[str, ...]
) -> None:
    assert after_a_convolution(follows) == ("conv", *fused)
