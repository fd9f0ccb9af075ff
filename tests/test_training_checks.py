"""What a run looks at on the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from mdp_fx.report.training import Accuracy
from mdp_fx.training_checks import Checks, fallen


def test_a_process_without_a_batch_looks_at_nothing() -> None:
    empty: Any = SimpleNamespace(all=lambda: iter(()))
    setup: Any = SimpleNamespace(val=empty, train=None)
    accelerator: Any = SimpleNamespace(device="cpu")
    assert Checks(accelerator, setup).collapse(nn.Identity()) is None


def test_lost_accuracy_is_told() -> None:
    dense = Accuracy(0.8, 1.0, 100)
    told = fallen(dense, Accuracy(0.1, 0.5, 100))
    assert told is not None
    assert told.startswith("pruning took the accuracy from 80.0% to 10.0%, before any further training")
    assert fallen(dense, Accuracy(0.3, 0.5, 100)) is None
    assert fallen(None, dense) is None
