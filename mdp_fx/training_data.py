"""Batches for training and validation, in an order that a run can go on with exactly.

Which images an epoch has, in which order, and how each is augmented is a function of (seed, epoch, image) alone: not of
the number of loading processes, of what was loaded before, or of where a run was stopped.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from mdp_fx.data import IMAGE_FOLDER, image_folder, load_loader
from mdp_fx.errors import DataError, InputError
from mdp_fx.passes.importance import guarded
from mdp_fx.train.run_state import mixed_seed, random_kept, seed_all

if TYPE_CHECKING:
    from mdp_fx.train.config import DataConfig

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, as torchvision's weights expect them."""

_PADDING = 8
"""A padded crop moves by an eighth of the image: 4 pixels of CIFAR's 32 (He et al., arXiv 1512.03385)."""


@dataclass(frozen=True)
class Shard:
    """The part of the data that one of several processes reads."""

    rank: int = 0
    world: int = 1


class Batches:
    """Batches of (inputs, targets) of one process, epoch by epoch.

    Args:
        loader: what gives the batches; an iterable of the user's, or the loader of an image folder.
        shard: which of them are this process's; a loader with a DistributedSampler gives no others.
        limit: batches of this process in an epoch, None for all.
        order: the sampler of an image folder, which shards by itself.
        seed: of generators that the loader has of its own.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        shard: Shard,
        limit: int | None = None,
        order: _Order | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._loader, self._limit, self._order, self._seed = loader, limit, order, seed
        sampler = getattr(loader, "sampler", None)
        self._holders = (loader, sampler, getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        self._sharded = order is not None or any(isinstance(each, DistributedSampler) for each in self._holders)
        self._shard = Shard() if self._sharded else shard

    def __len__(self) -> int:
        """Batches in an epoch.

        Raises:
            DataError: the loader does not say.
        """
        if not isinstance(self._loader, Sized):
            if self._limit is not None:
                return self._limit
            msg = f"the loader of type {type(self._loader).__name__} has no length: set data.epoch_batches"
            raise DataError(msg)
        try:
            whole = len(self._loader)
        except (TypeError, NotImplementedError) as error:  # a DataLoader over an iterable data set, or a wrapper
            if self._limit is not None:
                return self._limit
            msg = "the loader does not know its length: set data.epoch_batches"
            raise DataError(msg) from error
        count = whole // self._shard.world
        return count if self._limit is None else min(self._limit, count)

    @property
    def in_step(self) -> bool:
        """Whether all processes read one stream, and must draw the same random numbers to shuffle it alike."""
        return not self._sharded

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch, from number `start` on; those before it are passed over at once.

        Raises:
            DataError: the user's loader fails, or has fewer batches than it says.
        """
        for holder in self._holders:
            if callable(set_epoch := getattr(holder, "set_epoch", None)):
                set_epoch(number)
        # A generator goes on from epoch to epoch: a run that is taken up would begin with its first order again.
        for generator in self._generators():
            generator.manual_seed(mixed_seed(self._seed, number))
        count = len(self)
        if self._order is not None:
            self._order.move(number, start)
            return itertools.islice(guarded(self._loader), count - start)
        rest = _counted(self._mine(self._loader), count, number)
        for _ in range(start):
            next(rest)
        return rest

    def all(self) -> Iterator[Any]:
        """All batches of this process once, the same in every call: to measure on."""
        if self._order is not None:
            self._order.move(0, 0)
        states = [(generator, generator.get_state()) for generator in self._generators()]
        with random_kept():
            try:
                # A loader without a generator of its own shuffles by the global one, in all processes alike.
                seed_all(mixed_seed(self._seed, 0))
                for generator, _ in states:
                    generator.manual_seed(mixed_seed(self._seed, 0))
                yield from itertools.islice(self._mine(_apart(self._loader)), self._limit)
            finally:
                for generator, state in states:
                    generator.set_state(state)

    def _mine(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of this process."""
        return itertools.islice(guarded(loader), self._shard.rank, None, self._shard.world)

    def _generators(self) -> set[torch.Generator]:
        """The random generators that the loader has of its own."""
        found = (getattr(holder, "generator", None) for holder in self._holders)
        return {generator for generator in found if isinstance(generator, torch.Generator)}


def _apart(loader: Iterable[Any]) -> Iterable[Any]:
    """The loader; a copy of one whose workers stay, which has one iterator only: that of the epoch under way."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    apart = copy.copy(loader)
    apart._iterator = None
    return apart


def load_batches(
    config: DataConfig, shape: tuple[int, ...], shard: Shard, seed: int
) -> tuple[Batches, Batches | None, int | None]:
    """The training batches, the validation batches where there are any, and the number of classes where it is known.

    Args:
        config: what to read.
        shape: (channels, height, width) of one example.
        shard: which part this process reads.
        seed: of order, augmentation and split.

    Raises:
        DataError: there is no such data, or training and validation data have other classes.
    """
    assert config.train is not None
    if not _is_folder(config.train):
        if config.val_share:
            msg = f"data.val_share splits image folders; {config.train} is a loader of your own: name data.val"
            raise InputError(msg)
        train = Batches(_own(config.train, shape, config, seed), shard, config.epoch_batches, seed=seed)
        classes = None
    else:
        images = _ImageFolder(config.train, shape, config, seed, training=True)
        classes = len(images.classes)
        chosen, held = _split(len(images), config.val_share, seed)
        train = images.batches(chosen, shard, config.epoch_batches)
        if config.val_share:
            plain = _ImageFolder(config.train, shape, config, seed, training=False)
            return train, plain.batches(held, shard, config.val_batches), classes
    if config.val is None:
        return train, None, classes
    if not _is_folder(config.val):
        return train, Batches(_own(config.val, shape, config, seed), shard, config.val_batches, seed=seed), classes
    plain = _ImageFolder(config.val, shape, config, seed, training=False)
    if classes is not None and plain.classes != images.classes:
        odd = sorted(set(plain.classes) ^ set(images.classes))
        msg = f"{config.train} and {config.val} hold other classes: {odd[0]} is in one of them only"
        raise DataError(msg)
    return train, plain.batches(list(range(len(plain))), shard, config.val_batches), classes


def _is_folder(spec: str) -> bool:
    return spec.startswith(f"{IMAGE_FOLDER}:")


def _own(spec: str, shape: tuple[int, ...], config: DataConfig, seed: int) -> Iterable[Any]:
    loader = load_loader(spec, shape, batch_size=config.batch, seed=seed)
    if isinstance(loader, Iterator):
        msg = f"{spec} returned an iterator, which ends after one epoch: return a DataLoader or a list of batches"
        raise DataError(msg)
    return loader


def _counted(batches: Iterator[Any], count: int, epoch: int) -> Iterator[Any]:
    """So many batches.

    Raises:
        DataError: there are fewer.
    """
    found = 0
    for batch in itertools.islice(batches, count):
        yield batch
        found += 1
    if found < count:
        msg = f"the data loader gave {found} batches in epoch {epoch + 1}, not {count}: it must start anew each time"
        raise DataError(msg)


def _split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and those held out."""
    if not share:
        return list(range(count)), []
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(share * count))
    return sorted(order[held:]), sorted(order[:held])


class _Order(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): shuffled by (seed, epoch), dealt out to the processes, from some batch on.

    Validation images are shuffled too, always alike, for the first batches to be of all classes. `whole` drops what
    does not fill a batch of every process.
    """

    def __init__(self, indices: list[int], batch: int, shard: Shard, seed: int, *, whole: bool) -> None:
        self._indices, self._batch, self._shard, self._seed, self._whole = indices, batch, shard, seed, whole
        self._epoch = self._start = 0

    def move(self, epoch: int, start: int) -> None:
        """What the next iteration gives: the batches of `epoch` from `start` on."""
        self._epoch, self._start = epoch, start

    def __len__(self) -> int:
        count = len(self._indices)
        if not self._whole:
            return -(-len(range(self._shard.rank, count, self._shard.world)) // self._batch)
        return count // (self._batch * self._shard.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._epoch
        generator = torch.Generator().manual_seed(mixed_seed(self._seed, epoch))
        order = [self._indices[i] for i in torch.randperm(len(self._indices), generator=generator).tolist()]
        # Every process takes each world-th example: together they see what one process would, in one batch of all.
        mine = order[self._shard.rank :: self._shard.world]
        for number in range(self._start, len(self)):
            yield [(epoch, index) for index in mine[number * self._batch : (number + 1) * self._batch]]


class _ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images of a folder with one sub-folder per class, by (epoch, index)."""

    def __init__(self, spec: str, shape: tuple[int, ...], config: DataConfig, seed: int, *, training: bool) -> None:
        path = Path(spec.removeprefix(f"{IMAGE_FOLDER}:"))
        self._images = image_folder(path, shape)
        self._path, self._config, self._seed, self._training = path, config, seed, training
        self._transform = _transform((shape[1], shape[2]), config, training=training)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return list(self._images.classes)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self._images[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self._seed, epoch, index))
            return self._transform(image), label

    def batches(self, indices: list[int], shard: Shard, limit: int | None) -> Batches:
        """Some of the images as batches: whole ones for training, all images otherwise."""
        order = _Order(indices, self._config.batch, shard, self._seed, whole=self._training)
        if self._training and not len(order):
            msg = (
                f"{self._path} has {len(indices)} images for training, fewer than a batch of {self._config.batch} for "
                f"each of {shard.world} processes: lower data.batch"
            )
            raise DataError(msg)
        workers = self._config.workers
        loader = DataLoader(
            self,
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own, starting the loader would draw from the one that training draws from.
            generator=torch.Generator().manual_seed(self._seed),
        )
        return Batches(loader, shard, limit, order, seed=self._seed)


def _transform(size: tuple[int, int], config: DataConfig, *, training: bool) -> Any:
    """What makes a normalised tensor of shape (3, height, width) of an image."""
    from torchvision.transforms import v2

    height, width = size
    if training and config.augment == "crop-flip":
        # As ImageNet networks are trained: Szegedy et al. (arXiv 1409.4842), torchvision's references.
        first = [v2.RandomResizedCrop(size, scale=(config.crop_area, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    elif training and config.augment == "pad-flip":
        first = [
            v2.Resize(size, antialias=True),
            v2.RandomCrop(size, padding=max(1, min(size) // _PADDING)),
            v2.RandomHorizontalFlip(),
        ]
    else:
        first = [v2.Resize(round(max(height, width) * config.resize), antialias=True), v2.CenterCrop(size)]
    return v2.Compose([v2.PILToTensor(), *first, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)])
