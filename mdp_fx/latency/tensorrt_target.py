"""Target tensorrt: engines of TensorRT, as `mdp-fx export --to tensorrt` writes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mdp_fx.exporters.tensorrt_engine import Engine, build_engine, load_tensorrt, missing_tensorrt
from mdp_fx.latency.cache_folders import cache_folder
from mdp_fx.latency.cuda import CudaRunner, Enqueue
from mdp_fx.latency.onnx_gpu import OnnxGpuTarget
from mdp_fx.latency.targets import RegionSpec, Runner


class TensorRt(OnnxGpuTarget):
    """TensorRT through its Python API, strongly typed engines.

    Networks and regions are both built for the very shapes of their inputs, so that their kernels are of one kind; an
    engine of `mdp-fx export --to tensorrt`, which takes smaller batches too, is timed as it is.
    """

    name = "tensorrt"

    @classmethod
    def lacking(cls) -> list[str]:
        return missing_tensorrt()

    def runtime(self) -> dict[str, str]:
        return {"tensorrt": load_tensorrt().__version__}

    def prepare_engine(self, data: bytes, inputs: tuple[Tensor, ...]) -> Runner:
        """Make an engine ready to run, in the number formats that it was built in.

        Args:
            data: the engine's file content.
            inputs: example inputs; floating-point numbers are cast to what the engine reads.

        Raises:
            ModelError: no engine of this TensorRT and GPU, or not one for these inputs.
        """
        with self.refusing("the engine"):
            return CudaRunner(self.timer, Engine(data, inputs).enqueue)

    def load(
        self,
        model: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor] | None = None,
        region: RegionSpec | None = None,
    ) -> Enqueue:
        plan = build_engine(model, [tuple(value.shape) for value in inputs], cache_folder("tensorrt"))
        return Engine(plan, inputs, outputs).enqueue
