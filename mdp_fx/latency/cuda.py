"""Timing on an NVIDIA GPU, and what the targets that run there share.

Everything is enqueued on one stream, and the device's own events around it say how long it took.

A network is timed on an idle device, inputs and outputs in its memory: what a caller waits for.

A region is timed alone. Before each run a buffer larger than the level-2 cache is overwritten, several times over, and
the region's inputs are read: its weights are then as cold as in a network whose weights do not fit the cache, and its
inputs as warm as the layer before would have left them. That also keeps the device busy while the processor enqueues
the region, so that what lies between the events is the kernels' time, free of the gaps of launching them. So times of
regions add up; what launching costs a network beyond that shows in its residual.
"""

from __future__ import annotations

import math
import os
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

from mdp_fx.errors import TargetError
from mdp_fx.exporters.nvidia import gpu_dtypes, gpu_libraries, gpu_model, gpu_name, missing_gpu
from mdp_fx.graph.casting import DTYPES
from mdp_fx.latency.casting import check_dtype
from mdp_fx.latency.cpu import check_threads, cpu_model
from mdp_fx.latency.targets import Runner, Target
from mdp_fx.latency.timing import Effort, Timing, time_runs

_METHOD = 2  # raise it when the way of measuring changes: older measurements are then not comparable
_ALIGNMENT = 8  # tensor cores take 16 bytes of half-precision channels at a time
_CACHES_FLUSHED = 4
_WINDOW_RUNS = 10
_WINDOW_S = 0.02
_NETWORK_WARM_UP_S = (1.0, 3.0)  # at least and at most
_REGION_WARM_UP_S = (0.1, 0.5)
_STEADY = 0.02
_STEADY_WINDOWS = 3
_HEAD_START = 2.0
_MOST_FLUSHES = 100

Enqueue = Callable[[], object]
"""Enqueues one inference on the current stream, and does not wait for it."""


class CudaTimer:
    """Times what is enqueued on its stream.

    Attributes:
        stream: everything that is timed runs on it.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self._before = torch.cuda.Event(enable_timing=True)
        self._after = torch.cuda.Event(enable_timing=True)

    def seconds(self, enqueue: Enqueue) -> tuple[float, float]:
        """Runs once, and waits.

        Returns:
            Seconds on the device, and seconds that the processor took to enqueue it.
        """
        with torch.cuda.stream(self.stream), torch.inference_mode():
            self._before.record()
            begin = time.perf_counter()
            enqueue()
            enqueued_s = time.perf_counter() - begin
            self._after.record()
        self._after.synchronize()
        return 1e-3 * self._before.elapsed_time(self._after), enqueued_s

    def wait(self) -> None:
        """Waits for what was enqueued on other streams: weights and inputs come on torch's own."""
        torch.cuda.synchronize()

    def warm_up(self, enqueue: Enqueue, least_s: float, most_s: float) -> float:
        """Runs until a run's time is steady: clocks have risen, libraries have chosen their kernels.

        Args:
            enqueue: one run.
            least_s: seconds to go on for in any case: an idle device raises its clocks in steps, and is steady on each.
            most_s: seconds after which it is taken for steady.

        Returns:
            Seconds that the processor takes to enqueue a run.
        """
        self.wait()
        started, latest = time.perf_counter(), deque[float](maxlen=_STEADY_WINDOWS)
        while True:
            window = time.perf_counter()
            runs: list[tuple[float, float]] = []
            while len(runs) < _WINDOW_RUNS or time.perf_counter() - window < _WINDOW_S:
                runs.append(self.seconds(enqueue))
            latest.append(median(device_s for device_s, _ in runs))
            steady = len(latest) == _STEADY_WINDOWS and max(latest) - min(latest) <= _STEADY * latest[-1]
            elapsed = time.perf_counter() - started
            if elapsed > most_s or (steady and elapsed >= least_s):
                return median(enqueued_s for _, enqueued_s in runs)

    def time_region(
        self, enqueue: Enqueue, inputs: Sequence[Tensor], effort: Effort, *, launched: bool = False
    ) -> Timing:
        """Times a region: weights cold, inputs warm, the device busy until all is enqueued.

        Args:
            enqueue: the region.
            inputs: what it reads, on the device.
            effort: how long to go on.
            launched: the processor launches every kernel in a network too: where that takes longer, it counts.
        """
        flushes = self._flushes(self.warm_up(enqueue, *_REGION_WARM_UP_S))

        def make_busy() -> None:
            with torch.cuda.stream(self.stream), torch.inference_mode():
                for _ in range(flushes):
                    self._flush()
                for value in inputs:
                    value.sum()

        def run() -> float:
            device_s, enqueued_s = self.seconds(enqueue)
            return max(device_s, enqueued_s) if launched else device_s

        runs = time_runs(run, effort, make_busy, threads=None)
        return runs.timing_of(runs.seconds)

    def _flushes(self, enqueued_s: float) -> int:
        """How many flushes keep the device busy for longer than it takes to enqueue a run."""
        return min(_MOST_FLUSHES, 1 + math.ceil(_HEAD_START * enqueued_s / self._flush_s))

    def _flush(self) -> None:
        self._larger_than_cache.zero_()

    @cached_property
    def _larger_than_cache(self) -> Tensor:
        size = _CACHES_FLUSHED * torch.cuda.get_device_properties(0).L2_cache_size
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    @cached_property
    def _flush_s(self) -> float:
        return median(self.seconds(self._flush)[0] for _ in range(_WINDOW_RUNS))


class CudaRunner(Runner):
    """A network on the GPU, warmed up; a run says its seconds by the device's events."""

    def __init__(self, timer: CudaTimer, enqueue: Enqueue) -> None:
        self._timer = timer
        self._enqueue: Enqueue | None = enqueue
        timer.warm_up(enqueue, *_NETWORK_WARM_UP_S)

    def __call__(self) -> float:
        if self._enqueue is None:
            message = "this runner is closed"
            raise ValueError(message)
        return self._timer.seconds(self._enqueue)[0]

    def close(self) -> None:
        self._enqueue = None


class GpuTarget(Target):
    """What all targets on an NVIDIA GPU share; see this module for how they time.

    Attributes:
        place: the device, as torch calls it.
    """

    dtypes = DTYPES
    method = _METHOD
    place: ClassVar[str] = "cuda"

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        missing = self.missing()
        if missing is not None:
            raise TargetError(missing)
        self.threads = check_threads(threads)
        self.dtypes = tuple(name for name in self.dtypes if name in gpu_dtypes())
        self.dtype = check_dtype(self.name, dtype, self.dtypes)
        self.device = gpu_name()
        self.alignment = _ALIGNMENT
        self.timer = CudaTimer()

    @classmethod
    def missing(cls) -> str | None:
        lacking = cls.lacking()
        return f"target {cls.name} needs {' and '.join(lacking)}" if lacking else None

    @classmethod
    def lacking(cls) -> list[str]:
        """What it needs that is not here, and how to come by it."""
        return missing_gpu()

    def fingerprint(self) -> str:
        libraries = {**self.versions(), **gpu_libraries()}
        named = [f"{name} {version}" for name, version in libraries.items()]
        # the processor launches the kernels
        device = [gpu_model(), "with", cpu_model(), *self.settings()]
        return " ".join([self.name, *named, *device, self.dtype, f"m{self.method}"])

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the packages that decide how fast it is: the one that runs networks, then the others."""

    def settings(self) -> list[str]:
        """What was set to something else than it is by default, and takes other kernels."""
        override = os.environ.get("NVIDIA_TF32_OVERRIDE")
        return [] if override is None else [f"NVIDIA_TF32_OVERRIDE={'_'.join(override.split())}"]
