"""The state of a run."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mdp_fx.errors import OutputError
from mdp_fx.train import run_state


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_numbers_go_on_after_a_file(tmp_path: Path) -> None:
    run_state.seed_all(3)
    drawn()
    run_state.save_run(tmp_path, {"random": run_state.random_state()})
    wanted = drawn()
    state = run_state.load_run(tmp_path)
    assert state is not None
    run_state.restore_random_state(state["random"])
    assert drawn() == wanted


def test_of_the_gpus_only_ones_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_state.random_state()["cuda"] is None
    put = list[torch.Tensor]()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr("torch.cuda.set_rng_state", put.append)
    run_state.restore_random_state(run_state.random_state())
    assert [int(each) for each in put] == [7]


def test_what_is_drawn_inside_does_not_show() -> None:
    run_state.seed_all(1)
    wanted = drawn()
    run_state.seed_all(1)
    with run_state.random_kept():
        drawn()
    assert drawn() == wanted


def test_neighbouring_seeds_are_unrelated() -> None:
    seeds = {run_state.mixed_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert run_state.mixed_seed(1, 2) == run_state.mixed_seed(1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_state.save_run(tmp_path, {"step": 1})

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mdp_fx.files.os.fsync", full)
        with pytest.raises(OutputError, match="disk full"):
            run_state.save_run(tmp_path, {"step": 2})
    state = run_state.load_run(tmp_path)
    assert state is not None
    assert state["step"] == 1


def test_what_a_kill_left_half_written_is_deleted(tmp_path: Path) -> None:
    run_state.save_run(tmp_path, {"step": 1})
    (tmp_path / f".{run_state.FILE}.abcd.tmp").write_bytes(b"half")
    run_state.load_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run_state.FILE]


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert run_state.load_run(tmp_path) is None
