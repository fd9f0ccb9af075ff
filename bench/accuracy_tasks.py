"""Data and networks that the methods are compared on: real images, trained networks, all in memory."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common import SHARED
from bench.resnet_cifar import ResNetCifar
from mdp_fx.train.run_state import mixed_seed

CIFAR_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
CIFAR_DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
"""What the shared networks were trained with."""


FASHION = tuple(
    Path(root) / "usr/share/datasets/fashion-mnist"
    for root in ("/", Path(__file__).parent.parent / "build" / "fashion")
)


@dataclass(frozen=True)
class Images:
    """Images of shape (N, C, H, W), normalised, and labels of shape (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> Images:
        """The same on a device."""
        return Images(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class Epochs:
    """Batches of shuffled, randomly cropped and flipped images: a function of the seed and the epoch.

    Attributes:
        images: to take them from.
        batch: images in a batch.
        seed: of order and augmentation.
        padding: pixels that a crop moves by at most; `flip` whether images are mirrored.
    """

    images: Images
    batch: int
    seed: int
    padding: int
    flip: bool

    def __len__(self) -> int:
        return len(self.images.train) // self.batch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch."""
        device = self.images.train.device
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, number))
        order = torch.randperm(len(self.images.train), generator=generator).to(device)
        size, pad = self.images.train.shape[-1], self.padding
        for chosen in order[: len(self) * self.batch].split(self.batch):
            images = self.images.train[chosen]
            if pad:
                moved = torch.randint(0, 2 * pad + 1, (2, len(images), 1), generator=generator).to(device)
                rows, columns = (moved + torch.arange(size, device=device)).unbind()
                padded = F.pad(images, (pad, pad, pad, pad))
                at = torch.arange(len(images), device=device)[:, None, None]
                images = padded[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            if self.flip:
                mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(device)[:, None, None, None]
                images = torch.where(mirrored, images.flip(3), images)
            yield images.contiguous(), self.images.train_labels[chosen]


@dataclass(frozen=True)
class Task:
    """A data set with a network and how it is trained; everything is the same for all methods.

    Attributes:
        data: name of the data set, `network` of the network.
        load: reads the images.
        build: the network to begin with, and whether it is trained already.
        input: shape of one example.
        dense_epochs: epochs to the dense baseline, at `dense_rate`.
        epochs: of fine-tuning, at `rate`.
        batch: of training.
        padding: see `Epochs`, as for `flip`.
        timed_batch: batch that latency counts at.
        step: channel step.
    """

    data: str
    network: str
    load: Callable[[], Images]
    build: Callable[[], nn.Module]
    input: tuple[int, int, int]
    dense_epochs: int
    dense_rate: float
    epochs: int
    rate: float
    batch: int
    padding: int
    flip: bool
    timed_batch: int
    step: int


def fashion_mnist() -> Images:
    """10,000 of the training images of Fashion-MNIST and all test images, from Debian's package."""
    for folder in FASHION:
        if folder.is_dir():
            break
    else:
        raise SystemExit(
            "Fashion-MNIST is missing: apt-get install dataset-fashion-mnist, or make bench-accuracy-small"
        )
    tensors: list[Tensor] = []
    for part, count in (("train", 10_000), ("t10k", 10_000)):
        images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8, offset=16).reshape(-1, 1, 28, 28)[:count]
        tensors.append(((pixels / 255 - 0.2860) / 0.3530).expand(-1, 3, -1, -1).contiguous())
        tensors.append(torch.frombuffer(bytearray(labels), dtype=torch.uint8, offset=8)[:count].long())
    return Images(*tensors)


def cifar10() -> Images:
    """CIFAR-10 as JPEG, from the shared data."""
    from PIL import Image

    parts: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "test": []}
    with zipfile.ZipFile(SHARED / "cifar10_jpeg.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        paths = [name.split("/")[-3:] for name in names]
        classes = sorted({path[1] for path in paths})
        for name, (part, kind, _) in zip(names, paths, strict=True):
            with Image.open(io.BytesIO(archive.read(name))) as image:
                parts[part].append((np.asarray(image.convert("RGB")), classes.index(kind)))
    tensors: list[Tensor] = []
    for part in ("train", "test"):
        pixels = torch.from_numpy(np.stack([image for image, _ in parts[part]])).permute(0, 3, 1, 2)
        tensors.append((pixels.float() / 255 - CIFAR_MEAN) / CIFAR_DEVIATION)
        tensors.append(torch.tensor([label for _, label in parts[part]]))
    return Images(*tensors)


def _resnet14() -> nn.Module:
    torch.manual_seed(0)
    return ResNetCifar(2).eval()


def _trained(blocks: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = ResNetCifar(blocks)
        network.load_state_dict(torch.load(SHARED / f"cifar10_resnet{6 * blocks + 2}.pt", weights_only=True))
        return network.eval()

    return build


def _cifar(blocks: int) -> Task:
    return Task(
        *("cifar10", f"resnet{6 * blocks + 2}", cifar10, _trained(blocks), (3, 32, 32)),
        dense_epochs=15,
        dense_rate=0.01,
        epochs=40,
        rate=0.02,
        batch=128,
        padding=4,
        flip=True,
        timed_batch=16,
        step=4,
    )


TASKS = {
    "fashion-mnist": Task(
        *("fashion-mnist", "resnet14", fashion_mnist, _resnet14, (3, 28, 28)),
        dense_epochs=5,
        dense_rate=0.1,
        epochs=2,
        rate=0.02,
        batch=64,
        padding=2,
        flip=True,
        timed_batch=16,
        step=4,
    ),
    "cifar10-resnet20": _cifar(3),
    "cifar10-resnet56": _cifar(9),
}
