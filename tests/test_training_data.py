"""Batches whose order depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mdp_fx.errors import DataError, InputError
from mdp_fx.train.config import DataConfig
from mdp_fx.training_data import Batches, Shard, load_batches
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
