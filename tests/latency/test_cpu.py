"""Facts about this machine's processor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mdp_fx.latency import cpu
from mdp_fx.latency.cpu import CacheFlush, cores_to_pin, physical_cores
from mdp_fx.latency.measuring import compare
from mdp_fx.latency.targets import Runner, get_target
from mdp_fx.latency.timing import Effort, pinned, time_runs

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins threads")


@linux
def test_every_thread_gets_a_core_of_its_own() -> None:
    allowed = os.sched_getaffinity(0)
    for threads in range(1, physical_cores() + 1):
        cores = cores_to_pin(threads)
        assert len(set(cores)) == threads
        assert set(cores) <= allowed
    assert cores_to_pin(physical_cores() + 1) == ()


@linux
def test_the_first_core_is_the_one_where_this_thread_is() -> None:
    for core in sorted(os.sched_getaffinity(0)):
        with pinned(core):
            assert cores_to_pin(1) == (core,)


@linux
def test_a_thread_is_pinned_while_it_is_timed_and_free_before_and_after() -> None:
    before, seen = os.sched_getaffinity(0), []
    core = max(before)
    time_runs(lambda: seen.append(os.sched_getaffinity(0)), Effort(max_time_s=0.01), core=core)
    assert seen
    assert all(each == {core} for each in seen)
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError):
        time_runs(lambda: 1 / 0, Effort(), core=core)
    assert os.sched_getaffinity(0) == before


@linux
@pytest.mark.parametrize("name", ["onnxruntime:cpu", "torch:cpu"])
def test_networks_are_timed_on_one_core(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = get_target(name, 1).prepare(nn.Conv2d(3, 8, 3).eval(), (torch.randn(1, 3, 8, 8),))
    seen: list[set[int]] = []
    run = type(runner).__call__

    def watched(self: Runner) -> float | None:
        seen.append(os.sched_getaffinity(0))
        return run(self)

    monkeypatch.setattr(type(runner), "__call__", watched)
    compare({"a": runner}, min_time_s=0.0, max_time_s=0.01)
    assert seen
    assert all(len(each) == 1 for each in seen)
    runner.close()


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "200000 100000"}, 2.0),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_container_has_the_processors_of_its_quota(files: dict[str, str], processors: float, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n", encoding="ascii")
    assert cpu._quota(tmp_path) == processors


def test_a_flush_is_as_large_as_the_network_that_it_stands_for() -> None:
    flush = CacheFlush(1)
    small = flush.for_region(nn.Linear(8, 4, bias=False), [torch.zeros(2, 8)], [torch.zeros(2, 4)])
    assert _flushed(small) == 32 * 128 + 16 * (64 + 32)
    assert _flushed(flush.for_region(nn.Linear(4096, 4096), [], [])) == cpu._last_cache_bytes()


def _flushed(flush: Any) -> int:
    return int(flush.__self__.nbytes)
