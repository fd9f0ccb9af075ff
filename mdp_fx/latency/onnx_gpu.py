"""Targets on an NVIDIA GPU whose runtimes take ONNX models: what ONNX Runtime's and TensorRT's share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.exporters.onnx_model import ONNX_DTYPES, to_onnx_bytes
from mdp_fx.files import reading
from mdp_fx.graph.casting import cast_network
from mdp_fx.latency.casting import CastRegion
from mdp_fx.latency.cuda import CudaRunner, Enqueue, GpuTarget
from mdp_fx.latency.region_onnx import RegionModels, agree
from mdp_fx.latency.targets import RegionSpec, Runner, results_of
from mdp_fx.latency.timing import Effort, Timing

_log = logging.getLogger(__name__)

# A graph that was resized wrongly is off by as much as its values are large, TF32 and float16 by per cents of that.
_ALLOWED_ERROR = 0.05


class OnnxGpuTarget(GpuTarget):
    """A runtime for ONNX models on the GPU.

    A region is a model of its own, timed as `mdp_fx.latency.cuda` says. A runtime may choose another memory format
    inside of a network than at the edge of a region, which then pays for the way in and out: the sum of regions tends
    to be above the network's latency; calibrating by whole networks (`mdp_fx.whole_network`) mends it.
    """

    dtypes = ONNX_DTYPES

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        super().__init__(threads, dtype)
        self._models = RegionModels()

    def versions(self) -> dict[str, str]:
        writers = {"torch": torch.__version__, "onnxscript": metadata.version("onnxscript")}
        return {**self.runtime(), **writers}

    @abstractmethod
    def runtime(self) -> dict[str, str]:
        """Versions of what runs the models."""

    @abstractmethod
    def load(
        self,
        model: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor] | None = None,
        region: RegionSpec | None = None,
    ) -> Enqueue:
        """Makes a model ready to run.

        Args:
            model: an ONNX file's content.
            inputs: what it reads, in device memory.
            outputs: where its results go, in device memory; by default wherever the runtime likes there.
            region: what the model is of; None for a whole network.

        Raises:
            ModelError: the runtime does not take the model, or not with these inputs and outputs.
        """

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        return self.runner(to_onnx_bytes(*cast_network(module, inputs, self.dtype)), inputs, "the network")

    def prepare_onnx(self, path: Path, inputs: tuple[Tensor, ...]) -> Runner:
        """Make an ONNX file ready to run, in the number formats that it is written in.

        Args:
            path: the file.
            inputs: example inputs, in order; floating-point numbers are cast to what the model reads.

        Raises:
            ModelError: the file cannot be read, or the runtime does not take it, or not with these inputs.
        """
        with reading(path, ModelError):
            model = path.read_bytes()
        return self.runner(model, inputs, str(path))

    def runner(self, model: bytes, inputs: tuple[Tensor, ...], what: str) -> Runner:
        """An ONNX file's content, ready to run; `what` it is for messages.

        Raises:
            ModelError: the runtime does not take it, or not with these inputs.
        """
        with self.refusing(what):
            return CudaRunner(self.timer, self.load(model, [value.to(self.place) for value in inputs]))

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """Kernel time of the region alone, weights cold."""
        region = CastRegion(region, self.dtype)
        module, inputs = region.build(sizes)
        what = f"the region {region.key} at sizes {sizes}"
        with self.refusing(what):
            on_device, device_inputs = cast_network(module, inputs, self.dtype, self.place)
            expected = results_of(on_device, device_inputs)
            found = [torch.empty(value.shape, dtype=value.dtype, device=self.place) for value in expected]
            reason = "it computes something else than torch"
            for model in self._models.of(region, sizes, module, inputs):
                try:
                    enqueue = self.load(model.SerializeToString(), device_inputs, found, region)
                    self.timer.wait()
                    self.timer.seconds(enqueue)
                except ModelError as error:
                    _log.debug("%s: %s", what, error)
                    reason = str(error)
                    continue
                if agree(found, expected, _ALLOWED_ERROR):
                    return self.timer.time_region(enqueue, device_inputs, effort)
        message = f"{what} does not run on {self.name} in {self.dtype}: {reason}"
        raise ModelError(message)
