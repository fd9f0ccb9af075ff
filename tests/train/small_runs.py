"""A small network, slim, with a folder of images to train it on."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from mdp_fx.checkpoint import save_slim
from mdp_fx.pipeline import analyse, rewrite
from mdp_fx.recipe import Recipe, fingerprint
from tests.cli.tiny import make_network

SHAPE = (3, 16, 16)
CLASSES = ("ant", "bee", "cat", "dog")


def slim_file(path: Path, model: nn.Module | None = None) -> Path:
    """A slim.pt in which every channel group keeps the first half of its units."""
    model = model or make_network()
    analysis = analyse(model, torch.zeros(2, *SHAPE))
    kept = {group.name: list(range(group.size // 2)) for group in analysis.groups}
    recipe = Recipe(
        kept=kept,
        removed_blocks=[],
        group_sizes={group.name: group.size for group in analysis.groups},
        method="mdp",
        target="onnxruntime:cpu",
        budgets={},
        predicted={},
        certificate={},
        importance="l2",
        step=8,
        input_shapes=[[1, *SHAPE]],
        input_dtypes=["float32"],
        fingerprint=fingerprint(model),
    )
    save_slim(path, rewrite(analysis, kept, []), recipe, {})
    return path


def image_folder(path: Path, per_class: int = 8, classes: tuple[str, ...] = CLASSES, size: int = 20) -> Path:
    """Images that a network can tell apart: every class has a colour of its own, with noise."""
    generator = torch.Generator().manual_seed(len(classes) + per_class)
    for number, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        colour = torch.tensor([40.0 + 50 * number, 200.0 - 40 * number, 90.0 + 30 * (number % 2)])
        for i in range(per_class):
            pixels = (colour + 30 * torch.randn(size, size, 3, generator=generator)).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(path / name / f"{i}.png")
    return path
