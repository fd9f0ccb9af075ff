"""GPU targets on machines without a GPU: a clock for them, and what they need to say of themselves."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from mdp_fx.latency import cuda, fingerprints, onnxruntime_gpu, tensorrt_target
from mdp_fx.latency.cuda import CudaTimer, Enqueue, GpuTarget
from mdp_fx.latency.targets import target_class

GPU_TARGETS = ["torch:cuda", "onnxruntime:cuda", "onnxruntime:tensorrt", "onnxruntime:tensorrt-rtx", "tensorrt"]
MODEL = "NVIDIA H200 compute 9.0"
LIBRARIES = {"driver": "570.86.15", "CUDA": "13.0", "cuDNN": "91900"}


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this machine one with a GPU, as far as fingerprints are concerned."""
    for module in (cuda, fingerprints):
        monkeypatch.setattr(module, "gpu_model", lambda: MODEL)
        monkeypatch.setattr(module, "gpu_libraries", lambda: dict(LIBRARIES))
        monkeypatch.setattr(module, "missing_gpu", list)
    monkeypatch.setattr(cuda, "cpu_model", lambda: "AMD EPYC 25/17 (AVX512)")
    monkeypatch.setattr(tensorrt_target, "load_tensorrt", lambda: SimpleNamespace(__version__="10.16.1.11"))
    monkeypatch.setattr(onnxruntime_gpu, "_tensorrt_version", lambda: {"tensorrt": "10.16.1.11"})
    monkeypatch.setitem(sys.modules, onnxruntime_gpu._RTX_PACKAGE, SimpleNamespace(__version__="0.5.0"))


def unstarted(name: str, dtype: str = "float32") -> GpuTarget:
    """A GPU target that has no device."""
    kind = target_class(name)
    assert issubclass(kind, GpuTarget)
    target = object.__new__(kind)
    target.dtype = dtype
    return target


class WallTimer(CudaTimer):
    """The wall's clock, on the processor."""

    def __init__(self) -> None:
        self.stream = None
        self._flush_s = 1.0

    def wait(self) -> None:
        pass

    def seconds(self, enqueue: Enqueue) -> tuple[float, float]:
        begin = time.perf_counter()
        enqueue()
        return time.perf_counter() - begin, 0.0

    def _flush(self) -> None:
        pass
