"""What a batch must be, and mixing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from mdp_fx.errors import DataError
from mdp_fx.train.config import TuneConfig
from mdp_fx.train.objective import Mixing, all_finite, check_labels, classes_of, first_tensor, split_batch

IMAGES, LABELS = torch.zeros(2, 3, 4, 4), torch.tensor([0, 4])


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ((), LABELS, "a batch of data has no inputs: it must be (inputs, targets)"),
        ((IMAGES[:0],), LABELS[:0], "a batch of data has no examples: leave empty batches out"),
        ((IMAGES[:, :, :2],), LABELS, "a batch of data has shape 2x3x2x4, the network takes Nx3x4x4; see data.input"),
        (("a",), LABELS, "a batch of data has shape str, "),
        (
            (IMAGES,),
            LABELS.float(),
            "the targets of a batch must be whole-number labels of shape (2,), found torch.float",
        ),
        (
            (IMAGES,),
            LABELS[:1],
            "the targets of a batch must be whole-number labels of shape (2,), found torch.int64 (1,)",
        ),
        ((IMAGES,), [0, 1], "the targets of a batch must be whole-number labels of shape (2,), found list"),
        ((IMAGES,), LABELS + 1, "labels 1..5 of a batch lie outside of the network's 5 classes (0..4)"),
        ((IMAGES,), LABELS - 1, "labels -1..3 of a batch lie outside of the network's 5 classes (0..4)"),
    ],
)
def test_batches_that_do_not_fit_are_told(inputs: tuple[Any, ...], targets: Any, message: str) -> None:
    check_labels((IMAGES,), LABELS, (3, 4, 4), 5)
    with pytest.raises(DataError) as caught:
        check_labels(inputs, targets, (3, 4, 4), 5)
    assert str(caught.value).startswith(message)


def test_a_batch_is_inputs_and_targets() -> None:
    assert split_batch([IMAGES, LABELS]) == ((IMAGES,), LABELS)
    assert split_batch(((IMAGES, 3), None)) == ((IMAGES, 3), None)
    with pytest.raises(DataError, match=r"must be \(inputs, targets\), found a dict$"):
        split_batch({"x": IMAGES})
    with pytest.raises(DataError, match=r"found a list of 3$"):
        split_batch([IMAGES, LABELS, LABELS])


def test_classes_are_those_of_the_first_tensor() -> None:
    assert classes_of({"out": torch.zeros(2, 7), "aux": torch.zeros(2, 3)}) == 7
    with pytest.raises(DataError, match="has shape \\(2,\\), no classes"):
        classes_of(torch.zeros(2))
    with pytest.raises(DataError, match="returns a NoneType without a tensor"):
        first_tensor(None)


@pytest.mark.parametrize("keys", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixed_labels_are_shares(keys: dict[str, float]) -> None:
    torch.manual_seed(0)
    images, shares = Mixing(TuneConfig(**keys), 5)(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert images.shape == (4, 3, 8, 8)
    assert shares.shape == (4, 5)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert int((shares > 0).sum()) > 4


def test_without_mixing_torchvision_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    assert Mixing(TuneConfig(), 5)(IMAGES, LABELS) == (IMAGES, LABELS)


def test_what_is_finite_is_told_of_plain_tensors() -> None:
    lost = IMAGES.clone()
    lost[0, 0, 0, 0] = float("inf")
    assert bool(all_finite((IMAGES, LABELS)))
    assert not bool(all_finite(((lost,), LABELS)))
    assert bool(all_finite((lost.to_sparse(), "a")))
