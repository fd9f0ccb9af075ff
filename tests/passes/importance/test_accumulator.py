"""Importance gathered in parts: merged, reduced over two processes, saved and loaded; each kind's formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mdp_fx.errors import DataError, InputError
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.importance import KINDS, NEEDS, ImportanceAccumulator, find_readers, score
from mdp_fx.pipeline import analyse
from tests.gloo import in_two_processes
from tests.graph.random_networks import random_network
from tests.pruning import randomise
from tests.train.networks import small

GRADIENTS = [kind for kind in KINDS if NEEDS[kind] == "gradients"]
BATCHES = 6


def analysed() -> Analysis:
    torch.manual_seed(1)
    return analyse(randomise(small()), (torch.randn(2, 3, 8, 8),))


def gathered(analysis: Analysis, kind: str, numbers: Any) -> ImportanceAccumulator:
    """Of the batches with these numbers, in eval mode."""
    found = ImportanceAccumulator(analysis.graph, analysis.groups, kind)
    stored = {name: tensor for name, tensor, _ in analysis.graph.stored()}
    values = {name: stored[name] for name in found.tensors}
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(2, 3, 8, 8, generator=generator)
        y = torch.randint(0, 4, (2,), generator=generator)
        loss = F.cross_entropy(analysis.graph.module(x), y)
        gradients = torch.autograd.grad(loss, list(values.values()))
        assert found.accumulate(values, dict(zip(values, gradients, strict=True)))
    return found


def flat(found: ImportanceAccumulator) -> np.ndarray:
    return np.concatenate([each.values for each in found.scores()])


@given(st.permutations(range(BATCHES)))
@settings(max_examples=10, deadline=None)
def test_the_order_of_batches_does_not_matter(order: list[int]) -> None:
    analysis = analysed()
    whole = gathered(analysis, "taylor", range(BATCHES))
    assert whole.count == BATCHES
    assert flat(whole).sum() > 0
    np.testing.assert_allclose(flat(gathered(analysis, "taylor", order)), flat(whole), rtol=1e-12)


def _half(rank: int) -> dict[str, Any]:
    found = {}
    analysis = analysed()
    for kind in GRADIENTS:
        part = gathered(analysis, kind, range(rank, BATCHES, 2))
        part.all_reduce()
        found[kind] = [part.count, torch.from_numpy(flat(part))]
    return found


def test_two_processes_give_the_importance_of_one(tmp_path: Path) -> None:
    results = in_two_processes(_half, tmp_path)
    analysis = analysed()
    for kind in GRADIENTS:
        whole = flat(gathered(analysis, kind, range(BATCHES)))
        for result in results:
            count, values = result[kind]
            assert count == BATCHES
            np.testing.assert_allclose(values.numpy(), whole, rtol=1e-6)


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_state_goes_on(kind: str) -> None:
    analysis = analysed()
    first = gathered(analysis, kind, range(3))
    second = ImportanceAccumulator(analysis.graph, analysis.groups, kind)
    second.load_state_dict(first.state_dict())
    assert second.count == 3
    np.testing.assert_array_equal(flat(second), flat(first))


def test_another_kind_or_network_is_refused() -> None:
    analysis = analysed()
    fisher = gathered(analysis, "fisher", range(1))
    with pytest.raises(InputError, match="the importance is 'fisher', and 'taylor' is being gathered"):
        gathered(analysis, "taylor", range(1)).load_state_dict(fisher.state_dict())
    other = analyse(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)), (torch.randn(2, 3),))
    mine = ImportanceAccumulator(other.graph, other.groups, "fisher")
    with pytest.raises(InputError, match="belongs to another network"):
        mine.load_state_dict(fisher.state_dict())


def test_no_batch_is_an_error_and_none_is_needed_for_norms() -> None:
    analysis = analysed()
    with pytest.raises(DataError, match="fisher importance has seen no batch"):
        ImportanceAccumulator(analysis.graph, analysis.groups, "fisher").scores()
    assert ImportanceAccumulator(analysis.graph, analysis.groups, "l2").scores()


class Chain(torch.nn.Module):
    """Two linear layers with weights that are easy to add up: w1 = (2, -3), w2 = (5, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.one.weight.copy_(torch.tensor([[2.0], [-3.0]]))
            self.two.weight.copy_(torch.tensor([[5.0, 7.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # The loss is the output, sum of w2 w1 x; its gradient times w1, or w2, is w1 w2 x: 10 x and -21 x.
        ("taylor", {"one": [10 * 1.5, 21 * 1.5]}),
        ("taylor-filter", {"one": [10 * 1.5, 21 * 1.5]}),
        ("taylor-input", {"two": [10 * 1.5, 21 * 1.5]}),
        ("taylor-squared", {"one": [100 * 2.5, 441 * 2.5]}),
        ("fisher", {"one": [100 * 2.5, 441 * 2.5]}),
        # The mean absolute output of the first layer at x = 1 and 2.
        ("activation", {"one": [2 * 1.5, 3 * 1.5]}),
    ],
)
def test_formulas_by_hand(kind: str, expected: dict[str, list[float]]) -> None:
    model = Chain()
    analysis = analyse(model, (torch.ones(2, 1),))
    data = [(torch.tensor([[1.0]]), torch.zeros(1)), (torch.tensor([[2.0]]), torch.zeros(1))]
    found = score(analysis.graph, analysis.groups, kind, model=model, data=data, loss=lambda out, _: out.sum())
    assert {each.layer: each.values.tolist() for each in found} == {
        layer: pytest.approx(values) for layer, values in expected.items()
    }


def test_fisher_adds_squares_where_taylor_takes_a_sum() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(4, 2, 3))
    x = torch.randn(2, 2, 6, 6)
    analysis = analyse(model, (x,))

    def found(kind: str) -> list[float]:
        data = [(x, None)]
        scores = score(analysis.graph, analysis.groups, kind, model=model, data=data, loss=lambda out, _: out.sum())
        return scores[0].values.tolist()

    model(x).sum().backward()
    first = model[0].weight
    assert isinstance(first, Tensor)
    assert first.grad is not None
    product = (first.grad * first).detach().flatten(1)
    assert found("fisher") == pytest.approx(product.square().sum(1).tolist(), rel=1e-5)
    assert found("taylor") == pytest.approx(product.sum(1).abs().tolist(), rel=1e-5)
    assert found("taylor-squared") == pytest.approx(product.sum(1).square().tolist(), rel=1e-5)


def test_coupled_layers_speak_together() -> None:
    """Layers that add to one trunk: the absolute value of their sum, shared out by their own."""

    class Trunk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(1, 2, bias=False)
            self.out = torch.nn.Linear(2, 1, bias=False)
            with torch.no_grad():
                self.a.weight.copy_(torch.tensor([[3.0], [1.0]]))
                self.b.weight.copy_(torch.tensor([[-1.0], [1.0]]))
                self.out.weight.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x) + self.b(x))

    model = Trunk()
    analysis = analyse(model, (torch.ones(2, 1),))
    data = [(torch.ones(1, 1), None)]

    def found(kind: str) -> dict[str, list[float]]:
        scores = score(analysis.graph, analysis.groups, kind, model=model, data=data, loss=lambda out, _: out.sum())
        return {each.layer: each.values.tolist() for each in scores}

    # Unit 0: 3 and -1 are 2 together, three quarters of it of the first layer.
    assert found("taylor") == found("taylor-filter") == {"a": [1.5, 1.0], "b": [0.5, 1.0]}
    assert found("taylor-squared") == {"a": [9.0, 1.0], "b": [1.0, 1.0]}


class PreActivation(nn.Module):
    """A stem, and blocks that add to its trunk or are concatenated, each with its norms in front of the layers."""

    def __init__(self, *, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        widths = [8, 16, 24] if dense else [8, 8, 8]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 1, bias=False)),
                *(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1, bias=False)),
            )
            for width in widths[:2]
        )
        self.norm, self.fc = nn.BatchNorm2d(widths[2]), nn.Linear(widths[2], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1) if self.dense else x + block(x)
        return cast(Tensor, self.fc(F.relu(self.norm(x)).mean((2, 3))))


def by_group(model: nn.Module, kind: str, *, training: bool) -> dict[str, float]:
    """What all units of each group are worth together on one batch, by the gradients of the model in one mode."""
    torch.manual_seed(2)
    x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
    analysis = analyse(model.eval(), (x,))
    found = ImportanceAccumulator(analysis.graph, analysis.groups, kind)
    stored = {name: tensor for name, tensor, _ in analysis.graph.stored()}
    values = {name: stored[name] for name in found.tensors}
    loss = F.cross_entropy(model.train(training)(x), y)
    gradients = torch.autograd.grad(loss, list(values.values()))
    found.accumulate(values, dict(zip(values, gradients, strict=True)))
    totals = dict.fromkeys((group.name for group in analysis.groups), 0.0)
    for each in found.scores():
        totals[each.group] += float(each.values.sum())
    return totals


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", ["taylor", "taylor-squared", "taylor-input", "fisher"])
def test_training_mode_says_what_eval_mode_says(kind: str, dense: bool) -> None:
    """A norm with statistics of the batch hides the scale of what it is given: filters alone would be worth nothing."""
    torch.manual_seed(0)
    model = PreActivation(dense=dense)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 8, 8))  # Statistics of such data, so that both modes compute much the same.
    still, trained = (by_group(model, kind, training=training) for training in (False, True))
    for group, worth in still.items():
        assert worth > 0
        times = 10 if kind.startswith("taylor-i") or kind == "taylor" else 100  # The others are squares.
        assert worth / times < trained[group] < times * worth, group


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_have_scores_of_every_kind(seed: int) -> None:
    network = randomise(random_network(seed), seed).eval()
    inputs = network.inputs(seed)
    analysis = analyse(network, inputs)
    data = [(inputs if len(inputs) > 1 else inputs[0], None)]

    def loss(outputs: Any, _targets: Any) -> Tensor:
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return sum((leaf.float().square().mean() for leaf in leaves), torch.zeros(()))

    for kind in KINDS:
        if kind == "taylor-input" and not find_readers(analysis.graph):
            continue
        found = score(analysis.graph, analysis.groups, kind, model=network, data=data, loss=loss)
        sizes = {group.name: group.size for group in analysis.groups}
        assert found
        for each in found:
            assert each.values.shape == (sizes[each.group],)
            assert (each.values >= 0).all()
