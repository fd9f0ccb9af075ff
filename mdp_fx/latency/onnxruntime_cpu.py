"""Target onnxruntime:cpu: ONNX Runtime's CPU provider.

How a region is timed, and why. Timed alone, the regions of a network add up to more than its latency (mobilenet_v2: 1.2
to 1.6 times, the more the slimmer): each reorders its activations into the runtime's blocked layout and back, and pays
for a call. Here each is put between neighbours that speak the blocked layout (`region_onnx.in_context`), and the
runtime's own profiler says what the region's kernels take, reordering that the region itself causes included. Between
two runs the caches are flushed: its weights are then about as cold as in a network, and its activations as warm, for
the neighbour has just written them.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import torch
from numpy.typing import NDArray
from onnx_ir.passes import PassError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn

from mdp_fx.errors import ModelError, TargetError, first_line
from mdp_fx.exporters.onnx_model import to_onnx_bytes
from mdp_fx.exporters.parity import max_relative_error
from mdp_fx.graph.casting import cast_network
from mdp_fx.latency.casting import CastRegion, check_dtype
from mdp_fx.latency.cpu import CacheFlush, check_threads, cores_to_pin, cpu_model, vector_alignment
from mdp_fx.latency.region_onnx import AFTER, PREFIX, InContext, RegionTemplate, direct, in_context
from mdp_fx.latency.targets import RegionSpec, Runner, Target
from mdp_fx.latency.timing import Effort, Timing, time_runs

_log = logging.getLogger(__name__)

FeedArray = NDArray[Any]

_METHOD = 2  # raise it when the way of measuring changes: older measurements are then not comparable
_SILENT = 4  # severity "fatal": errors come as exceptions, a second time on stderr helps nobody
_CHAIN = 64
_OVERHEAD_EFFORT = Effort(min_runs=50, max_runs=200)
_KERNEL = "_kernel_time"

_RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(
    value for value in vars(ort_state).values() if isinstance(value, type) and issubclass(value, Exception)
)
_REFUSALS: tuple[type[Exception], ...] = (*_RUNTIME_ERRORS, PassError)


class OnnxRuntimeCpu(Target):
    """ONNX Runtime, CPU provider, default graph optimisations."""

    name = "onnxruntime:cpu"

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        self.threads = check_threads(threads)
        self._cores = cores_to_pin(self.threads)
        self.dtype = check_dtype(self.name, dtype, self.dtypes)
        self.device = cpu_model()
        self.alignment = vector_alignment()
        self._flush = CacheFlush(self.threads)
        self._templates: dict[str, RegionTemplate] = {}
        self._overhead_s: float | None = None
        onnxruntime.set_default_logger_severity(_SILENT)
        onnxruntime.disable_telemetry_events()

    def fingerprint(self) -> str:
        runtime = f"onnxruntime {onnxruntime.__version__}"
        return f"{self.name} {runtime} {cpu_model()} threads {self.threads} {self.dtype} m{_METHOD}"

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        module, inputs = cast_network(module, inputs, self.dtype)
        model = to_onnx_bytes(module, inputs)
        try:
            session = self._session(model)
        except _RUNTIME_ERRORS as error:
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
        except _RUNTIME_ERRORS as error:
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
            session, feeds = self._region_session(region, sizes, module, inputs, Path(folder) / "profile")
            flush = self._flush.for_weights(module)
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
                session = self._session(_chain(_CHAIN), Path(folder) / "profile")
                self._chain_seconds(session)
                profiled = Timing.of(_kernel_seconds(Path(session.end_profiling()).read_bytes(), 0.0)).low_s
            shortest = self._chain_seconds(self._session(_chain(1)))
            longest = self._chain_seconds(self._session(_chain(1 + _CHAIN)))
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
        profile: Path,
    ) -> tuple[onnxruntime.InferenceSession, dict[str, FeedArray]]:
        """A session of the region in context that computes what torch computes, after its first run."""
        with torch.inference_mode():
            outputs = _as_tuple(module(*inputs))
        template = self._templates.get(region.key)
        if template is None or not template.fits(module):
            template = self._templates[region.key] = RegionTemplate(region)
        while template.exact:
            try:
                context = in_context(template.resize(module, inputs, sizes), inputs, outputs)
                session = self._session(context.model.SerializeToString(), profile)
                if _agrees(session, context, module):
                    return session, context.feeds
            except _REFUSALS as error:
                _log.debug("region %s resized to %s is refused: %s", region.key, sizes, first_line(error))
            template.exact = template.learn()
        _log.debug("region %s is exported at %s: it cannot be resized", region.key, sizes)
        context = in_context(direct(module, inputs), inputs, outputs)
        try:
            session = self._session(context.model.SerializeToString(), profile)
            if _agrees(session, context, module):
                return session, context.feeds
        except _RUNTIME_ERRORS as error:
            message = f"onnxruntime does not take the region {region.key} at sizes {sizes}: {first_line(error)}"
            raise ModelError(message) from error
        message = f"onnxruntime and torch disagree on the region {region.key} at sizes {sizes}"
        raise ModelError(message)

    def _session(self, model: bytes | str, profile: Path | None = None) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _SILENT
        # Networks are timed in turn: the idle ones' threads must not spin on the cores that the running one needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if len(self._cores) > 1:  # processors count from 1 here, and the calling thread is not among them
            others = ";".join(str(core + 1) for core in self._cores[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
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
    seconds, after = 0.0, False
    for event in json.loads(profile):
        name = str(event.get("name", ""))
        if name == "model_run":
            runs.append(seconds)
            seconds, after = 0.0, False
        elif name.endswith(_KERNEL):
            if name.startswith(PREFIX):
                after = name.startswith(AFTER)
            elif not after:  # what comes after the following neighbour only gives the output back to the caller
                seconds += max(0.0, event["dur"] * 1e-6 - overhead_s)
    if not runs:
        message = f"onnxruntime {onnxruntime.__version__} writes profiles without runs: use another version"
        raise TargetError(message)
    return runs


def _chain(length: int) -> bytes:
    """A model of `length` kernels in a row on a single number."""
    number = (onnx.TensorProto.FLOAT, [1])
    nodes = [
        onnx.helper.make_node("Neg" if index % 2 else "Abs", [f"x{index}"], [f"x{index + 1}"])
        for index in range(length)
    ]
    first, last = (onnx.helper.make_tensor_value_info(name, *number) for name in ("x0", f"x{length}"))
    graph = onnx.helper.make_graph(nodes, "chain", [first], [last])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _agrees(session: onnxruntime.InferenceSession, context: InContext, module: nn.Module) -> bool:
    results = session.run(None, context.feeds)
    with torch.inference_mode():
        expected = _as_tuple(module(*context.inputs))
    if len(results) != len(expected):
        return False
    for result, tensor, averaged in zip(results, expected, context.averaged, strict=True):
        wanted = (tensor.mean(1, keepdim=True) if averaged else tensor).numpy()
        if result.shape != wanted.shape or not np.isfinite(result).all():
            return False
        # an average of large terms may be small: the terms set the scale of the rounding
        limit = max_relative_error(tensor.dtype) * max(float(tensor.abs().max()), 1e-6)
        if np.abs(result - wanted).max(initial=0.0) > limit:
            return False
    return True


def _as_tuple(result: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
