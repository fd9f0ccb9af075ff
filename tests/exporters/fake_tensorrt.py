"""A TensorRT of few words: it builds no engines, and notes what it is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__version__ = "10.3.0"


class Cache:
    """A timing cache: names of kernels, by commas. One that holds "stale" is of another GPU."""

    def __init__(self, data: bytes) -> None:
        self.kernels = set(data.decode().split(",")) - {""}

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        """Adds those of another one."""
        if "stale" in self.kernels and not ignore_mismatch:
            return False
        self.kernels |= other.kernels
        return True

    def serialize(self) -> bytes:
        """Its kernels."""
        return ",".join(sorted(self.kernels)).encode()


class Config:
    """A builder's configuration, which writes to its log."""

    def __init__(self, builder: FakeTensorRt) -> None:
        self._builder = builder

    def create_timing_cache(self, data: bytes) -> Cache:
        """A cache from a file's content."""
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        """Takes it, or says why not."""
        if "stale" in cache.kernels and not ignore_mismatch:
            self._builder.log.log("error", "the timing cache is of another GPU")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Cache:
        """The one that was set."""
        return self._cache

    def add_optimization_profile(self, profile: FakeTensorRt) -> None:
        """Keeps none: they are noted as they are made."""


class FakeTensorRt:
    """The module, and all that it makes but caches.

    Attributes:
        shapes: of the network's inputs.
        tensors: names of an engine's inputs and outputs, with their number formats.
        errors: what building says, where it fails.
        profiles: shapes that were set, by input.
        meanwhile: is called while an engine is built.
    """

    __version__ = __version__
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    TensorIOMode = SimpleNamespace(INPUT="input")

    class ILogger:
        """Base of loggers."""

        Severity = SimpleNamespace(INTERNAL_ERROR="internal error", ERROR="error")

    def __init__(self, shapes: list[tuple[int, ...]], tensors: dict[str, str] | None = None) -> None:
        self.shapes = shapes
        self.tensors = tensors or {}
        self.errors: list[str] = []
        self.profiles: dict[str, tuple[tuple[int, ...], ...]] = {}
        self.learned = "new"
        self.meanwhile: Any = lambda: None
        self.log: Any = None
        self.num_inputs = len(shapes)
        self.num_io_tensors = len(self.tensors)

    def Builder(self, log: Any) -> FakeTensorRt:  # noqa: N802 - TensorRT's names
        """Itself, with a log."""
        self.log = log
        return self

    def OnnxParser(self, *_: object) -> SimpleNamespace:  # noqa: N802
        """One that takes everything."""
        return SimpleNamespace(parse=lambda _: True)

    def Runtime(self, _: object) -> FakeTensorRt:  # noqa: N802
        """Itself."""
        return self

    def create_network(self, _: int) -> FakeTensorRt:
        """Itself."""
        return self

    def get_input(self, index: int) -> SimpleNamespace:
        """An input of the network."""
        return SimpleNamespace(name=f"x{index}", shape=self.shapes[index])

    def create_builder_config(self) -> Config:
        """A configuration."""
        self.config = Config(self)
        return self.config

    def create_optimization_profile(self) -> FakeTensorRt:
        """Itself."""
        return self

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        """Notes the smallest, the best and the largest shape."""
        self.profiles[name] = shapes

    def build_serialized_network(self, *_: object) -> bytes | None:
        """An engine, unless there are errors."""
        self.meanwhile()
        for error in self.errors:
            self.log.log("error", error)
        self.config.get_timing_cache().kernels.add(self.learned)
        return None if self.errors else b"engine"

    def deserialize_cuda_engine(self, _: bytes) -> FakeTensorRt:
        """Itself."""
        return self

    def create_execution_context(self) -> FakeTensorRt:
        """Itself."""
        return self

    def get_tensor_name(self, index: int) -> str:
        """Name of an input or output of the engine."""
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        """Inputs are called x."""
        return "input" if name.startswith("x") else "output"

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        """All are alike."""
        return (2, 3)

    def set_input_shape(self, *_: object) -> bool:
        """Any will do."""
        return True

    def set_tensor_address(self, *_: object) -> None:
        """Any will do."""

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        """Its number format."""
        return SimpleNamespace(name=self.tensors[name])
