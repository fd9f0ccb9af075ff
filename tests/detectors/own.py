"""Detectors of one's own, whose forward does what those of torchvision do not."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """A stem and a head that can be traced, and a forward that cannot: each kind reads or writes in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Any:
        """One dictionary for each image."""
        return self.found(self.head(self.between(self.stem(x))))

    def between(self, maps: Tensor) -> Tensor:
        """What the head is given."""
        return maps

    def found(self, maps: Tensor) -> list[dict[str, Tensor]]:
        """Entries that are picked by their values."""
        return [{"found": each[each > each.mean()]} for each in maps.flatten(1)]


class Dropped(Plain):
    """A module without parameters reads the stem's maps for the detector's own code."""

    def between(self, maps: Tensor) -> Tensor:
        """As they are."""
        self.act(maps)
        return maps


class Twice(Plain):
    """Such a module is called twice, of which the regions see one."""

    def between(self, maps: Tensor) -> Tensor:
        """Their activation."""
        self.act(maps)
        return self.act(maps)


class Weight(Plain):
    """Its own forward reads a weight of the stem."""

    def between(self, maps: Tensor) -> Tensor:
        """As they are."""
        self.stem[0].weight.data.norm()
        return maps


class Inner(Plain):
    """Its own forward calls a layer of the stem."""

    def between(self, maps: Tensor) -> Tensor:
        """As they are."""
        self.stem[1](torch.zeros(1, 16, 2, 2))
        return maps


class Passed(Plain):
    """Its own forward gives a weight of the stem to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Weighted()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        """One dictionary for each image."""
        return self.found(self.head(self.stem(x), self.stem[0].bias))


class Weighted(nn.Module):
    """A head of maps and a weight for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 4, 1)

    def forward(self, maps: Tensor, weights: Tensor) -> Tensor:
        """Weighs, then reads."""
        return self.conv(maps * weights.reshape(1, -1, 1, 1))


class InPlace(Plain):
    """Its own forward changes what the stem gave."""

    def between(self, maps: Tensor) -> Tensor:
        """Changed."""
        return maps.mul_(3).add_(1)


class View(Plain):
    """Its own forward changes a part of it, through a view."""

    def between(self, maps: Tensor) -> Tensor:
        """Without the first half."""
        maps.detach()[:, :8].zero_()
        return maps


class Hidden(Plain):
    """Its own forward changes it where torch cannot see that."""

    def between(self, maps: Tensor) -> Tensor:
        """Changed."""
        address, count = maps.data_ptr(), maps.numel()
        ctypes.memset(address, 0, 4 * count)
        return maps


class Scalar(Plain):
    """Gives a scalar of the images to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Weighted()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        """One dictionary for each image."""
        return self.found(self.head(self.stem(x), x.mean()))


class OwnWeights(Scalar):
    """Gives a parameter of its own to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(0.5, 1.5, 16))

    def forward(self, x: Tensor) -> Any:
        """One dictionary for each image."""
        return self.found(self.head(self.stem(x), self.weights))


class Trained(Plain):
    """Only training calls its auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Any:
        """A loss, or one dictionary for each image."""
        maps = self.stem(x)
        if self.training:
            return {"loss": self.head(maps).mean() + self.aux(maps).mean()}
        return self.found(self.head(maps))


class TrainedStem(nn.Sequential):
    """A stem with such a head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.aux = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps."""
        maps = self[1](self[0](x))
        if self.training:
            maps = maps + self.aux(maps).mean()
        return self[2](maps)
