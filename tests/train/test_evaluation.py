"""Accuracy, counted over batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import DataError
from mdp_fx.report.training import Accuracy
from mdp_fx.train.evaluation import evaluate


class Echo(nn.Module):
    """Its input holds the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 8:
            raise ValueError("eight it must be")
        return x


def measured(batches: Iterable[Any], limit: int | None = None) -> Accuracy:
    return evaluate(
        Echo().train(),
        batches,
        (8,),
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        total=lambda counts: counts,
        limit=limit,
    )


def test_first_and_best_five_are_counted_over_uneven_batches() -> None:
    falling = torch.arange(8.0).flip(0).expand(3, 8)  # Ranks the classes 0, 1, 2, ...
    batches = [(falling, torch.tensor([0, 4, 5])), (falling[:1], torch.tensor([0], dtype=torch.uint8))]
    assert measured(batches) == Accuracy(2 / 4, 3 / 4, 4)
    assert measured(batches, limit=1) == Accuracy(1 / 3, 2 / 3, 3)


def test_every_part_is_left_in_the_mode_it_was_in() -> None:
    network = nn.Sequential(Echo(), nn.BatchNorm1d(8)).train()
    network[1].eval()
    batches = [(torch.rand(3, 8), torch.tensor([0, 4, 5]))]
    evaluate(
        network,
        batches,
        (8,),
        device=torch.device("cpu"),
        autocast=contextlib.nullcontext,
        total=lambda counts: counts,
    )
    assert [part.training for part in network.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "the validation data has no batches"),
        ([(torch.zeros(2, 7), torch.tensor([0, 1]))], "does not fit the network: eight it must be"),
        ([(torch.zeros(2, 8), torch.tensor([0, 8]))], "labels 0..8 of a batch lie outside"),
        ([(torch.zeros(0, 8), torch.tensor([], dtype=torch.int64))], "has no examples"),
    ],
)
def test_data_that_do_not_fit_are_told(batches: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measured(batches)
