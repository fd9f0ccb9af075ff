"""Dropped blocks: the other operand flows on, nothing dead stays, and the numerics are those of the zeroed network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.errors import RecipeError
from mdp_fx.graph.trace import trace
from mdp_fx.passes.concat_branches import CONCATENATIONS, joined_by
from mdp_fx.passes.drop_blocks import chosen_blocks, drop_blocks
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import error, reference
from tests.zoo import ZOO, PlainResidual, Residual, image

Body = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Layers of one width; the forward is given."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 8, 1)
        self.b = nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def chain(net: Net, x: Tensor) -> Any:
    x = net.stem(x)
    return net.head((net.a(x) + net.b(x)) + net.c(x))


def in_a_row(net: Net, x: Tensor) -> Any:
    x = net.stem(x)
    x = x + net.a(x)
    x = x + net.b(x)
    return net.head(F.relu(x + net.c(x)))


def nested(net: Net, x: Tensor) -> Any:
    x = net.stem(x)
    y = net.a(x)
    y = y + net.b(y)
    return net.head(x + net.c(y))


def network(body: Body) -> nn.Module:
    torch.manual_seed(0)
    return Net(body).double().eval()


def dropped(body: Body, *removed: str) -> tuple[fx.GraphModule, float]:
    """The network without blocks, and its difference to the reference."""
    inputs = (image(side=4).double(),)
    analysis = analyse(network(body), inputs)
    slim = rewrite(analysis, {}, removed)
    with torch.no_grad():
        return slim, error(reference(analysis, {}, removed).run(*inputs), slim(*inputs))


@pytest.mark.parametrize(
    ("body", "removed", "left"),
    [
        (in_a_row, (), ["stem", "a", "b", "c", "head"]),
        (in_a_row, ("a",), ["stem", "b", "c", "head"]),
        (in_a_row, ("b",), ["stem", "a", "c", "head"]),
        (in_a_row, ("c", "a"), ["stem", "b", "head"]),
        (in_a_row, ("c", "b", "a"), ["stem", "head"]),
        (nested, ("b",), ["stem", "a", "c", "head"]),
        (nested, ("add_1",), ["stem", "head"]),
        (nested, ("add_1", "b"), ["stem", "head"]),
        (nested, ("b", "add_1"), ["stem", "head"]),
        (chain, ("a",), ["stem", "b", "c", "head"]),
        (chain, ("add_1",), ["stem", "c", "head"]),
        (chain, ("add_1", "a"), ["stem", "c", "head"]),
        (chain, ("c", "b"), ["stem", "a", "head"]),
    ],
)
def test_what_is_left_and_what_it_computes(body: Body, removed: tuple[str, ...], left: list[str]) -> None:
    slim, difference = dropped(body, *removed)
    assert difference <= 1e-12
    assert [str(node.target) for node in slim.graph.find_nodes(op="call_module")] == left
    assert [name for name, _ in slim.named_children()] == left
    slim.graph.lint()


def test_an_outer_block_goes_with_all_blocks_inside() -> None:
    slim, difference = dropped(chain, "add_1", "a", "b")
    assert difference <= 1e-12
    assert [name for name, _ in slim.named_children()] == ["stem", "c", "head"]


def test_nothing_to_drop_leaves_the_module_as_it_is() -> None:
    module = trace(network(in_a_row), (image(side=4).double(),)).module
    code = module.code
    assert drop_blocks(module, ()) is module
    assert module.code == code


def test_what_nobody_reads_is_swept_up_without_blocks_too() -> None:
    def unread(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        net.a(x)
        return net.head(x)

    module = trace(network(unread), (image(side=4).double(),)).module
    slim = drop_blocks(module, ())
    assert slim is not module
    assert [name for name, _ in slim.named_children()] == ["stem", "head"]
    assert drop_blocks(slim, ()) is slim


def test_the_mode_is_kept() -> None:
    for training in (False, True):
        analysis = analyse(network(in_a_row), (image(side=4).double(),))
        module = analysis.graph.module.train(training)
        slim = drop_blocks(module, analysis.blocks.removable[:1])
        assert slim.training is training
        assert type(slim).__name__ == type(module).__name__


def test_a_slim_network_has_the_other_blocks_only() -> None:
    torch.manual_seed(0)
    model = PlainResidual().eval()
    analysis = analyse(model, (image(),))
    slim = rewrite(analysis, {}, ["one"])
    again = analyse(slim, (image(),))
    assert [block.name for block in again.blocks.removable] == ["two"]
    assert not any(name.startswith("one") for name, _ in slim.named_parameters())
    # The trunk's group no longer mentions the removed block.
    assert not any("one" in module for group in again.groups for module in group.modules)


def test_the_dense_graph_keeps_its_blocks() -> None:
    analysis = analyse(PlainResidual().eval(), (image(),))
    code, nodes = analysis.graph.module.code, len(analysis.graph.module.graph.nodes)
    rewrite(analysis, {}, ["one", "two"])
    assert (analysis.graph.module.code, len(analysis.graph.module.graph.nodes)) == (code, nodes)


def test_blocks_are_looked_up_in_the_given_order() -> None:
    blocks = analyse(network(in_a_row), (image(side=4).double(),)).blocks
    assert [block.name for block in chosen_blocks(blocks, ["c", "a"])] == ["c", "a"]
    assert chosen_blocks(blocks, []) == ()


def test_an_unknown_block_is_refused() -> None:
    blocks = analyse(network(in_a_row), (image(side=4).double(),)).blocks
    with pytest.raises(RecipeError, match=r"^the network has no removable block 'd': the recipe belongs to another "):
        chosen_blocks(blocks, ["a", "d"])


def test_all_operands_of_one_addition_are_refused() -> None:
    specimen = next(s for s in ZOO if s.exclusive and s.name == "downsample")
    blocks = analyse(specimen.make(), specimen.inputs()).blocks
    with pytest.raises(RecipeError, match=r"^blocks add and shortcut add to one another: one of them must stay$"):
        chosen_blocks(blocks, ["shortcut", "add"])


def joins(module: fx.GraphModule) -> list[list[str]]:
    """What is concatenated, by concatenation."""
    return [[part.name for part in joined_by(node)] for node in module.graph.nodes if node.target in CONCATENATIONS]


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        (["rows"], [["point_1", "wide_1", "columns", "project_1"], ["shrink_1", "max_pool2d"]]),
        (["cat_1"], [["point_1", "wide_1", "project_1"], ["shrink_1", "max_pool2d"]]),
        (["rows", "cat_1"], [["point_1", "wide_1", "project_1"], ["shrink_1", "max_pool2d"]]),
        (["project", "wide.0", "point"], [["rows", "columns"], ["shrink_1", "max_pool2d"]]),
        (["cat_1", "project", "wide.0", "shrink"], []),
    ],
)
def test_a_concatenation_loses_operands_and_goes_where_one_is_left(removed: list[str], left: list[list[str]]) -> None:
    torch.manual_seed(0)
    specimen = next(s for s in ZOO if s.name == "inception")
    inputs = tuple(value.double() for value in specimen.inputs())
    analysis = analyse(specimen.make().double().eval(), inputs)
    slim = rewrite(analysis, {}, removed)
    assert joins(slim) == left
    with torch.no_grad():
        assert error(reference(analysis, {}, removed).run(*inputs), slim(*inputs)) <= 1e-12


def test_all_that_gives_an_axis_its_entries_is_refused() -> None:
    specimen = next(s for s in ZOO if s.name == "inception")
    blocks = analyse(specimen.make(), specimen.inputs()).blocks
    with pytest.raises(RecipeError, match=r"^blocks rows and columns leave nothing together: one of them must stay$"):
        chosen_blocks(blocks, ["columns", "rows"])
    assert [block.name for block in chosen_blocks(blocks, ["columns", "rows", "cat_1"])] == ["cat_1"]


def test_removing_an_earlier_block_passes_on_what_a_later_one_kept() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.blocks = nn.Sequential(*(Residual(8, 6) for _ in range(4)))

        def forward(self, x: Tensor) -> Any:
            return self.blocks(self.stem(x)).mean((2, 3))

    torch.manual_seed(0)
    inputs = (image(side=4).double(),)
    analysis = analyse(Stack().double().eval(), inputs)
    names = [block.name for block in analysis.blocks.removable]
    assert names == [f"blocks.{i}" for i in range(4)]
    for removed in (names, names[::-1], names[1:3], names[::2]):
        slim = rewrite(analysis, {}, removed)
        with torch.no_grad():
            assert error(reference(analysis, {}, removed).run(*inputs), slim(*inputs)) <= 1e-12
            twin = copy.deepcopy(slim)
            assert torch.equal(twin(*inputs), slim(*inputs))
