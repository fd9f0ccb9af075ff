"""Regions of interest, pooled from the maps of a feature pyramid: the joint of a two-stage detector, and its rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdp_fx.graph.axes import constant, product
from mdp_fx.graph.ops.op import Op, Types
from mdp_fx.graph.ops.registry import rule
from mdp_fx.graph.unify import unify


class BoxPooling(nn.Module):
    """What torchvision's MultiScaleRoIAlign computes, on boxes as one tensor whose axis 0 is the batch.

    Each box is pooled from the map whose level suits its size (eq. 1 of Feature Pyramid Networks, arXiv 1612.03144).

    Args:
        pooling: the MultiScaleRoIAlign, after it has run once: it learns the maps' scales from the first images.
    """

    def __init__(self, pooling: Any) -> None:
        super().__init__()
        levels = pooling.map_levels
        self.output_size: tuple[int, int] = tuple(pooling.output_size)
        self.sampling_ratio: int = pooling.sampling_ratio
        self.scales: tuple[float, ...] = tuple(pooling.scales)
        self.lowest, self.highest = int(levels.k_min), int(levels.k_max)
        self.canonical_level, self.canonical_scale = int(levels.lvl0), float(levels.s0)
        self.margin = float(levels.eps)

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """Pools.

        Args:
            maps: of shape (B, C, height, width) each, finest first.
            boxes: (B, N, 4), as corners x1, y1, x2, y2 in pixels of the image.

        Returns:
            (B * N, C, *output_size).
        """
        images, count = boxes.shape[:2]
        numbers = torch.arange(images, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(images, count, 1)
        rois = torch.cat([numbers, boxes], 2).flatten(0, 1)
        if len(maps) == 1:
            return self._pool(maps[0], rois, self.scales[0])
        area = (rois[:, 3] - rois[:, 1]).clamp(min=0) * (rois[:, 4] - rois[:, 2]).clamp(min=0)
        octaves = torch.log2(area.sqrt() / self.canonical_scale)
        levels = torch.floor(self.canonical_level + octaves + self.margin).clamp(self.lowest, self.highest)
        result = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], *self.output_size)
        for i, (features, scale) in enumerate(zip(maps, self.scales, strict=True)):
            chosen = torch.where(levels == self.lowest + i)[0]
            result = result.index_put((chosen,), self._pool(features, rois[chosen], scale))
        return result

    def _pool(self, features: Tensor, rois: Tensor, scale: float) -> Tensor:
        pooled: Tensor = torch.ops.torchvision.roi_align(
            features, rois, scale, *self.output_size, self.sampling_ratio, False
        )
        return pooled


@rule(BoxPooling, args="maps boxes |")
def pool_boxes(op: Op) -> Types:
    """All maps have the same channels, and so has what is pooled; axis 0 becomes (batch, boxes)."""
    maps, boxes = op.types("maps"), op.tensor("boxes")
    op.freeze(boxes[1:], "places in the image")
    for other in maps:
        op.freeze(other[2:], "spatial axis")
        unify(other[0], boxes[0], f"examples of {op.where}")
        unify(other[1], maps[0][1], f"channels of {op.where}")
    if all(op.is_zero_at(each, maps[0][1]) for each in op.value("maps")):
        op.zero_at(maps[0][1])
    return (product(boxes[0], boxes[1]), maps[0][1], *(constant(size) for size in op.shapes[2:]))
