"""What a target is, and the registry of targets by name.

A target is a device with a runtime on it. A new one is one file with a subclass of `Target`, and one line in
`_TARGETS`.
"""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError, TargetError, first_line
from mdp_fx.latency.timing import Effort, Timing
from mdp_fx.passes.convolutions import Convolution


class RegionSpec(Protocol):
    """What a latency table needs to know of a cost region; `passes.cost_regions.CostRegion` is one."""

    @property
    def key(self) -> str:
        """Everything the runtime sees but the sizes; regions with equal keys are interchangeable."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Per axis "in" or "out"; empty for a region of constant cost."""

    @property
    def dense_sizes(self) -> tuple[int, ...]:
        """Per axis the size in the dense network."""

    @property
    def build(self) -> Callable[[tuple[int, ...]], tuple[nn.Module, tuple[Tensor, ...]]]:
        """The region as a module at given sizes, in eval mode, with example inputs."""

    @property
    def convolutions(self) -> Callable[[tuple[int, ...]], tuple[Convolution, ...]]:
        """The convolutions in the region at given sizes."""


def results_of(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What torch computes, always as a tuple."""
    with torch.inference_mode():
        result = module(*inputs)
    return (result,) if isinstance(result, Tensor) else tuple(result)


class Runner(ABC):
    """A network made ready on a target: call it for one inference.

    Attributes:
        threads: processor threads that an inference keeps busy; None where it waits for another device.
        core: the processor that the calling thread is kept on while it is timed; None where it may move.
    """

    threads: int | None = None
    core: int | None = None

    @abstractmethod
    def __call__(self) -> float | None:
        """Run one inference, and wait until it is done.

        Returns:
            Its seconds by the device's own clock; None where the processor's clock counts.
        """

    def close(self) -> None:  # noqa: B027 - most runners hold nothing
        """Let go of what the runner holds."""


class Target(ABC):
    """A device and a runtime to measure on.

    Attributes:
        name: the name in the registry, such as "onnxruntime:cpu".
        dtypes: number formats that it can run in.
        dtype: number format of weights and activations: networks and regions are cast to it, as copies.
        device: what the device is called.
        threads: CPU threads used.
        alignment: channel multiple at which this target's latency steps.
        can_run: whether it times anything; where not, it predicts from a table that came from elsewhere.
        method: number of its way of measuring, at the end of its fingerprints; None where those do not age.
    """

    name: str
    can_run: ClassVar[bool] = True
    method: ClassVar[int | None] = None
    dtypes: tuple[str, ...] = ("float32",)
    dtype: str = "float32"
    device: str = ""
    threads: int
    alignment: int

    @abstractmethod
    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        """Take the device with `threads` CPU threads (None: one per physical core).

        Raises:
            TargetError: the device or its runtime is missing (the message says what to install), or cannot run in
                `dtype`.
        """

    @classmethod
    def missing(cls) -> str | None:
        """What this machine lacks for the target, and how to come by it, in one line; None where nothing."""
        return None

    @contextmanager
    def refusing(self, what: str, kinds: tuple[type[Exception], ...] = (RuntimeError,)) -> Iterator[None]:
        """Says in one line that the target does not take `what`.

        Raises:
            ModelError: one of `kinds` was raised, by torch (for want of memory, say) or by the runtime.
        """
        try:
            yield
        except kinds as error:
            message = f"{what} does not run on {self.name} in {self.dtype}: {first_line(error)}"
            raise ModelError(message) from error

    @abstractmethod
    def fingerprint(self) -> str:
        """Everything that makes two measurements comparable: device, runtime and version, threads, dtype, method."""

    @abstractmethod
    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        """Make a whole network ready to run, as it would be deployed.

        Raises:
            ModelError: the network cannot be brought to this target.
        """

    @abstractmethod
    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """Time that the region at `sizes` takes as a part of a network: these times are to be added up.

        Raises:
            ModelError: the region cannot be brought to this target.
        """


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX file, by its name."""
    return path.suffix.lower() == ".onnx"


@runtime_checkable
class RunsOnnx(Protocol):
    """A target that runs ONNX files as they are."""

    def prepare_onnx(self, path: Path, inputs: tuple[Tensor, ...]) -> Runner:
        """Make the file ready to run, with `inputs` in the order of its own.

        Raises:
            ModelError: the runtime refuses the file, or the inputs.
        """


def is_engine(path: Path) -> bool:
    """Whether a file is a TensorRT engine, by its name."""
    return path.suffix.lower() in (".engine", ".plan")


@runtime_checkable
class RunsEngines(Protocol):
    """A target that runs serialised TensorRT engines."""

    def prepare_engine(self, data: bytes, inputs: tuple[Tensor, ...]) -> Runner:
        """Make an engine ready to run.

        Raises:
            ModelError: the runtime refuses the engine, or the inputs.
        """


_TARGETS = {
    "onnxruntime:cpu": ("mdp_fx.latency.onnxruntime_cpu", "OnnxRuntimeCpu", "onnxruntime"),
    "torch:cpu": ("mdp_fx.latency.torch_cpu", "TorchCpu", "torch"),
    "torch:cuda": ("mdp_fx.latency.torch_cuda", "TorchCuda", "torch"),
    "onnxruntime:cuda": ("mdp_fx.latency.onnxruntime_gpu", "OnnxRuntimeCuda", "onnxruntime"),
    "onnxruntime:tensorrt": ("mdp_fx.latency.onnxruntime_gpu", "OnnxRuntimeTensorRt", "onnxruntime"),
    "onnxruntime:tensorrt-rtx": ("mdp_fx.latency.onnxruntime_gpu", "OnnxRuntimeTensorRtRtx", "onnxruntime"),
    "tensorrt": ("mdp_fx.latency.tensorrt_target", "TensorRt", "tensorrt"),
}


TABLE_PREFIX = "table:"
SHIPPED_TABLES = {"titan-v": "titan_v_batch256_conv_latency.csv"}
"""Tables that come with the package, by the name of their target, see `table_target.py`."""
_TABLES = (*SHIPPED_TABLES, f"{TABLE_PREFIX}PATH")


def target_names() -> tuple[str, ...]:
    """The names of the targets that run networks."""
    return tuple(_TARGETS)


def get_target(
    name: str,
    threads: int | None = None,
    dtype: str = "float32",
    *,
    fill: Literal["analytic"] | None = None,
    batch: int | None = None,
) -> Target:
    """The target called `name`.

    Args:
        name: one of `target_names()`, "titan-v", or "table:" and the path of a table of convolutions.
        threads: CPU threads; None takes one per physical core available to this process.
        dtype: number format to run in, one of the target's `dtypes`.
        fill: "analytic" estimates what a table does not have; for the targets that are tables alone.
        batch: batch size that latency will be asked for; a table must have it.

    Raises:
        TargetError: no such target (near names are offered), a missing package or device, a number format that it
            cannot run in, a bad thread count, or another batch than a table has.
        InputError: the table cannot be read.
    """
    if not isinstance(name, str):
        message = f"target is {name!r}; it must be a name, such as onnxruntime:cpu"
        raise TargetError(message)
    if name in SHIPPED_TABLES or name.startswith(TABLE_PREFIX):
        from mdp_fx.latency.table_target import TableTarget

        if dtype != "float32":
            message = (
                f"target {name} is a table, which has the number format that it was measured in: leave out --dtype"
            )
            raise TargetError(message)
        table = TableTarget.named(name, threads, fill)
        if batch is not None:
            table.check_batch(batch)
        return table
    if fill is not None:
        message = f"--fill is for targets that are tables ({', '.join(_TABLES)}); {name} measures what it does not know"
        raise TargetError(message)
    return target_class(name)(threads, dtype)


def runs_nothing(name: str) -> TargetError:
    """What is raised where a table is asked to run a network."""
    return TargetError(
        f"the target {name} is a table: it predicts latency and runs no network; name a device to time on"
    )


def target_class(name: str) -> type[Target]:
    """The class of the target called `name`.

    Raises:
        TargetError: no such target (near names are offered), or a missing package.
    """
    if name not in _TARGETS:
        known = (*_TARGETS, *_TABLES)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known targets: {', '.join(known)}"
        message = f"unknown target {name!r}: {hint}"
        raise TargetError(message)
    module_name, class_name, package = _TARGETS[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if not (error.name or "").startswith(package):
            raise
        message = f"target {name} needs the package {package}, which cannot be imported: pip install {package}"
        raise TargetError(message) from error
    return cast("type[Target]", getattr(module, class_name))
