"""What may be chosen: steps that keep the sizes of axes multiples, whatever they are made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.choices import choose, dimension_steps
from mdp_fx.pipeline import analyse
from tests.zoo import image


class Heads(nn.Module):
    """Attention with heads of `depth` units."""

    def __init__(self, heads: int, depth: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.stem = nn.Linear(3, 48)
        self.q, self.k, self.v = (nn.Linear(48, heads * depth) for _ in range(3))
        self.out = nn.Linear(heads * depth, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.stem(x)
        q, k, v = (part(x).view(b, n, self.heads, self.depth).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize(
    ("heads", "depth", "step", "expected"),
    [
        (3, 16, 8, {3: (1, 2, 3), 16: (8, 16)}),
        (6, 4, 8, {6: (2, 4, 6), 4: (4,)}),
        (12, 5, 8, {12: (8, 12), 5: (5,)}),
        (4, 6, 1, {4: (1, 2, 3, 4), 6: (1, 2, 3, 4, 5, 6)}),
    ],
)
def test_heads_go_one_by_one_where_their_size_allows_it(
    heads: int, depth: int, step: int, expected: dict[int, tuple[int, ...]]
) -> None:
    analysis = analyse(Heads(heads, depth).eval(), (torch.randn(2, 7, 3),), step=step)
    found = {d.dense: d.sizes for d in choose(analysis).dimensions if d.dense in expected}
    assert found == expected


def test_plain_channels_keep_the_step_wherever_else_they_are_flattened() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 5))
    graph = analyse(model.eval(), (image(),)).graph
    assert set(dimension_steps(graph, 8).values()) == {8}


def test_every_reachable_axis_is_a_multiple_of_the_step() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3, groups=8), nn.Flatten(), nn.Linear(64 * 36, 5))
    analysis = analyse(model.eval(), (image(),))
    steps = dimension_steps(analysis.graph, 8)
    assert sorted(steps.values()) == [2, 8, 8]
