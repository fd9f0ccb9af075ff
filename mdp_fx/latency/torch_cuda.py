"""Target torch:cuda: PyTorch's eager mode on an NVIDIA GPU."""

from __future__ import annotations

from torch import Tensor, nn

from mdp_fx.graph.casting import cast_network
from mdp_fx.latency.cpu import cpu_model
from mdp_fx.latency.cuda import CudaRunner, GpuTarget
from mdp_fx.latency.targets import RegionSpec, Runner
from mdp_fx.latency.timing import Effort, Timing


class TorchCuda(GpuTarget):
    """PyTorch eager on an NVIDIA GPU, inference mode.

    Eager mode launches a network op by op, the processor ahead of the device as long as it is the faster of the two.
    So a region takes its kernels' time, or the time the processor needs to launch them, whichever is longer: with
    small batches on a large GPU that is the launching, and then only removed blocks make a network faster.
    """

    name = "torch:cuda"

    def runtime(self) -> list[str]:
        return [cpu_model()]  # it launches the kernels

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        with self.refusing("the network"):
            module, inputs = cast_network(module, inputs, self.dtype, self.place)
            return CudaRunner(self.timer, lambda: module(*inputs))

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """Kernel time of the region alone, weights cold, or the time it takes to launch it."""
        with self.refusing(f"the region {region.key} at sizes {sizes}"):
            module, inputs = cast_network(*region.build(sizes), self.dtype, self.place)
            return self.timer.time_region(lambda: module(*inputs), inputs, effort, launched=True)
