"""Timing on a GPU, as far as it is arithmetic: nothing here needs one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from mdp_fx.errors import TargetError
from mdp_fx.latency import Effort, cuda, get_target
from mdp_fx.latency.cuda import CudaRunner, CudaTimer, Enqueue

QUICK = Effort(min_runs=3, max_runs=3, warm_up=1)
GPU_TARGETS = ["torch:cuda", "onnxruntime:cuda", "onnxruntime:tensorrt", "onnxruntime:tensorrt-rtx", "tensorrt"]


class Clockwork(CudaTimer):
    """A device whose runs take what they are told, the last one from then on."""

    def __init__(self, *runs: tuple[float, float]) -> None:
        self.stream = None
        self.runs = list(runs)
        self.flushed = 0
        self.order: list[str] = []

    def wait(self) -> None:
        self.order.append("wait")

    def seconds(self, enqueue: Enqueue) -> tuple[float, float]:
        self.order.append("run")
        enqueue()
        return self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]

    def _flush(self) -> None:
        self.order.append("flush")
        self.flushed += 1


@pytest.mark.parametrize("name", GPU_TARGETS)
def test_without_a_gpu_a_target_says_what_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        TargetError, match=rf"^target {name} needs an NVIDIA GPU with its driver \(this torch sees none"
    ):
        get_target(name)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(TargetError, match=rf"^target {name} needs a torch built for CUDA \(torch .* is not\)"):
        get_target(name)


def test_the_warm_up_ends_when_runs_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.latency.cuda._WINDOW_S", 0.0)
    timer = Clockwork(*[(seconds, 1e-5) for seconds in (4.0, 3.0, 2.0, 1.01, 1.0, 1.005, 0.5) for _ in range(10)])
    assert timer.warm_up(lambda: None, 0.0, 60.0) == 1e-5
    assert timer.order == ["wait", *["run"] * 60]


def test_two_windows_at_the_clock_of_an_idle_device_are_not_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.latency.cuda._WINDOW_S", 0.0)
    timer = Clockwork(*[(seconds, 1e-5) for seconds in (2.0, 2.0, 1.0) for _ in range(10)])
    timer.warm_up(lambda: None, 0.0, 60.0)
    assert timer.order == ["wait", *["run"] * 50]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """A device whose runs take a millisecond, by the processor's clock too."""
    timer = Clockwork((1e-3, 1e-5))
    timer._flush_s = 1e-4
    monkeypatch.setattr(cuda, "time", SimpleNamespace(perf_counter=lambda: 1e-3 * timer.order.count("run")))
    return timer


def test_a_region_is_warmed_up_for_a_while_though_all_is_steady(ticking: Clockwork) -> None:
    ticking.time_region(lambda: None, [torch.ones(2)], QUICK)
    assert 100 <= ticking.order.index("flush") < 200


def test_a_network_is_warmed_up_for_longer(ticking: Clockwork) -> None:
    CudaRunner(ticking, lambda: None)
    assert 1000 <= ticking.order.count("run") < 1200


def test_a_device_that_is_never_steady_is_warm_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdp_fx.latency.cuda._WINDOW_S", 0.0)
    timer = Clockwork(*[(float(2**index), 2e-5) for index in range(100) for _ in range(10)])
    assert timer.warm_up(lambda: None, 0.0, 0.0) == 2e-5
    assert timer.order == ["wait", *["run"] * 10]


def test_flushes_keep_the_device_busy_while_a_region_is_enqueued() -> None:
    timer = Clockwork((1e-3, 1e-4))
    timer._flush_s = 5e-5
    assert timer._flushes(1e-4) * 5e-5 > 2 * 1e-4
    assert timer._flushes(1e-6) == 2
    assert timer._flushes(10.0) == 100


@pytest.mark.parametrize(("launched", "expected"), [(False, 1e-5), (True, 3e-5)])
def test_launching_counts_where_a_network_launches_too(launched: bool, expected: float) -> None:
    timer = Clockwork((1e-5, 3e-5))
    timer._flush_s = 1e-4
    timing = timer.time_region(lambda: None, [torch.ones(2)], QUICK, launched=launched)
    assert timing.median_s == pytest.approx(expected)
    assert timing.runs == 3
    last = timer.order[-9:]
    assert last == ["flush", "flush", "run"] * 3


def test_a_runner_answers_by_the_devices_clock_until_it_is_closed() -> None:
    runner = CudaRunner(Clockwork((0.25, 1e-5)), lambda: None)
    assert math.isclose(runner(), 0.25)
    assert runner.threads is None
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner()
