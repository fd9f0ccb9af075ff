"""Target torch:cpu: PyTorch's eager mode on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mdp_fx.graph.casting import DTYPES, cast_network
from mdp_fx.graph.forward import copied_tensors
from mdp_fx.latency.casting import CastRegion, check_dtype
from mdp_fx.latency.cpu import CacheFlush, check_threads, cores_to_pin, cpu_model, vector_alignment
from mdp_fx.latency.targets import RegionSpec, Runner, Target, results_of
from mdp_fx.latency.timing import Effort, Timing, time_runs

_METHOD = 4  # raise it when the way of measuring changes: older measurements are then not comparable


class TorchCpu(Target):
    """PyTorch eager, inference mode."""

    name = "torch:cpu"
    method = _METHOD
    dtypes = DTYPES

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        self.threads = check_threads(threads)
        self.dtype = check_dtype(self.name, dtype, self.dtypes)
        self.device = cpu_model()
        self.alignment = vector_alignment()
        self._flush = CacheFlush(self.threads)

    def fingerprint(self) -> str:
        # What a script may have set takes other kernels.
        device = cpu_model() + ("" if torch.backends.mkldnn.enabled else " without oneDNN")
        return f"{self.name} torch {torch.__version__} {device} threads {self.threads} {self.dtype} m{_METHOD}"

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        # A forward of the user's may write to its inputs, and raise anything.
        return self._runner(*cast_network(module, copied_tensors(inputs), self.dtype), "the network", (Exception,))

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """Wall-clock time of the region alone, weights cold: eager mode runs op by op in a network as well."""
        module, inputs = CastRegion(region, self.dtype).build(sizes)
        runner = self._runner(module, inputs, f"the region {region.key} at sizes {sizes}")
        flush = self._flush.for_region(module, inputs, results_of(module, inputs))

        def cold_weights_warm_inputs() -> None:
            flush()
            for value in inputs:  # a network's activations were written just before
                value.count_nonzero()

        with _thread_count(self.threads):
            runs = time_runs(runner, effort, cold_weights_warm_inputs, self.threads, runner.core)
        return runs.timing_of(runs.seconds)

    def _runner(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        what: str,
        kinds: tuple[type[Exception], ...] = (RuntimeError,),
    ) -> Runner:
        runner = _TorchRunner(module, inputs, self.threads)
        with self.refusing(what, kinds):
            runner()
        return runner


class _TorchRunner(Runner):
    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], threads: int) -> None:
        self._module = module
        self._inputs = inputs
        self.threads = self._count = threads
        # Several threads are torch's own, which it gives no core each: one on a core of its own would wait for them.
        self.core = next(iter(cores_to_pin(threads)), None) if threads == 1 else None

    def __call__(self) -> None:
        with _thread_count(self._count), torch.inference_mode():
            self._module(*self._inputs)


@contextmanager
def _thread_count(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
