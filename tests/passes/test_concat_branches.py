"""Branches of concatenations: which may go with all their units, which must stay and why, and what goes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from mdp_fx.passes import concat_branches
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.residual_blocks import Blocks
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import error, random_kept, random_removed, randomise, reference
from tests.zoo import image

Body = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Layers of several widths; the forward is given."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 5, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(8, 7, 1)
        self.same = nn.Conv2d(8, 8, 1)
        self.eleven = nn.Conv2d(8, 11, 1)
        self.read = nn.LazyConv2d(9, 1)
        self.token = nn.Parameter(torch.rand(2, 5, 4, 4))
        self.head = nn.LazyConv2d(4, 1)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, F.relu(self.stem(x)))


def analysed(body: Body) -> Analysis:
    torch.manual_seed(0)
    net = Net(body)
    with torch.no_grad():
        net(image(side=4))
    return analyse(net.double().eval(), (image(side=4).double(),))


def blocks_of(body: Body) -> Blocks:
    return analysed(body).blocks


def parity(analysis: Analysis, kept: dict[str, list[int]], removed: Sequence[str]) -> float:
    inputs = (image(side=4).double(),)
    with torch.no_grad():
        slim = rewrite(analysis, kept, removed)
        assert error(analysis.graph.module(*inputs), slim(*inputs)) > 1e-9
        return error(reference(analysis, kept, removed).run(*inputs), slim(*inputs))


@pytest.mark.parametrize(
    "join",
    [
        lambda parts: torch.cat(parts, 1),
        lambda parts: torch.cat(tuple(parts), dim=-3),
        lambda parts: torch.concat(parts, dim=1),
        lambda parts: torch.concatenate(tensors=parts, dim=1),
    ],
)
def test_every_spelling_of_a_concatenation(join: Callable[[list[Tensor]], Tensor]) -> None:
    analysis = analysed(lambda n, x: n.head(join([n.a(x), F.relu(n.b(x))])))
    found = [(b.name, b.kept, b.nodes, b.empties, b.parent) for b in analysis.blocks.removable]
    assert found == [("a", None, ("a",), ("a",), None), ("b", None, ("b", "relu_1"), ("b",), None)]
    assert {b.join for b in analysis.blocks.removable} <= {"cat", "concat", "concatenate"}
    assert analysis.blocks.exclusive == (("a", "b"),)
    assert parity(analysis, {}, ["a"]) <= 1e-12
    assert parity(analysis, {"b": [0, 2], "a": [1]}, ["b"]) <= 1e-12


def test_a_branch_goes_with_all_that_feeds_it() -> None:
    def body(n: Net, x: Tensor) -> Any:
        gate = torch.sigmoid(n.same(x).mean((2, 3), keepdim=True))
        return n.head(torch.cat([x, n.a(x * gate)], 1))

    (block,) = blocks_of(body).removable
    assert block.nodes == ("same", "mean", "sigmoid", "mul", "a")
    assert block.empties == ("a",)


def test_what_is_read_elsewhere_or_twice_or_has_no_weights_is_no_branch() -> None:
    def elsewhere(n: Net, x: Tensor) -> Any:
        a = n.a(x)
        return n.head(torch.cat([x, a], 1)) * a.mean()

    def twice(n: Net, x: Tensor) -> Any:
        a = n.a(x)
        return n.head(torch.cat([x, a, a], 1))

    def pooled(n: Net, x: Tensor) -> Any:
        return n.head(torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1))

    for body in (elsewhere, twice, pooled):
        assert blocks_of(body) == Blocks((), (), ())


def other_axis(n: Net, x: Tensor) -> Any:
    return n.head(torch.cat([x, n.same(x)], 2))


def test_places_are_no_units() -> None:
    assert blocks_of(other_axis) == Blocks((), (), ())


def constant(n: Net, x: Tensor) -> Any:
    return n.head(torch.cat([n.b(x), n.token], 1))


def read_apart(n: Net, x: Tensor) -> Any:
    parts = torch.split(torch.cat([n.a(x), n.b(x)], 1), [5, 6], 1)
    return n.head(parts[1]) + n.token.mean() * parts[0].mean((2, 3), keepdim=True)[:, :4]


def added(n: Net, x: Tensor) -> Any:
    return n.head(torch.cat([x, x + n.same(x)], 1))


def half_frozen(n: Net, x: Tensor) -> Any:
    joined = torch.cat([n.a(x), n.b(x)], 1)
    return n.head(torch.cat([torch.cumsum(joined[:, :7], 1), joined[:, 7:]], 1))


def other_type(n: Net, x: Tensor) -> Any:
    return n.head(torch.cat([n.a(x), n.b(x).float()], 1))


def tied(n: Net, x: Tensor) -> Any:
    return n.head(torch.cat([n.a(x), n.a(F.relu(n.same(x)))], 1))


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (
            constant,
            {
                "b": "without it nothing that depends on the input would be left",
                "token": "it does not depend on the input",
            },
        ),
        (added, {"same": "nothing would be left of stem without its units"}),
        (half_frozen, {"b": "some of its units are frozen"}),
        (
            other_type,
            dict.fromkeys("ab", "what it is joined with has another number type"),
        ),
        (
            tied,
            {
                "a": "nothing would be left of a_1 without its units",
                "a#2": "nothing would be left of a without its units",
            },
        ),
    ],
)
def test_branches_that_must_stay_say_why(body: Body, kept: dict[str, str]) -> None:
    found = blocks_of(body)
    reasons = {block.name: block.reason for block in found.kept if block.kept is None}
    assert reasons == kept
    assert not any(block.empties for block in found.kept)
    assert not any(block.kept is None for block in found.removable)


def test_units_that_are_read_apart_must_stay() -> None:
    reasons = {block.name: block.reason for block in blocks_of(read_apart).kept}
    assert reasons["b"] == "nothing would be left of split without its units"


def test_all_branches_of_all_concatenations_that_make_an_axis_are_exclusive() -> None:
    def body(n: Net, x: Tensor) -> Any:
        left = torch.cat([n.a(x), n.b(x)], 1)
        return n.head(torch.cat([F.relu(left), n.c(x)], 1))

    analysis = analysed(body)
    outer = analysis.blocks.removable[0]
    assert (outer.empties, outer.join) == (("a", "b"), "cat_1")
    inner = [(block.name, block.parent) for block in analysis.blocks.removable[1:]]
    assert inner == [("a", outer.name), ("b", outer.name), ("c", None)]
    assert analysis.blocks.exclusive == (("a", "b"), (outer.name, "c"))
    rng = np.random.default_rng(0)
    for removed in (["a"], [outer.name], [outer.name, "a", "b"], ["b", "c"], ["a", outer.name]):
        assert parity(analysis, {}, removed) <= 1e-12
        assert parity(analysis, random_kept(analysis.groups, rng), removed) <= 1e-12


def test_a_sum_of_two_concatenations_needs_one_of_their_common_units() -> None:
    def body(n: Net, x: Tensor) -> Any:
        return n.head(torch.cat([n.a(x), n.b(x)], 1) + n.eleven(x))

    analysis = analysed(body)
    assert [(b.name, b.empties) for b in analysis.blocks.removable if b.kept is None] == [("a", ("a",)), ("b", ("b",))]
    assert ("a", "b") in analysis.blocks.exclusive
    assert parity(analysis, {}, ["b"]) <= 1e-12
    assert parity(analysis, {}, ["b", "eleven"]) <= 1e-12


def test_a_block_whose_surroundings_go_empties_nothing() -> None:
    def body(n: Net, x: Tensor) -> Any:
        y = n.read(torch.cat([n.a(x), n.b(x)], 1))
        return n.head(torch.cat([x, n.c(y[:, :8])], 1))

    blocks = blocks_of(body)
    assert blocks.emptied(["a"]) == {"a"}
    assert blocks.emptied(["a", "c"]) == {"c"}
    assert blocks.emptied(["c"]) == {"c"}
    assert blocks.emptied([]) == frozenset()
    assert blocks.emptied(["unknown"]) == frozenset()


def test_too_many_ways_to_empty_an_axis_keep_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(n: Net, x: Tensor) -> Any:
        left = torch.cat([n.a(x), n.b(x)], 1)
        return n.head(torch.cat([F.relu(left), n.c(x)], 1))

    monkeypatch.setattr(concat_branches, "MOST_SETS", 0)
    found = blocks_of(body)
    assert {block.reason for block in found.kept} == {"too many other branches share an axis with it"}
    assert found.exclusive == ()
    assert found.removable


@pytest.mark.parametrize(("name", "branches", "exclusive"), [("squeezenet1_1", 16, 8), ("googlenet", 36, 9)])
def test_branches_of_library_networks(name: str, branches: int, exclusive: int) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = randomise(torchvision.models.get_model(name, weights=None, **options)).double().eval()
    inputs = (image(side=64).double(),)
    analysis = analyse(model, inputs)
    found = [block for block in analysis.blocks.removable if block.kept is None]
    assert (len(found), len(analysis.blocks.exclusive)) == (branches, exclusive)
    rng = np.random.default_rng(1)
    removed, kept = random_removed(analysis.blocks, rng, 0.9), random_kept(analysis.groups, rng)
    slim = rewrite(analysis, kept, removed)
    with torch.no_grad():
        assert error(reference(analysis, kept, removed).run(*inputs), slim(*inputs)) <= 1e-12
