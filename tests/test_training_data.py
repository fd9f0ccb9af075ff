"""Batches whose order depends on the seed and the epoch alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from mdp_fx.errors import DataError, InputError
from mdp_fx.train.config import DataConfig
from mdp_fx.training_data import Batches, Shard, load_batches
from tests.test_data import broken_folder
from tests.train.small_runs import image_folder

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"imagefolder:{image_folder(tmp_path_factory.mktemp('data') / 'train', 8)}"


def epoch(spec: str, number: int = 0, start: int = 0, shard: Shard | None = None, **keys: Any) -> list[Any]:
    config = DataConfig(train=spec, **{"batch": 4, "workers": 0, **keys})
    train, _, _ = load_batches(config, SHAPE, shard or Shard(), 5)
    return list(train.epoch(number, start))


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("augment", ["crop-flip", "pad-flip", "none"])
def test_images_do_not_depend_on_what_was_loaded_before(folder: str, augment: str) -> None:
    whole = epoch(folder, 2, augment=augment)
    torch.rand(3)
    assert same(epoch(folder, 2, start=5, augment=augment), whole[5:])
    assert same(epoch(folder, 2, workers=2, augment=augment), whole)
    assert not same(epoch(folder, 3, augment=augment), whole)
    assert {tuple(batch[0].shape) for batch in whole} == {(4, *SHAPE)}


def test_every_image_comes_once_and_augmented_anew(folder: str) -> None:
    labels = torch.cat([batch[1] for batch in epoch(folder)])
    assert labels.bincount().tolist() == [8, 8, 8, 8]
    assert labels.tolist() != sorted(labels.tolist())


def test_loading_leaves_the_global_generator_alone(folder: str) -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    epoch(folder)
    assert torch.equal(torch.rand(3), wanted)


def test_two_processes_see_together_what_one_sees(folder: str) -> None:
    one = epoch(folder, batch=8)
    parts = [epoch(folder, shard=Shard(rank, 2)) for rank in (0, 1)]
    for whole, first, second in zip(one, *parts, strict=True):
        assert torch.equal(whole[0][::2], first[0])
        assert torch.equal(whole[0][1::2], second[0])


def test_validation_shares_are_apart_and_plain(folder: str) -> None:
    config = DataConfig(train=folder, val_share=0.25, batch=4, workers=0)
    train, val, classes = load_batches(config, SHAPE, Shard(), 0)
    assert classes == 4
    assert val is not None
    assert len(train) == 6
    assert sum(len(labels) for _, labels in val.all()) == 8
    assert same(list(val.all()), list(val.all()))
    parts = [load_batches(config, SHAPE, Shard(rank, 2), 0)[1] for rank in (0, 1)]
    assert sum(len(labels) for part in parts if part is not None for _, labels in part.all()) == 8


def test_validating_on_training_images_does_not_disturb_an_epoch(folder: str) -> None:
    config = DataConfig(train=folder, batch=4, workers=0)
    train, _, _ = load_batches(config, SHAPE, Shard(), 0)
    wanted = list(train.epoch(3))
    running = train.epoch(3)
    found = [next(running)]
    next(train.all())
    assert same([*found, *running], wanted)


def loader(images: int = 12) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(torch.arange(images), torch.arange(images)), batch_size=2)


def test_batches_of_a_loader_are_dealt_out_and_passed_over() -> None:
    parts = [Batches(loader(14), Shard(rank, 2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    assert [[batch[0].tolist() for batch in part.epoch(0)] for part in parts] == [
        [[0, 1], [4, 5], [8, 9]],
        [[2, 3], [6, 7], [10, 11]],
    ]
    assert [batch[0].tolist() for batch in parts[0].epoch(0, 2)] == [[8, 9]]
    assert len(Batches(loader(), Shard(), 4)) == 4


def test_loaders_that_cannot_be_used_are_told() -> None:
    with pytest.raises(DataError, match=r"has no length: set data\.epoch_batches"):
        len(Batches(iter([1]), Shard()))
    short = Batches(iter([1, 2]), Shard(), 2)
    assert list(short.epoch(0)) == [1, 2]
    with pytest.raises(DataError, match=r"gave 0 batches in epoch 2, not 2: it must start anew"):
        list(short.epoch(1))


def test_measuring_is_on_the_same_batches_whatever_shuffles() -> None:
    shuffled = Batches(DataLoader(TensorDataset(torch.arange(64)), batch_size=8, shuffle=True), Shard(), seed=3)
    state = torch.get_rng_state()
    first = [batch[0].tolist() for batch in shuffled.all()]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert [batch[0].tolist() for batch in shuffled.all()] == first != sorted(first)
    parts = [Batches(shuffled._loader, Shard(rank, 2), seed=3) for rank in (0, 1)]
    found = []
    for part in parts:
        torch.rand(1)  # Processes draw numbers of their own.
        found += [batch[0].tolist() for batch in part.all()]
    assert sorted(found) == sorted(first)


def test_measuring_leaves_an_epoch_alone_whose_workers_stay() -> None:
    kept = DataLoader(TensorDataset(torch.arange(16)), batch_size=2, num_workers=1, persistent_workers=True)
    batches = Batches(kept, Shard())
    epoch = batches.epoch(0)
    found = [next(epoch)[0] for _ in range(3)]
    assert next(batches.all())[0].tolist() == [0, 1]
    assert torch.cat([*found, *(batch[0] for batch in epoch)]).tolist() == list(range(16))


def test_a_loader_that_will_not_tell_its_length() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter([1, 2])

        def __len__(self) -> int:
            raise NotImplementedError

    assert len(Batches(Stream(), Shard(), 2)) == 2
    with pytest.raises(DataError, match=r"does not know its length: set data\.epoch_batches"):
        len(Batches(Stream(), Shard()))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(tmp_path: Path, workers: int) -> None:
    bad = broken_folder(tmp_path)
    with pytest.raises(DataError, match=f"^cannot read the image {re.escape(str(bad))}: .*[a-z]") as caught:
        epoch(f"imagefolder:{tmp_path}", workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_loader_of_ones_own_says_is_told(workers: int) -> None:
    class Failing(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            raise KeyError(f"no entry {index}")

    failing = DataLoader(Failing(torch.arange(3)), num_workers=workers)
    with pytest.raises(DataError, match=r"^the data loader failed with KeyError: 'no entry 0'$"):
        list(Batches(failing, Shard()).epoch(0))


def test_the_first_validation_batches_hold_several_classes(folder: str) -> None:
    config = DataConfig(train=folder, val=folder, batch=4, workers=0)
    for shard in (Shard(), Shard(1, 2)):
        _, val, _ = load_batches(config, SHAPE, shard, 0)
        assert val is not None
        assert len(next(val.all())[1].unique()) > 1
        assert same(list(val.all()), list(val.all()))


def test_a_generator_of_the_loaders_own_follows_the_epoch() -> None:
    """A run that is taken up has the order of one that was not stopped."""

    def shuffled() -> DataLoader[tuple[Tensor, ...]]:
        data = TensorDataset(torch.arange(40), torch.arange(40))
        return DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(3))

    running = Batches(shuffled(), Shard(), seed=7)
    first, second = list(running.epoch(0)), list(running.epoch(1))
    assert not same(first, second)
    assert same(list(Batches(shuffled(), Shard(), seed=7).epoch(1)), second)
    assert not same(list(Batches(shuffled(), Shard(), seed=8).epoch(1)), second)


def test_a_loader_that_is_sharded_already_is_not_dealt_out() -> None:
    data = TensorDataset(torch.arange(12), torch.arange(12))
    parts = []
    for rank in (0, 1):
        sampler = DistributedSampler(data, 2, rank, shuffle=False)
        part = Batches(DataLoader(data, batch_size=2, sampler=sampler), Shard(rank, 2))
        assert len(part) == 3
        parts.append([index for batch in part.epoch(0) for index in batch[0].tolist()])
        assert [index for batch in part.all() for index in batch[0].tolist()] == parts[-1]
    assert parts == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]


def test_only_folders_are_split() -> None:
    config = DataConfig(train="tests.cli.tiny:make_loader", val_share=0.5)
    with pytest.raises(InputError, match="splits image folders"):
        load_batches(config, SHAPE, Shard(), 0)


def test_the_epoch_is_told_to_a_sampler_that_asks() -> None:
    told: list[int] = []

    class Asks(list[int]):
        def set_epoch(self, number: int) -> None:
            told.append(number)

    list(Batches(Asks([1, 2]), Shard()).epoch(4))
    assert told == [4]
