"""Regions of interest, pooled from the maps of a pyramid."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from mdp_fx.graph.ops.box_pooling import BoxPooling


@pytest.mark.parametrize("levels", [1, 3])
def test_it_computes_what_torchvision_does(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [str(i) for i in range(levels)]
    maps = OrderedDict((name, torch.randn(2, 5, 64 >> i, 64 >> i, generator=generator)) for i, name in enumerate(names))
    corners = torch.rand(2, 40, 2, generator=generator) * 100
    sides = torch.exp2(torch.rand(2, 40, 2, generator=generator) * 8)
    boxes = torch.cat([corners, corners + sides], 2)
    pooling = MultiScaleRoIAlign(names, 3, 2)
    expected = pooling(maps, list(boxes), [(256, 256)] * 2)
    found = BoxPooling(pooling)(list(maps.values()), boxes)
    assert found.shape == (80, 5, 3, 3)
    assert torch.equal(found, expected)


def test_boxes_inside_out_are_of_the_smallest_level() -> None:
    pooling = MultiScaleRoIAlign(["0", "1"], 3, 2)
    maps = OrderedDict([("0", torch.ones(1, 2, 32, 32)), ("1", torch.zeros(1, 2, 16, 16))])
    pooling(maps, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [(128, 128)])
    found = BoxPooling(pooling)(list(maps.values()), torch.tensor([[[60.0, 60.0, 50.0, 70.0]]]))
    assert bool((found == 1).all())
