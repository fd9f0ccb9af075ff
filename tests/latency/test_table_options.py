"""Sizes on a table's grid, and only together where the table has them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import NothingToPruneError, TargetError
from mdp_fx.latency.convolution_table import ConvolutionTable
from mdp_fx.latency.table_options import region_lookups, table_options, thinned
from mdp_fx.latency.table_target import TableTarget
from mdp_fx.passes.choices import Analysis, choose
from mdp_fx.passes.cost_regions import CostRegion
from mdp_fx.pipeline import analyse
from tests.latency.convolutions import entry, linear_seconds
from tests.zoo import image


class Chain(nn.Module):
    """Two convolutions and a linear layer with a hidden one: groups a (32), b (64), hidden (16)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 64, 1)
        self.hidden = nn.Linear(64, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


class Joined(nn.Module):
    """What two convolutions give is concatenated: an axis of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 16, 3, padding=1)
        self.b = nn.Conv2d(8, 16, 3, padding=1)
        self.c = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        both = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        return self.head(torch.relu(self.c(both)).mean((2, 3)))


@pytest.fixture(scope="module")
def chain() -> Analysis:
    return analyse(Chain().eval(), image(8, batch=4), step=8)


Grid = tuple[Sequence[int], Sequence[int]]


def table(first: Grid, second: Grid, kernel: int = 1, without: Sequence[tuple[int, int]] = ()) -> TableTarget:
    """A grid of 3 x 3 convolutions, and one of another kernel with holes; bilinear."""
    rows = [entry(i, o, linear_seconds(i, o)) for i in first[0] for o in first[1]]
    places = [(i, o) for i in second[0] for o in second[1] if (i, o) not in without]
    rows += [entry(i, o, linear_seconds(i, o), kernel=kernel) for i, o in places]
    return TableTarget(ConvolutionTable("t", rows), 1, name="table:t.csv")


def region(analysis: Analysis, name: str) -> CostRegion:
    return next(each for each in analysis.regions if each.name == name)


def offered(analysis: Analysis, target: TableTarget, step: int = 8, **options: Any) -> dict[str, tuple[int, ...]]:
    analysis = replace(analysis, step=step)
    found = table_options(analysis, choose(analysis, **options), target)
    return {each.name: each.sizes for each in found.choices.dimensions}


def test_sizes_lie_on_the_grid_of_all_that_see_them(chain: Analysis) -> None:
    target = table(((8,), (8, 16, 24, 32)), ((8, 24, 32), (16, 48, 64)))
    # a is made by the first grid's outputs, and read by the second's inputs.
    assert offered(chain, target) == {"a": (8, 24, 32), "b": (16, 48, 64), "hidden": (8, 16)}
    assert offered(chain, target, step=16) == {"a": (32,), "b": (16, 48, 64), "hidden": (16,)}
    assert offered(chain, target, step=3) == {"a": (24, 32), "b": (48, 64), "hidden": (3, 6, 9, 12, 15, 16)}


def test_groups_that_the_table_holds_are_told(chain: Analysis) -> None:
    target = table(((8,), (8, 32)), ((32,), (16, 64)))
    found = table_options(chain, choose(chain), target)
    assert found.held == ("a",)
    assert {each.name: each.sizes for each in found.choices.dimensions}["a"] == (32,)


def test_patterns_still_hold(chain: Analysis) -> None:
    target = table(((8,), (8, 16, 24, 32)), ((8, 24, 32), (16, 48, 64)))
    found = table_options(chain, choose(chain, keep=["a"]), target)
    assert found.choices.held == {"a"}
    lookups = region_lookups(chain, found.choices, target)
    assert lookups["a"][0] == ((32,),)
    assert set(lookups["b"][0]) == {(32,), (16, 48, 64)}


def test_sizes_that_are_not_there_together_are_not_offered_together(chain: Analysis) -> None:
    # The smallest cell around (8, 16) lacks a corner: the deeper cut of the two, 16 of 64, goes.
    target = table(((8,), (8, 16, 32)), ((8, 16, 32), (16, 32, 64)), without=[(8, 16)])
    assert offered(chain, target) == {"a": (8, 16, 32), "b": (32, 64), "hidden": (8, 16)}
    # Here (8, 32) is missing too: 8 of 32 is a deeper cut than 32 of 64.
    target = table(((8,), (8, 16, 32)), ((8, 16, 32), (16, 32, 64)), without=[(8, 16), (8, 32)])
    assert offered(chain, target) == {"a": (16, 32), "b": (32, 64), "hidden": (8, 16)}


def test_the_tables_of_regions_are_what_the_table_says(chain: Analysis) -> None:
    target = table(((8,), (8, 16, 24, 32)), ((8, 24, 32), (16, 48, 64)))
    found = table_options(chain, choose(chain), target)
    lookups = region_lookups(chain, found.choices, target)
    points, seconds = lookups["b"]
    (outs, ins) = points if region(chain, "b").roles == ("out", "in") else points[::-1]
    assert (ins, outs) == ((8, 24, 32), (16, 48, 64))
    expected = np.array([[linear_seconds(i, o) for i in ins] for o in outs])
    np.testing.assert_allclose(seconds, expected if points == (outs, ins) else expected.T)
    assert not lookups["hidden"][1].any()


@pytest.fixture(scope="module")
def joined() -> Analysis:
    return analyse(Joined().eval(), image(8, batch=4), step=4)


def test_an_axis_of_many_dimensions_is_looked_up_where_the_table_bends(joined: Analysis) -> None:
    target = table(((8,), (4, 8, 12, 16)), ((4, 12, 20, 32), (8, 16)), kernel=1)
    found = table_options(joined, choose(joined), target)
    sizes = {each.name: [size for size in each.sizes if size] for each in found.choices.dimensions}
    assert sizes == {"a": [4, 8, 12, 16], "b": [4, 8, 12, 16], "c": [8, 16]}
    points, _ = region_lookups(joined, found.choices, target)["c"]
    # From one branch alone, at its smallest, to both; 8 and 16 are where the other channels bend.
    assert set(points) == {(4, 8, 12, 16, 20, 32), (8, 16)}


def test_an_axis_of_many_dimensions_stays_inside_of_the_table(joined: Analysis) -> None:
    target = table(((8,), (4, 8, 12, 16)), ((12, 32), (8, 16)), kernel=1)
    found = table_options(joined, choose(joined), target)
    sizes = {each.name: [size for size in each.sizes if size] for each in found.choices.dimensions}
    assert min(sizes["a"][0], sizes["b"][0]) == 12
    points, _ = region_lookups(joined, found.choices, target)["c"]
    assert {axis[0] for axis in points} == {8, 12}


def test_a_fill_offers_every_size_where_the_table_has_nothing(chain: Analysis) -> None:
    rows = [entry(8, o, linear_seconds(8, o)) for o in (8, 16, 32)]
    bare = TableTarget(ConvolutionTable("t", rows), 1, name="table:t.csv")
    with pytest.raises(TargetError, match=r"outside of the table of table:t\.csv: b: 32 -> 64 channels"):
        offered(chain, bare)
    filled = TableTarget(ConvolutionTable("t", rows), 1, name="table:t.csv", fill="analytic")
    # a is made by a convolution of the table, b by an estimate alone.
    assert offered(chain, filled) == {"a": (8, 16, 32), "b": tuple(range(8, 65, 8)), "hidden": (8, 16)}


def test_nothing_is_left_to_prune(chain: Analysis) -> None:
    target = table(((8,), (32,)), ((32,), (64,)))
    with pytest.raises(NothingToPruneError, match=r"the table of table:t\.csv has no smaller size .* at --step 16"):
        offered(chain, target, step=16)


def test_thinning_keeps_the_ends() -> None:
    assert thinned(range(5), 5) == (0, 1, 2, 3, 4)
    found = thinned(range(100), 7)
    assert (len(found), found[0], found[-1]) == (7, 0, 99)
    assert sorted(set(found)) == list(found)
