"""Channel groups: names, members with axis and units, frozen axes with their reasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.channel_groups import FrozenAxis, find_channel_groups, find_frozen, owner
from mdp_fx.passes.choices import Analysis
from mdp_fx.pipeline import analyse, rewrite
from tests.zoo import ZOO, Specimen, image


def found(name: str) -> Analysis:
    specimen = next(s for s in ZOO if s.name == name)
    return analyse(specimen.make(), specimen.inputs())


def mentions(name: str) -> dict[str, dict[tuple[str, int], list[int]]]:
    """By group, what its members say: units by (tensor, axis)."""
    return {
        group.name: {(member.tensor, member.axis): member.units.tolist() for member in group.members}
        for group in found(name).groups
    }


def bn(name: str, units: list[int]) -> dict[tuple[str, int], list[int]]:
    return {(f"{name}.{part}", 0): units for part in ("weight", "bias", "running_mean", "running_var")}


def up_to(count: int) -> list[int]:
    return list(range(count))


def test_a_residual_trunk_is_one_group() -> None:
    trunk, inner = up_to(16), {"one": up_to(12), "two": up_to(20)}
    expected: dict[str, dict[tuple[str, int], list[int]]] = {
        "stem.0": {("stem.0.weight", 0): trunk, **bn("stem.1", trunk), ("head.fc.weight", 1): trunk}
    }
    for block, units in inner.items():
        expected["stem.0"] |= {
            (f"{block}.first.0.weight", 1): trunk,
            (f"{block}.second.0.weight", 0): trunk,
            **bn(f"{block}.second.1", trunk),
        }
        expected[f"{block}.first.0"] = {
            (f"{block}.first.0.weight", 0): units,
            **bn(f"{block}.first.1", units),
            (f"{block}.second.0.weight", 1): units,
        }
    assert mentions("plain_residual") == expected


def test_a_flattened_map_repeats_each_unit() -> None:
    groups = mentions("vgg")
    assert list(groups) == ["features.0", "features.3", "classifier.0"]
    assert groups["features.3"] == {
        ("features.3.weight", 0): up_to(6),
        ("features.3.bias", 0): up_to(6),
        ("classifier.0.weight", 1): [unit for unit in range(6) for _ in range(9)],
    }


def test_a_concatenation_mentions_each_part_at_its_place() -> None:
    groups = mentions("dense_concat")
    assert groups["stem"]["norm3.weight", 0] == [*up_to(8), *[-1] * 12]
    assert groups["grow1"]["norm3.weight", 0] == [*[-1] * 8, *up_to(6), *[-1] * 6]
    assert groups["grow2"]["norm3.weight", 0] == [*[-1] * 14, *up_to(6)]
    assert groups["grow1"]["grow2.weight", 1] == [*[-1] * 8, *up_to(6)]
    assert ("grow2.weight", 1) not in groups["grow2"]


def test_a_grouped_convolution_has_whole_groups_and_channels_of_each() -> None:
    groups = mentions("grouped")
    assert list(groups) == ["stem.0", "stem.0#2", "grouped.0", "point.0"]
    whole, inside, out = groups["stem.0"], groups["stem.0#2"], groups["grouped.0"]
    assert whole["stem.0.weight", 0] == [unit for unit in range(4) for _ in range(3)]
    assert inside["stem.0.weight", 0] == up_to(3) * 4
    assert inside["grouped.0.weight", 1] == up_to(3)
    assert whole["grouped.0.weight", 0] == [unit for unit in range(4) for _ in range(5)]
    assert out["grouped.0.weight", 0] == up_to(5) * 4
    assert whole["point.0.weight", 1] == [unit for unit in range(4) for _ in range(5)]
    assert out["point.0.weight", 1] == up_to(5) * 4


def test_a_depthwise_multiplier_is_a_group_of_its_own() -> None:
    groups = mentions("depthwise")
    assert {name: max(max(units) for units in members.values()) + 1 for name, members in groups.items()} == {
        "stem.0": 8,
        "multiply.0": 3,
        "point.0": 10,
    }
    assert groups["multiply.0"]["multiply.0.weight", 0] == up_to(3) * 8
    assert groups["stem.0"]["multiply.0.weight", 0] == [unit for unit in range(8) for _ in range(3)]


def test_a_shuffle_reads_the_units_in_another_order() -> None:
    groups = mentions("channel_shuffle")
    assert groups["stem.0"]["stem.0.weight", 0] == up_to(12)
    assert groups["stem.0"]["point.0.weight", 1] == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]


def test_a_tied_weight_is_listed_once_and_couples_both_sides() -> None:
    groups = mentions("tied")
    assert list(groups["left"]) == [
        ("left.weight", 0),
        ("left.bias", 0),
        ("up.weight", 1),
        ("right.weight", 0),
        ("right.bias", 0),
    ]
    assert groups["up"]["out.weight", 1] == up_to(14) * 2


def test_one_tensor_may_mention_a_group_on_both_axes() -> None:
    groups = mentions("twice")
    assert list(groups) == ["stem"]
    assert groups["stem"]["shared.weight", 0] == groups["stem"]["shared.weight", 1] == up_to(9)


def test_padded_channels_have_names_with_a_suffix() -> None:
    groups = mentions("option_a")
    assert list(groups) == ["stem.0", "first.0", "second.0", "second.0#2"]
    assert groups["second.0"]["second.0.weight", 0] == [*up_to(4), *[-1] * 12]
    assert groups["stem.0"]["second.0.weight", 0] == [*[-1] * 4, *up_to(8), *[-1] * 4]
    assert groups["second.0#2"]["second.0.weight", 0] == [*[-1] * 12, *up_to(4)]


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_members_and_groups_are_consistent(specimen: Specimen) -> None:
    graph = analyse(specimen.make(), specimen.inputs()).graph
    groups = find_channel_groups(graph)
    stored = {name: tensor for name, tensor, _ in graph.stored()}
    assert len({group.name for group in groups}) == len(groups)
    assert len({group.dim for group in groups}) == len(groups)
    modules = dict(graph.module.named_modules())
    for group in groups:
        assert group.name.partition("#")[0] in modules
        assert group.modules == tuple(dict.fromkeys(owner(member.tensor) for member in group.members))
        for member in group.members:
            assert member.units.shape == (stored[member.tensor].shape[member.axis],)
            assert set(member.units.tolist()) - {-1} == set(range(group.size))


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_a_second_look_finds_the_same(specimen: Specimen) -> None:
    graph = analyse(specimen.make(), specimen.inputs()).graph

    def seen() -> list[tuple[Any, ...]]:
        return [
            (group.name, group.dim, [(m.tensor, m.axis, m.units.tolist()) for m in group.members])
            for group in find_channel_groups(graph)
        ]

    assert seen() == seen()
    assert find_frozen(graph) == find_frozen(graph)


@pytest.mark.parametrize("name", ["plain_residual", "grouped", "dense_concat", "splits", "option_a"])
def test_a_slim_network_has_the_same_groups_smaller(name: str) -> None:
    specimen = next(s for s in ZOO if s.name == name)
    model, inputs = specimen.make().eval(), specimen.inputs()
    dense = analyse(model, inputs)
    kept = {group.name: list(range(0, group.size, 2)) for group in dense.groups}
    slim = analyse(rewrite(dense, kept, ()), inputs)
    expected = [(group.name, len(kept[group.name])) for group in dense.groups]
    # A dimension of one unit is a constant: only the larger ones are groups again.
    assert [size for _, size in expected if size > 1] == [group.size for group in slim.groups]
    assert [r.reason for r in find_frozen(slim.graph)] == [r.reason for r in find_frozen(dense.graph)]


class Net(nn.Module):
    """Two convolutions with something between them, given."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.second(self.between(self.first(x))).mean((2, 3))


OUTPUT = FrozenAxis("second", 4, "output of the network")


@pytest.mark.parametrize(
    ("between", "frozen"),
    [
        (F.relu, None),
        (lambda x: x.softmax(1), "softmax over the axis at softmax (node softmax)"),
        (lambda x: x - x.mean(1, keepdim=True), None),
        (lambda x: x - x.sigmoid().mean(1, keepdim=True), "reduced at mean (node mean)"),
        (lambda x: x[:, ::2].repeat_interleave(2, 1), "strided or empty slice at getitem (node getitem)"),
        (lambda x: torch.logcumsumexp(x, 1), "no typing rule for logcumsumexp at logcumsumexp (node logcumsumexp)"),
        (lambda x: torch.cumsum(x, 1), "taken in order at cumsum (node cumsum)"),
        (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2), None),
        (
            lambda x: F.local_response_norm(x, 3),
            "neighbouring channels normalised together at local_response_norm (node local_response_norm)",
        ),
        (lambda x: x * x.select(1, 0).unsqueeze(1), "one entry selected at select (node select)"),
    ],
)
def test_frozen_axes_say_why(between: Callable[[Tensor], Tensor], frozen: str | None) -> None:
    analysis = analyse(Net(between), (image(side=4),))
    rows = find_frozen(analysis.graph)
    if frozen is None:
        assert rows == (OUTPUT,)
        assert [group.name for group in analysis.groups] == ["first"]
        return
    row, last = rows
    assert (row.where, row.size, last) == ("first", 8, OUTPUT)
    assert row.reason == frozen
    assert "first" not in {group.name for group in analysis.groups}


def test_parts_of_an_axis_may_be_frozen() -> None:
    def part(x: Tensor) -> Tensor:
        return torch.cat([x[:, :5], torch.cumsum(x[:, 5:], 1)], 1)

    analysis = analyse(Net(part), (image(side=4),))
    assert [(group.name, group.size) for group in analysis.groups] == [("first", 5)]
    row, last = find_frozen(analysis.graph)
    assert (row.where, row.size, row.reason.partition(" at ")[0]) == ("first", 3, "taken in order")
    assert last == OUTPUT


def test_owner_of_a_tensor() -> None:
    assert owner("layer1.0.conv1.weight") == "layer1.0.conv1"
    assert owner("scale") == "scale"


def test_units_are_indices_of_numpy() -> None:
    (group, *_) = found("plain_residual").groups
    assert all(member.units.dtype == np.int64 for member in group.members)
