"""Training runs of a small network: their files, their data, and how they are killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx import training
from mdp_fx.report.training import TrainReport
from mdp_fx.train.config_file import read_config
from tests.train.small_runs import image_folder, slim_file

SMALL = ("data.batch=8", "data.workers=0", "tune.epochs=2", "tune.rate=0.02", "log.every=1", "log.tensorboard=false")


class Files:
    """Where a test's runs find and leave their files: a slim network for four classes, and 32 images of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slim = slim_file(folder / "slim.pt")
        self.images = image_folder(folder / "images")

    def keys(self, name: str, **further: Any) -> dict[str, Any]:
        spec = f"imagefolder:{self.images}"
        plain = {"model": str(self.slim), "output": str(self.folder / f"{name}.pt"), "device": "cpu"}
        return {**plain, "data.train": spec, "data.val": spec, **further}

    def tune(self, name: str, *overrides: str, resume: bool = False, force: bool = False, **keys: Any) -> TrainReport:
        """Fine-tunes the slim network."""
        config = read_config(None, [*SMALL, *overrides], self.keys(name, **keys))
        return training.run(config, prune=False, resume=resume, force=force)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Of the network that a run wrote."""
        return mdp_fx.load(self.folder / f"{name}.pt").state_dict()

    def log(self, name: str, kind: str = "train") -> list[dict[str, Any]]:
        """Lines of a run's log."""
        return log(self.folder, name, kind)


def log(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind of a run's log."""
    lines = (folder / f"{name}-run" / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    """Stands for a kill: nothing in the program may catch it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Kills the run within at its checkpoint of a step."""
    save = training.save_run

    def save_and_die(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if state["trainer"]["step"] == step:
            raise Killed

    with patch.object(training, "save_run", save_and_die), pytest.raises(Killed):
        yield
    torch.rand(7)  # The state of the process that goes on is another one.


def kill_at(step: int, files: Files, *overrides: str, **keys: Any) -> None:
    """Runs `killed` until its checkpoint at a step."""
    with killed_at(step):
        files.tune("killed", *overrides, **keys)


def batches(
    count: int, shape: tuple[int, ...] = (3, 16, 16), low: int = 0, high: int = 4
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, *shape, generator=generator) for _ in range(count)]
    return [(x, torch.randint(low, high, (4,), generator=generator)) for x in images]


def make_huge() -> list[tuple[Tensor, Tensor]]:
    """An image of the third batch overflows the statistics of a batch norm, and the loss stays a number."""
    found = batches(4)
    found[2][0][0].mul_(1e25)
    return found


def make_plain() -> list[tuple[Tensor, Tensor]]:
    return batches(4)


def make_poisoned() -> list[tuple[Tensor, Tensor]]:
    """The third batch is finite, and a convolution of it is not."""
    found = batches(4)
    found[2][0].sign_().mul_(torch.finfo(torch.float32).max)
    return found


def make_not_finite() -> list[tuple[Tensor, Tensor]]:
    """The third batch has a number missing."""
    found = batches(4)
    found[2][0][0, 0, 0, 0] = float("nan")
    return found


def make_iterator() -> Iterator[tuple[Tensor, Tensor]]:
    return iter(batches(2))


def make_no_inputs() -> list[tuple[list[Tensor], Tensor]]:
    return [([], labels) for _, labels in batches(4)]


class Flat(nn.Module):
    """Writes the size of its batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.two(self.one(x).relu()).relu(), 2)
        flat: Tensor = self.head(x.view(x.size(0), -1))
        return flat


def make_flat() -> nn.Module:
    return Flat()


def make_short_labels() -> list[tuple[Tensor, Tensor]]:
    return [(images, labels.int()) for images, labels in batches(4)]


def make_numbers() -> list[tuple[Tensor, Tensor]]:
    return [(images, labels.float()) for images, labels in batches(4)]


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


class Regression(nn.Module):
    """One number for each image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).mean((1, 2, 3))
