"""Residual blocks: which regions may go, which must stay and why, and what surrounds what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.residual_blocks import Blocks, ResidualBlock, find_residual_blocks
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import error, reference
from tests.zoo import ZOO, Specimen, image

Body = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Layers of one width; the forward is given."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 8, 1)
        self.same = nn.Conv2d(3, 3, 1)
        self.gate = nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1))
        self.token = nn.Parameter(torch.rand(1, 8, 4, 4))
        self.head = nn.Conv2d(8, 5, 1)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def blocks_of(body: Body) -> Blocks:
    torch.manual_seed(0)
    return analyse(Net(body).eval(), (image(side=4),)).blocks


def names(blocks: tuple[ResidualBlock, ...]) -> list[str]:
    return [block.name for block in blocks]


def plain(net: Net, x: Tensor) -> Any:
    x = F.relu(net.stem(x))
    return net.head(x + net.b(F.relu(net.a(x))))


def test_the_branch_goes_and_the_shortcut_flows_on() -> None:
    assert blocks_of(plain) == Blocks(
        (ResidualBlock("add", "add", "relu", ("a", "relu_1", "b"), None, None),),
        (),
        (),
    )


@pytest.mark.parametrize(
    "addition",
    [
        lambda x, y: x + y,
        lambda x, y: y + x,
        torch.add,
        lambda x, y: x.add(y),
        lambda x, y: x.add_(y),
        lambda x, y: y.add_(x),
    ],
)
def test_every_spelling_of_an_addition(addition: Callable[[Tensor, Tensor], Tensor]) -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = F.relu(net.stem(x))
        return net.head(addition(x, net.a(x)))

    (block,) = blocks_of(body).removable
    assert (block.name, block.kept, block.nodes) == ("a", "relu", ("a",))


@pytest.mark.parametrize(
    "other",
    [
        lambda x, y: x - y,
        lambda x, y: x * y,
        lambda x, y: torch.add(x, y, alpha=2),
        torch.maximum,
    ],
)
def test_what_is_no_plain_addition_has_no_blocks(other: Callable[[Tensor, Tensor], Tensor]) -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head(other(x, net.a(x)))

    assert blocks_of(body) == Blocks((), (), ())


def test_a_scaled_branch_goes_with_its_scale() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head(x + 0.5 * (net.gamma * net.a(x)))

    (block,) = blocks_of(body).removable
    assert set(block.nodes) == {"gamma", "a", "mul", "mul_1"}
    assert block.kept == "stem"


def test_a_gated_branch_goes_with_its_gate() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        y = net.a(x)
        gate = torch.sigmoid(net.gate(y.mean((2, 3))))[:, :, None, None]
        return net.head(x + y * gate)

    (block,) = blocks_of(body).removable
    assert block.nodes == ("a", "mean", "gate", "sigmoid", "getitem", "mul")


def test_a_branch_used_elsewhere_stays() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        y = net.a(x)
        return net.head(x + y) * y.mean()

    assert blocks_of(body) == Blocks((), (), ())


def test_only_what_nothing_else_reads_goes() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        y = net.a(x)
        return net.head((x + net.b(y)) * y)

    (block,) = blocks_of(body).removable
    assert block.nodes == ("b",)


def test_the_same_operand_twice_is_no_block() -> None:
    def body(net: Net, x: Tensor) -> Any:
        y = net.a(net.stem(x))
        return net.head(y + y)

    assert blocks_of(body) == Blocks((), (), ())


def test_two_branches_of_one_source_exclude_each_other() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head(net.a(x) + net.b(x))

    found = blocks_of(body)
    assert [(block.name, block.kept, block.nodes) for block in found.removable] == [
        ("a", "b", ("a",)),
        ("b", "a", ("b",)),
    ]
    assert found.exclusive == (("a", "b"),)


def test_a_branch_without_parameters_is_no_block() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head(x + F.avg_pool2d(F.relu(x), 3, 1, 1))

    assert blocks_of(body) == Blocks((), (), ())


def test_an_addition_with_the_input_may_lose_its_branch() -> None:
    def body(net: Net, x: Tensor) -> Any:
        return net.head(net.stem(x + net.same(x)))

    (block,) = blocks_of(body).removable
    assert (block.name, block.kept, block.nodes) == ("same", "x", ("same",))


def without_the_image(net: Net, x: Tensor) -> Any:
    return net.head(net.stem(x) + net.token)


def constant_operand(net: Net, x: Tensor) -> Any:
    # Each operand alone: the image's branch would cut the network off, the other is no function of the input.
    return net.head(net.stem(x) + net.a(net.token))


def smaller_shortcut(net: Net, x: Tensor) -> Any:
    x = net.stem(x)
    return net.head(net.a(x) + net.b(x.mean((2, 3), keepdim=True)))


def writes_in_place(net: Net, x: Tensor) -> Any:
    x = net.stem(x)
    y = net.a(x)
    flat = y.view(2, -1)
    y = y.mul_(2)
    return net.head(x + (y + flat.view(2, 8, 4, 4)))


def written_later(net: Net, x: Tensor) -> Any:
    x = net.stem(x)
    seen = x.flatten(1)
    y = x + net.a(x)
    x.mul_(2)
    return net.head(y) * seen.mean()


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (
            without_the_image,
            {
                "stem": "without it nothing that depends on the input would be left",
                "token": "it does not depend on the input",
            },
        ),
        (
            constant_operand,
            {
                "stem": "without it nothing that depends on the input would be left",
                "add": "it does not depend on the input",
            },
        ),
        (smaller_shortcut, {"a": "the other operand has another shape"}),
        (writes_in_place, {"a": "it writes in place at mul_"}),
        (written_later, {"a": "stem is written to in place"}),
    ],
)
def test_blocks_that_must_stay_say_why(body: Body, kept: dict[str, str]) -> None:
    found = blocks_of(body)
    assert {block.name: block.reason for block in found.kept} == kept
    assert not set(kept) & set(names(found.removable))
    assert found.exclusive == ()


def test_nested_blocks_name_the_smallest_around_them() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        y = net.a(x)
        y = y + net.b(y)
        return net.head(x + net.c(y))

    found = blocks_of(body)
    outer, inner = found.removable
    assert (outer.join, outer.parent, outer.nodes) == ("add_1", None, ("a", "b", "add", "c"))
    assert (inner.name, inner.parent, inner.nodes) == ("b", outer.name, ("b",))
    assert inner.kept == "a"


def test_a_block_inside_one_that_must_stay_has_no_parent() -> None:
    def body(net: Net, x: Tensor) -> Any:
        y = net.stem(x)
        y = y + net.a(y)
        return net.head(y + net.token)

    found = blocks_of(body)
    assert [(block.name, block.parent) for block in found.removable] == [("a", None)]
    assert [(block.name, block.nodes) for block in found.kept] == [
        ("add_1", ("stem", "a", "add")),
        ("token", ("token",)),
    ]


def test_a_chain_of_additions_has_a_block_for_every_operand() -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head((net.a(x) + net.b(x)) + net.c(x))

    found = blocks_of(body)
    assert [(block.name, block.kept, block.parent) for block in found.removable] == [
        ("add_1", "c", None),
        ("a", "b", "add_1"),
        ("b", "a", "add_1"),
        ("c", "add", None),
    ]
    assert found.exclusive == (("add_1", "c"), ("a", "b"))


def test_names_are_common_paths_made_unique() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.stage = nn.ModuleDict({"block": nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))})
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            x = x + self.stage["block"](x)
            return self.head(x + self.stage["block"](x))

    assert names(analyse(Twice().eval(), (image(side=4),)).blocks.removable) == ["stage.block", "stage.block#2"]


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_blocks_are_closed_regions_and_found_alike_again(specimen: Specimen) -> None:
    analysis = analyse(specimen.make(), specimen.inputs())
    found = analysis.blocks
    assert find_residual_blocks(analysis.graph, analysis.groups) == found
    nodes = {node.name: node for node in analysis.graph.module.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    by_name = {block.name: block for block in found.removable}
    assert len(by_name) == len(found.removable)
    for block in found.removable:
        inside = set(block.nodes)
        users = {user.name for name in inside for user in nodes[name].users} - inside
        assert users == {block.join}
        rest = {source.name for source in nodes[block.join].all_input_nodes} - inside
        assert rest if block.kept is None else rest == {block.kept}
        assert (block.kept is None) == bool(block.empties)
        assert list(block.nodes) == sorted(inside, key=order.__getitem__)
        if block.parent is not None:
            assert inside < set(by_name[block.parent].nodes)


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_each_block_of_a_chain_of_additions_may_go_alone(branch: int) -> None:
    def body(net: Net, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head((net.a(x) + net.b(x)) + net.c(x))

    torch.manual_seed(0)
    inputs = (image(side=4).double(),)
    analysis = analyse(Net(body).double().eval(), inputs)
    name = ["a", "b", "c"][branch]
    with torch.no_grad():
        slim = rewrite(analysis, {}, [name])
        assert error(reference(analysis, {}, [name]).run(*inputs), slim(*inputs)) <= 1e-12
    assert name not in dict(slim.named_modules())
