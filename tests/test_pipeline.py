"""What may be pruned: patterns, steps, and the text that says why nothing may."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.errors import InputError, NothingToPruneError, RecipeError
from mdp_fx.passes.build_space import build_space
from mdp_fx.passes.choices import Analysis, Choices, choose
from mdp_fx.pipeline import Stopwatch, analyse, as_inputs, rewrite
from tests.zoo import ZOO, Head, Residual, conv_bn, image


class Stages(nn.Module):
    """A stem and two stages of two residual blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.one = nn.Sequential(Residual(16, 12), Residual(16, 12))
        self.widen = conv_bn(16, 32, stride=2)
        self.two = nn.Sequential(Residual(32, 20), Residual(32, 20))
        self.head = Head(32)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.two(F.relu(self.widen(self.one(F.relu(self.stem(x)))))))


@pytest.fixture(scope="module")
def stages() -> Analysis:
    return analyse(Stages(), image(), step=4)


GROUPS = {"stem.0", "one.0.first.0", "one.1.first.0", "widen.0", "two.0.first.0", "two.1.first.0"}
BLOCKS = {"one.0", "one.1", "two.0", "two.1"}


def open_groups(choices: Choices) -> set[str]:
    return {d.name for d in choices.dimensions if d.name not in choices.held}


def test_without_patterns_everything_is_open(stages: Analysis) -> None:
    choices = choose(stages)
    assert open_groups(choices) == GROUPS
    assert choices.blocks == BLOCKS
    assert [(d.name, d.dense) for d in choices.dimensions] == [(g.name, g.size) for g in stages.groups]
    assert {d.name: d.sizes for d in choices.dimensions}["one.0.first.0"] == (4, 8, 12)


@pytest.mark.parametrize(
    ("keep", "groups", "blocks"),
    [
        (["one"], GROUPS - {"stem.0", "one.0.first.0", "one.1.first.0"}, {"two.0", "two.1"}),
        (["one.*"], GROUPS - {"stem.0", "one.0.first.0", "one.1.first.0"}, {"two.0", "two.1"}),
        (["two.0"], GROUPS - {"widen.0", "two.0.first.0"}, BLOCKS - {"two.0"}),
        (["two.0.first"], GROUPS - {"two.0.first.0"}, BLOCKS - {"two.0"}),
        (["stem"], GROUPS - {"stem.0"}, BLOCKS),
        # What only reads or normalises a group does not make it.
        (["stem.1"], GROUPS, BLOCKS),
        (["head"], GROUPS, BLOCKS),
        (["stem", "widen"], GROUPS - {"stem.0", "widen.0"}, BLOCKS),
        (["*.first.0"], {"stem.0", "widen.0"}, set()),
        (["two.?.first.0"], GROUPS - {"two.0.first.0", "two.1.first.0"}, {"one.0", "one.1"}),
    ],
)
def test_kept_modules_hold_their_groups_and_blocks(
    stages: Analysis, keep: list[str], groups: set[str], blocks: set[str]
) -> None:
    choices = choose(stages, keep=keep)
    assert open_groups(choices) == groups
    assert choices.blocks == blocks


@pytest.mark.parametrize(
    ("only", "groups", "blocks"),
    [
        (["one"], {"one.0.first.0", "one.1.first.0"}, {"one.0", "one.1"}),
        (["one.0"], {"one.0.first.0"}, {"one.0"}),
        (["one.0", "two.1"], {"one.0.first.0", "two.1.first.0"}, {"one.0", "two.1"}),
        # A group is open only where all that makes it is.
        (["stem", "one"], {"stem.0", "one.0.first.0", "one.1.first.0"}, {"one.0", "one.1"}),
        (["*.first.*"], {"one.0.first.0", "one.1.first.0", "two.0.first.0", "two.1.first.0"}, set()),
        (["*"], GROUPS, BLOCKS),
    ],
)
def test_only_matched_modules_are_open(stages: Analysis, only: list[str], groups: set[str], blocks: set[str]) -> None:
    choices = choose(stages, only=only)
    assert open_groups(choices) == groups
    assert choices.blocks == blocks


def test_keep_wins_over_only(stages: Analysis) -> None:
    choices = choose(stages, keep=["one.1"], only=["one"])
    assert open_groups(choices) == {"one.0.first.0"}
    assert choices.blocks == {"one.0"}


def test_a_space_with_kept_modules_can_be_built(stages: Analysis) -> None:
    space = build_space(stages, choose(stages, keep=["stem"]), (), {})
    assert space.fixed == {"stem.0": 16}


def test_a_parameter_is_kept_by_its_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 3))
            self.hidden = nn.Linear(16, 16)
            self.last = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Any:
            return self.last(F.relu(self.hidden(F.linear(x, self.weight))))

    choices = choose(analyse(Own(), torch.randn(2, 3), step=4), keep=["weight"])
    assert choices.held == {"weight"}


@pytest.mark.parametrize("step", [0, -8, 2.0, True])
def test_a_step_that_is_none_is_refused(step: Any) -> None:
    with pytest.raises(InputError, match=rf"^step is {step}; it must be an int of at least 1$"):
        analyse(Stages(), image(), step=step)


@pytest.mark.parametrize("where", ["keep", "only"])
def test_a_pattern_that_matches_nothing_is_refused(stages: Analysis, where: str) -> None:
    patterns: dict[str, list[str]] = {where: ["stem", "three.*"]}
    with pytest.raises(InputError) as caught:
        choose(stages, **patterns)
    assert str(caught.value) == "no module of the network matches 'three.*': see `mdp-fx inspect` for their names"


def test_a_group_that_is_no_larger_than_the_step_has_one_size(stages: Analysis) -> None:
    sizes = {d.name: d.sizes for d in choose(replace(stages, step=16)).dimensions}
    assert sizes["stem.0"] == (16,)
    assert sizes["one.0.first.0"] == (12,)
    assert sizes["two.0.first.0"] == (16, 20)


class Plain(nn.Module):
    """Two layers without a shortcut; what lies between is given by name."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.last = nn.Linear(6, 2)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        if self.between == "one layer":
            return self.first(x)
        x = self.first(x)
        return self.last(x.softmax(-1) if self.between == "softmax" else F.relu(x))


class NoLayer(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return F.relu(x)


@pytest.mark.parametrize(
    ("model", "step", "options", "message"),
    [
        (NoLayer(), 2, {}, "nothing to prune: the network has no layer with prunable channels"),
        (
            Plain("one layer"),
            2,
            {},
            "nothing to prune: every channel is frozen, as first is (output of the network)",
        ),
        (
            Plain("softmax"),
            2,
            {},
            "nothing to prune: every channel is frozen, as first is (softmax over the axis at softmax (node softmax))",
        ),
        (
            Plain("relu"),
            8,
            {},
            "nothing to prune: the largest channel group has 6 units, --step 8 offers no smaller size",
        ),
        (
            Plain("relu"),
            2,
            {"keep": ["first"]},
            "nothing is left to prune: --keep and --only exclude every channel group and block",
        ),
        (
            Plain("relu"),
            2,
            {"only": ["last"]},
            "nothing is left to prune: --keep and --only exclude every channel group and block",
        ),
    ],
)
def test_nothing_to_prune_says_why(model: nn.Module, step: int, options: dict[str, Any], message: str) -> None:
    analysis = analyse(model, torch.randn(2, 3), step=step)
    with pytest.raises(NothingToPruneError) as caught:
        choose(analysis, **options)
    assert str(caught.value) == message


def test_removable_blocks_alone_are_something_to_prune(stages: Analysis) -> None:
    choices = choose(replace(stages, step=64))
    assert all(len(d.sizes) == 1 for d in choices.dimensions)
    assert choices.blocks == BLOCKS


def test_a_batch_of_one_costs_half_of_two() -> None:
    model = Stages()
    one, two = (analyse(model, image(batch=batch)) for batch in (1, 2))
    assert [(g.name, g.size) for g in one.groups] == [(g.name, g.size) for g in two.groups]
    assert one.blocks == two.blocks
    assert one.graph.batch is not None
    for single, double in zip(one.regions, two.regions, strict=True):
        assert single.key != double.key
        assert 2 * single.macs(single.dense_sizes) == double.macs(double.dense_sizes)
        _, inputs = single.build(single.dense_sizes)
        assert all(value.shape[0] == 1 for value in inputs)


def test_a_batch_that_the_network_fixes_is_traced_as_it_is() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.last = nn.Linear(8, 2)
            self.row = nn.Buffer(torch.randn(1, 8))

        def forward(self, x: Tensor) -> Any:
            # Rows are joined: the batch is bound to a constant.
            return self.last(F.relu(self.first(x)).reshape(1, 8) + self.row)

    model = Fixed().eval()
    x = torch.randn(1, 3)
    analysis = analyse(model, x)
    assert analysis.graph.batch is None
    assert analysis.graph.example_inputs[0].shape == (1, 3)
    slim = rewrite(analysis, {"first": [0, 5]}, ())
    with torch.no_grad():
        assert slim(x).shape == (1, 2)


def test_inputs_may_be_given_bare_or_as_a_sequence() -> None:
    x, v = image(), torch.randn(2, 4)
    assert as_inputs(x) == (x,)
    assert as_inputs([x, v]) == (x, v)
    assert as_inputs((x,)) == (x,)


def test_inputs_without_a_tensor_are_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.row = nn.Parameter(torch.randn(1, 3))

        def forward(self, flag: bool) -> Any:
            return self.layer(self.row)

    with pytest.raises(InputError, match=r"^the example inputs hold no tensor with a batch axis$"):
        analyse(Constant(), (True,))


def test_analysing_twice_finds_the_same(stages: Analysis) -> None:
    again = analyse(Stages(), image())
    assert [(g.name, g.size, g.modules) for g in again.groups] == [(g.name, g.size, g.modules) for g in stages.groups]
    assert again.blocks == stages.blocks
    assert [(r.name, r.key, r.nodes) for r in again.regions] == [(r.name, r.key, r.nodes) for r in stages.regions]


def test_stages_are_announced_in_order() -> None:
    told: list[str] = []
    analyse(Stages(), image(), stage=told.append)
    assert told
    assert len(told) == len(set(told))
    assert all(told)


@pytest.mark.parametrize("training", [False, True])
def test_a_slim_network_has_the_asked_mode(stages: Analysis, training: bool) -> None:
    slim = rewrite(stages, {"stem.0": list(range(8))}, ["one.0"], training=training)
    assert {module.training for module in slim.modules()} == {training}
    assert slim.get_submodule("stem.0").out_channels == 8
    assert "one.0" not in dict(slim.named_modules())


def test_rewriting_what_is_not_there_is_refused(stages: Analysis) -> None:
    with pytest.raises(RecipeError, match="no channel group 'x'"):
        rewrite(stages, {"x": [0]}, ())
    with pytest.raises(RecipeError, match="no removable block 'x'"):
        rewrite(stages, {}, ["x"])


def test_the_stopwatch_adds_up_stages_by_name() -> None:
    told: list[str] = []
    watch = Stopwatch(told.append)
    for name in ("solve", "measure", "solve", ""):
        watch(name)
        time.sleep(0.01)
    assert told == ["solve", "measure", "solve"]
    assert list(watch.seconds) == ["solve", "measure"]
    assert 0.02 <= watch.seconds["solve"] < 1
    assert 0.01 <= watch.seconds["measure"] < 1


@pytest.mark.parametrize("specimen", [s for s in ZOO if s.blocks], ids=str)
def test_keeping_a_block_keeps_its_modules(specimen: Any) -> None:
    analysis = analyse(specimen.make(), specimen.inputs())
    modules = {name for name, _ in analysis.graph.module.named_modules()}
    named = [block for block in analysis.blocks.removable if block.name in modules]
    for block in named:
        choices = choose(analysis, keep=[block.name])
        assert block.name not in choices.blocks
        around = {other.name for other in analysis.blocks.removable if set(block.nodes) <= set(other.nodes)}
        assert choices.blocks.isdisjoint(around)
