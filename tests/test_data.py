"""Data and functions as users name them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mdp_fx.data import load_function, load_loader
from mdp_fx.errors import DataError
from mdp_fx.passes.importance import guarded


def load(spec: str) -> list[object]:
    """All batches of a spec at 3 x 8 x 8."""
    return list(load_loader(spec, (3, 8, 8), batch_size=2, seed=0))


def test_a_loader_of_ones_own() -> None:
    batches = load("tests.cli.tiny:make_loader")
    assert len(batches) == 2


def test_an_image_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image.new("RGB", (20, 16), (40 * i, 10, 10)).save(tmp_path / name / f"{i}.png")
    batches = load(f"imagefolder:{tmp_path}")
    images, labels = zip(*batches, strict=True)  # type: ignore[misc]
    assert [tuple(part.shape) for part in images] == [(2, 3, 8, 8)] * 2
    assert sorted(torch.cat(labels).tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nothing", "imagefolder:PATH"),
        ("tests.cli.tiny:make_loade", "did you mean make_loader"),
        ("no.such.module:f", "cannot be imported"),
        ("imagefolder:nowhere", "no image folder"),
        ("tests.cli.tiny:make_network", "not an iterable"),
    ],
)
def test_refuses(spec: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load(spec)


def test_an_image_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no classes"):
        load(f"imagefolder:{tmp_path}")


def broken_folder(path: Path) -> Path:
    """A folder with one image that ends too early; its path is returned."""
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (path / name).mkdir()
        for i in range(2):
            image.effect_noise((40, 40), 90).convert("RGB").save(path / name / f"{i}.png")
    bad = path / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:900])
    return bad


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    bad = broken_folder(tmp_path)
    with pytest.raises(DataError, match=f"^cannot read the image {re.escape(str(bad))}: "):
        list(guarded(load_loader(f"imagefolder:{tmp_path}", (3, 8, 8), batch_size=2, seed=0)))


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_path: str) -> None:
        raise PermissionError(13, "Permission denied", "cat")

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(DataError, match=r"^cannot read the image folder .*Permission denied"):
        load(f"imagefolder:{tmp_path}")


def test_functions_are_found() -> None:
    assert load_function("math:sqrt", "loss")(4.0) == 2.0
