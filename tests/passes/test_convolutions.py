"""Convolutions in numbers: what the typing rules say of each, at any size and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.convolutions import Convolution
from mdp_fx.passes.cost_regions import CostRegion
from mdp_fx.pipeline import analyse
from tests.zoo import image


class Kinds(nn.Module):
    """One convolution of every kind that the rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, (1, 3), padding=(0, 1), groups=2)
        self.dilated = nn.Conv2d(12, 6, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.weight = nn.Parameter(torch.randn(10, 4, 3, 3))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.dilated(F.relu(self.grouped(F.relu(self.depthwise(F.relu(self.stem(x)))))))
        x = F.conv2d(F.relu(self.up(x)), self.weight, padding=1)
        return self.head(F.relu(x).mean((2, 3)))


@pytest.fixture(scope="module")
def regions() -> dict[str, CostRegion]:
    """Regions of `Kinds` at 16 x 16 and batch 4, by name."""
    torch.manual_seed(0)
    return {region.name: region for region in analyse(Kinds().eval(), image(side=16, batch=4)).regions}


def dense(regions: dict[str, CostRegion], name: str) -> Convolution:
    """The only convolution of a region of the dense network."""
    (found,) = regions[name].convolutions(regions[name].dense_sizes)
    return found


def test_every_kind_is_told(regions: dict[str, CostRegion]) -> None:
    base: dict[str, Any] = {"batch": 4, "dilation": (1, 1)}
    assert dense(regions, "stem") == Convolution(
        "stem", 3, 8, 1, input_size=(16, 16), output_size=(8, 8), kernel=(7, 7), stride=(2, 2), **base
    )
    assert dense(regions, "depthwise") == Convolution(
        "depthwise", 8, 8, 8, input_size=(8, 8), output_size=(8, 8), kernel=(3, 3), stride=(1, 1), **base
    )
    assert dense(regions, "grouped") == Convolution(
        "grouped", 8, 12, 2, input_size=(8, 8), output_size=(8, 8), kernel=(1, 3), stride=(1, 1), **base
    )
    assert dense(regions, "dilated").dilation == (2, 2)
    up = dense(regions, "up")
    assert up.transposed
    assert (up.in_channels, up.out_channels, up.input_size, up.output_size) == (6, 4, (8, 8), (16, 16))


def test_a_function_is_a_convolution_too(regions: dict[str, CostRegion]) -> None:
    (found,) = [
        each
        for region in regions.values()
        for each in region.convolutions(region.dense_sizes)
        if (each.in_channels, each.out_channels) == (4, 10)
    ]
    assert (found.kernel, found.stride, found.dilation, found.groups) == ((3, 3), (1, 1), (1, 1), 1)


def test_a_region_without_one_has_none(regions: dict[str, CostRegion]) -> None:
    assert regions["head"].convolutions(regions["head"].dense_sizes) == ()


def test_sizes_are_those_asked_for(regions: dict[str, CostRegion]) -> None:
    (slim,) = regions["stem"].convolutions((5,))
    assert (slim.in_channels, slim.out_channels) == (3, 5)
    (slim,) = regions["depthwise"].convolutions((3,))
    assert (slim.in_channels, slim.out_channels, slim.groups) == (3, 3, 3)


@pytest.mark.parametrize("name", ["stem", "depthwise", "grouped", "dilated", "up"])
def test_its_multiply_accumulates_are_those_of_the_region(regions: dict[str, CostRegion], name: str) -> None:
    from mdp_fx.latency.roofline import macs

    assert macs(dense(regions, name)) == regions[name].macs(regions[name].dense_sizes)


def test_a_convolution_reads_well(regions: dict[str, CostRegion]) -> None:
    assert str(dense(regions, "stem")) == (
        "stem: 3 -> 8 channels, input 16x16, kernel 7x7, stride 2x2, groups 1, batch 4"
    )
    assert "dilation 2x2" in str(dense(regions, "dilated"))
    assert str(dense(regions, "up")).startswith("up (transposed): 6 -> 4")


def test_the_batch_is_counted_and_not_run() -> None:
    class Watched(Kinds):
        most = 0

        def forward(self, x: Tensor) -> Any:
            Watched.most = max(Watched.most, len(x))
            return super().forward(x)

    network = Watched().eval()
    found = analyse(network, torch.zeros(256, 3, 16, 16), all_examples=False)
    assert 1 <= Watched.most <= 5
    (stem,) = found.regions[0].convolutions(found.regions[0].dense_sizes)
    assert stem.batch == 256
    whole = analyse(network, torch.zeros(256, 3, 16, 16))
    assert Watched.most >= 256
    assert [region.key for region in found.regions] == [region.key for region in whole.regions]
    assert [r.macs(r.dense_sizes) for r in found.regions] == [r.macs(r.dense_sizes) for r in whole.regions]


def test_a_network_that_fixes_its_batch_gets_all_examples() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(F.relu(self.conv(x)).mean((2, 3)).reshape(4, 8))

    found = analyse(Fixed().eval(), image(side=8, batch=4), all_examples=False)
    assert found.graph.example_inputs[0].shape[0] == 4
    (conv,) = found.regions[0].convolutions(found.regions[0].dense_sizes)
    assert conv.batch == 4
