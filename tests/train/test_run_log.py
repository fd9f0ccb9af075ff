"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path

from mdp_fx.train.run_log import FILE, RunLog


def test_lines_beyond_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 0, tensorboard=False) as log:
        for step in range(1, 5):
            log.write("train", step, loss=float(step))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "tr')  # as a kill leaves it
    with RunLog(tmp_path, 2, 2, tensorboard=False) as log:
        log.write("train", 3, loss=float("nan"))
        assert log.lines == 3
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, None)]


def test_a_new_run_begins_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"step": 0}\n')
    with RunLog(tmp_path, 0, 0, tensorboard=False):
        pass
    assert (tmp_path / FILE).read_text() == ""


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 0, 0, tensorboard=True) as log:
        log.write("train", 7, loss=0.5, note="text")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 0.5)]
    assert events.Tags()["scalars"] == ["train/loss"]
