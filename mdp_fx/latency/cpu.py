"""Facts about this machine's processor that the CPU targets share."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from threading import Barrier

import numpy as np
import torch
from torch import Tensor, nn

from mdp_fx.errors import TargetError

# Between two runs of a region inside a network the other regions' weights and activations pass through the caches. A
# flush stands in for them: a network of some 32 regions like this one. So a region with large weights finds them as
# cold as in a resnet, and one with small weights finds them in the cache, as in a slim mobilenet, where a fixed flush
# of 32 MiB over-charged by 10 to 30 % (none at all under-charged a dense resnet18 by 5 %). Activations count half:
# neighbours share them. Without them a mobilenet's large first layers were under-charged by up to 40 %, for they found
# the memory that they write in the cache. Beyond the last cache nothing gets colder.
_REGIONS_PER_NETWORK = 32
_ACTIVATIONS_PER_NETWORK = 16
_USUAL_CACHE_BYTES = 32 * 2**20
_MOST_FLUSHED_BYTES = 256 * 2**20


class CacheFlush:
    """Makes the weights of a region, and the memory that it writes, about as cold as they are inside a network.

    Args:
        threads: of the region. Every core has caches of its own, so as many threads pass data through theirs.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._buffer = np.ones(min(_last_cache_bytes(), _MOST_FLUSHED_BYTES) // 8)
        self._pool = ThreadPoolExecutor(threads - 1, "cache-flush") if threads > 1 else None
        if self._pool is not None:
            # Started here, they are not bound to the core of the thread that is timed.
            barrier = Barrier(threads)
            for _ in range(threads - 1):
                self._pool.submit(barrier.wait)
            barrier.wait()

    def for_region(
        self, module: nn.Module, inputs: Iterable[Tensor], outputs: Iterable[Tensor]
    ) -> Callable[[], object]:
        """The flush that belongs to a region's `module`; to call before every run."""
        weights, activations = _bytes(module.parameters()), _bytes(inputs) + _bytes(outputs)
        part = self._buffer[: (_REGIONS_PER_NETWORK * weights + _ACTIVATIONS_PER_NETWORK * activations) // 8]
        if self._pool is None:
            return part.sum
        own, *others = np.array_split(part, self._threads)
        pool = self._pool

        def flush() -> None:
            waiting = [pool.submit(each.sum) for each in others]
            own.sum()
            wait(waiting)

        return flush


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _last_cache_bytes() -> int:
    """Size of the processor's last cache, as Linux tells it, but no less than that of many."""
    sizes = [_USUAL_CACHE_BYTES]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text.endswith("K") and text[:-1].isdecimal():
            sizes.append(1024 * int(text[:-1]))
    return max(sizes)


def check_threads(threads: int | None) -> int:
    """The thread count to use: `threads`, or the physical cores this process may run on.

    Raises:
        TargetError: `threads` is no whole number, below 1, or above the logical processors.
    """
    if threads is None:
        return physical_cores()
    if not isinstance(threads, int) or isinstance(threads, bool):
        message = f"threads is {threads!r}; it must be an int of at least 1"
        raise TargetError(message)
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > most:
        message = f"{threads} threads asked for: this process may use {most} processor{'s' * (most > 1)}"
        raise TargetError(message)
    if threads < 1:
        message = f"{threads} threads asked for: give at least 1"
        raise TargetError(message)
    return threads


def physical_cores() -> int:
    """Physical cores that this process may use (logical ones where the system does not tell them apart)."""
    cores = len(_processors_by_core()) or os.cpu_count() or 1
    return max(1, math.floor(min(cores, _quota(Path("/sys/fs/cgroup")))))


def _quota(cgroup: Path) -> float:
    """How many processors a container may use at a time, by its control group (version 2, or 1)."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        files = [cgroup / name for name in names]
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
            return int(quota) / int(period) if quota.isdecimal() else math.inf
    return math.inf


def cores_to_pin(threads: int) -> tuple[int, ...]:
    """Processors for as many threads, each on a core of its own, from the one where this thread is now.

    The system put it where nobody else was. Empty where there are not so many cores, or the system does not pin.
    """
    by_core = _processors_by_core()
    if threads > len(by_core):
        return ()
    now = _processor()
    here = next((place for place, siblings in enumerate(by_core) if now in siblings), 0)
    return tuple(siblings[0] for siblings in (by_core[here:] + by_core[:here])[:threads])


def _processor() -> int:
    """The logical processor that this thread runs on (proc(5): field 39; the second is a name in parentheses)."""
    text = Path("/proc/thread-self/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[36])


def _processors_by_core() -> list[list[int]]:
    """The logical processors of every physical core that this process may run on; empty where nobody says."""
    if sys.platform != "linux":
        return []
    cores: dict[str, list[int]] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        name = siblings.read_text(encoding="ascii").strip() if siblings.is_file() else str(processor)
        cores.setdefault(name, []).append(processor)
    return list(cores.values())


def vector_alignment() -> int:
    """Channels per block of the blocked layouts: 16 with AVX-512 (ONNX Runtime's NCHWc), else 8."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability().upper() else 8


@cache
def cpu_model() -> str:
    """Name of the processor, with its vector instructions: "AMD EPYC 9654 (AVX512)"."""
    return f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu_name() -> str:
    if sys.platform == "linux":
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        if name:
            # cloud machines hide the model in the name ("AMD EPYC"), the family and model numbers do not
            numbers = re.findall(r"^(?:cpu family|model)\s*:\s*(\d+)$", text, re.MULTILINE)[:2]
            return " ".join([name.group(1).strip(), "/".join(numbers)]).strip()
        # ARM processors have numbers only, and boards a name
        numbers = re.findall(r"^CPU (?:implementer|part|variant)\s*:\s*(\w+)$", text, re.MULTILINE)
        board = Path("/proc/device-tree/model")
        names = [board.read_text(encoding="utf-8", errors="replace").strip("\0 \n")] if board.is_file() else []
        if numbers:
            return " ".join([platform.machine(), "/".join(dict.fromkeys(numbers)), *names])
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.strip()
    return platform.processor() or platform.machine()
