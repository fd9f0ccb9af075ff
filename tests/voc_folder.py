"""Small folders in Pascal VOC's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Object = tuple[str, tuple[float, float, float, float], bool]
"""Class, box as the file has it (counted from 1), difficult."""

OBJECTS: dict[str, list[Object]] = {
    "a": [("dog", (1, 1, 10, 12), False), ("cat", (5, 6, 20, 16), True)],
    "b": [("cat", (3, 3, 9, 9), False)],
    "c": [],
    "d": [("bird", (2, 2, 8, 8), False)],
}
SPLITS = {"train": ["a", "b", "c"], "test": ["d"]}


def annotation(name: str, objects: Sequence[Object], suffix: str = ".png") -> str:
    """An annotation of an image of 24 x 16 pixels."""
    parts = [f"<annotation><filename>{name}{suffix}</filename><size><width>24</width><height>16</height></size>"]
    for label, (left, top, right, bottom), difficult in objects:
        box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        parts.append(
            f"<object><name>{label}</name><difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox></object>"
        )
    return "\n".join([*parts, "</annotation>"])


def write_voc(
    root: Path, objects: Mapping[str, list[Object]] = OBJECTS, splits: Mapping[str, Sequence[str]] = SPLITS
) -> Path:
    """Writes annotations, images of noise, and splits; returns the folder."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, found in objects.items():
        (root / "Annotations" / f"{name}.xml").write_text(annotation(name, found))
        image = Image.fromarray(generator.integers(0, 256, (16, 24, 3), dtype=np.uint8))
        image.save(root / "JPEGImages" / f"{name}.png")
    for split, names in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
