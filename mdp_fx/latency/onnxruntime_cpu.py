"""Target onnxruntime:cpu: ONNX Runtime's CPU provider.

How a region is timed, and why. Timed alone, the regions of a network add up to more than its latency (mobilenet_v2: 1.2
to 1.6 times, the more the slimmer): each reorders its activations into the runtime's blocked layout and back, and pays
for a call. Here each is put between neighbours that speak the blocked layout (`region_onnx.in_context`), and the
runtime's own profiler says what the region's kernels take, reordering that the region itself causes included. Between
two runs the caches are flushed: its weights and the memory that it writes are then about as cold as in a network, and
what it reads as warm, for the neighbour has just written that.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdp_fx.errors import ModelError, TargetError, first_line
from mdp_fx.exporters.onnx_model import to_onnx_bytes
from mdp_fx.graph.casting import cast_network
from mdp_fx.latency.casting import CastRegion, check_dtype
from mdp_fx.latency.cpu import CacheFlush, check_threads, cores_to_pin, cpu_model, vector_alignment
from mdp_fx.latency.onnxruntime_sessions import RUNTIME_ERRORS, be_silent, chain_model, session_options
from mdp_fx.latency.region_onnx import AFTER, PREFIX, RegionModels, agree, in_context
from mdp_fx.latency.targets import RegionSpec, Runner, Target, results_of
from mdp_fx.latency.timing import Effort, Timing, time_runs

_log = logging.getLogger(__name__)

FeedArray = NDArray[Any]

_METHOD = 4  # raise it when the way of measuring changes: older measurements are then not comparable
_CHAIN = 64
_OVERHEAD_EFFORT = Effort(min_runs=50, max_runs=200)
_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"  # the runtime's names for kernels that speak its blocked layout end so
_UNBLOCK = "ReorderOutput"


class OnnxRuntimeCpu(Target):
    """ONNX Runtime, CPU provider, default graph optimisations."""

    name = "onnxruntime:cpu"
    method = _METHOD

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        self.threads = check_threads(threads)
        self._cores = cores_to_pin(self.threads)
        self.dtype = check_dtype(self.name, dtype, self.dtypes)
        self.device = cpu_model()
        self.alignment = vector_alignment()
        self._flush = CacheFlush(self.threads)
        self._models = RegionModels()
        self._overhead_s: float | None = None
        be_silent()

    def fingerprint(self) -> str:
        runtime = f"onnxruntime {onnxruntime.__version__}"
        return f"{self.name} {runtime} {cpu_model()} threads {self.threads} {self.dtype} m{_METHOD}"

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        module, inputs = cast_network(module, inputs, self.dtype)
        model = to_onnx_bytes(module, inputs)
        try:
            session = self._session(model)
        except RUNTIME_ERRORS as error:
            message = (
                f"onnxruntime does not take the exported network: {first_line(error)}; --target torch:cpu may help"
            )
            raise ModelError(message) from error
        return self._runner(session, inputs)

    def prepare_onnx(self, path: Path, inputs: tuple[Tensor, ...]) -> Runner:
        """Make an ONNX file ready to run as it is, with `inputs` in the order of its own.

        Raises:
            ModelError: onnxruntime refuses the file, or the inputs.
        """
        try:
            runner = self._runner(self._session(str(path)), inputs)
            runner()
        except RUNTIME_ERRORS as error:
            message = f"onnxruntime does not take {path}: {first_line(error)}"
            raise ModelError(message) from error
        return runner

    def _runner(self, session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> Runner:
        names = [value.name for value in session.get_inputs()]
        feeds = {name: value.detach().numpy() for name, value in zip(names, inputs, strict=True)}
        return _OrtRunner(session, feeds, self.threads, self._core)

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """Kernel time of the region between neighbours, weights cold."""
        region = CastRegion(region, self.dtype)
        with tempfile.TemporaryDirectory(prefix="mdp-fx-") as folder:
            module, inputs = region.build(sizes)
            outputs = results_of(module, inputs)
            session, feeds = self._region_session(region, sizes, module, inputs, outputs, Path(folder) / "profile")
            flush = self._flush.for_region(module, inputs, outputs)
            runs = time_runs(lambda: session.run(None, feeds), effort, flush, self.threads, self._core)
            seconds = _kernel_seconds(Path(session.end_profiling()).read_bytes(), self._profiler_overhead())
            # before the timed runs come the one that checked the outputs, and the warm-up
            return runs.timing_of(seconds[-len(runs.seconds) :])

    @property
    def _core(self) -> int | None:
        return self._cores[0] if self._cores else None

    def _profiler_overhead(self) -> float:
        """Seconds that the profiler adds to each kernel's time.

        Some 2 us, from noting shapes and memory: a tenth of a slim mobilenet. Measured once, on chains of kernels that
        do next to nothing, as what the profiler says of one less what one more takes by the clock.
        """
        if self._overhead_s is None:
            with tempfile.TemporaryDirectory(prefix="mdp-fx-") as folder:
                session = self._session(chain_model(_CHAIN), Path(folder) / "profile")
                self._chain_seconds(session)
                profiled = Timing.of(_kernel_seconds(Path(session.end_profiling()).read_bytes(), 0.0)).low_s
            shortest = self._chain_seconds(self._session(chain_model(1)))
            longest = self._chain_seconds(self._session(chain_model(1 + _CHAIN)))
            self._overhead_s = max(0.0, profiled - (longest - shortest)) / _CHAIN
            _log.debug("the profiler adds %.2f us per kernel", self._overhead_s * 1e6)
        return self._overhead_s

    def _chain_seconds(self, session: onnxruntime.InferenceSession) -> float:
        feeds = {"x0": np.ones(1, np.float32)}
        runs = time_runs(lambda: session.run(None, feeds), _OVERHEAD_EFFORT, threads=self.threads, core=self._core)
        return runs.timing_of(runs.seconds).low_s

    def _region_session(
        self,
        region: RegionSpec,
        sizes: tuple[int, ...],
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        profile: Path,
    ) -> tuple[onnxruntime.InferenceSession, dict[str, FeedArray]]:
        """A session of the region in context that computes what torch computes, after its first run."""
        what = f"the region {region.key} at sizes {sizes}"
        refusal = ""
        for model in self._models.of(region, sizes, module, inputs):
            context = in_context(model, inputs, outputs)
            try:
                session = self._session(context.model.SerializeToString(), profile)
                results = [torch.from_numpy(np.asarray(result)) for result in session.run(None, context.feeds)]
            except RUNTIME_ERRORS as error:
                refusal = f"onnxruntime does not take {what}: {first_line(error)}"
                _log.debug("%s", refusal)
                continue
            if agree(results, results_of(module, context.inputs), averaged=context.averaged):
                return session, context.feeds
            refusal = f"onnxruntime and torch disagree on {what}"
        raise ModelError(refusal)

    def _session(self, model: bytes | str, profile: Path | None = None) -> onnxruntime.InferenceSession:
        options = session_options(self.threads, profile)
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Networks are timed in turn: the idle ones' threads must not spin on the cores that the running one needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if len(self._cores) > 1:  # processors count from 1 here, and the calling thread is not among them
            others = ";".join(str(core + 1) for core in self._cores[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _OrtRunner(Runner):
    def __init__(
        self, session: onnxruntime.InferenceSession, feeds: dict[str, FeedArray], threads: int, core: int | None
    ) -> None:
        self.threads = threads
        self.core = core
        self._session: onnxruntime.InferenceSession | None = session
        self._feeds = feeds

    def __call__(self) -> None:
        if self._session is None:
            message = "this runner is closed"
            raise ValueError(message)
        self._session.run(None, self._feeds)

    def close(self) -> None:
        self._session = None


def _kernel_seconds(profile: bytes, overhead_s: float) -> list[float]:
    """Seconds of the region's kernels per run, `overhead_s` off each, from the profile of a region in context.

    Raises:
        TargetError: the profile has no runs in it, as if its format had changed.
    """
    runs: list[float] = []
    microseconds, kernels, previous = 0, 0, ""
    for event in json.loads(profile):
        name = str(event.get("name", ""))
        if name == "model_run":
            # The profiler cuts times down to whole microseconds: only their sum is worth comparing with the overhead.
            runs.append(max(0.0, microseconds * 1e-6 - kernels * overhead_s))
            microseconds, kernels, previous = 0, 0, ""
        elif name.endswith(_KERNEL):
            # A neighbour behind an output that speaks the blocked layout is followed at once by the kernel that gives
            # its result back to the caller.
            gives_back = name.startswith(_UNBLOCK) and previous.startswith(AFTER) and _BLOCKED in previous
            if not name.startswith(PREFIX) and not gives_back:
                microseconds, kernels = microseconds + event["dur"], kernels + 1
            previous = name
    if not runs:
        message = f"onnxruntime {onnxruntime.__version__} writes profiles without runs: use another version"
        raise TargetError(message)
    return runs
