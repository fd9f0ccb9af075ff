"""Target torch:cuda: PyTorch's eager mode on an NVIDIA GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdp_fx.graph.casting import cast_network
from mdp_fx.graph.forward import copied_tensors
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

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def settings(self) -> list[str]:
        cudnn = torch.backends.cudnn
        matmul, convolution = _precisions()
        found = {
            "without cuDNN": not cudnn.enabled,
            "benchmark": cudnn.benchmark,
            "deterministic": cudnn.deterministic or torch.are_deterministic_algorithms_enabled(),
            f"matmul {matmul}": matmul != "ieee",
            f"convolution {convolution}": convolution != "tf32",
        }
        return [*super().settings(), *(name for name, is_set in found.items() if is_set)]

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        # A forward of the user's may write to its inputs, and raise anything.
        with self.refusing("the network", (Exception,)):
            module, inputs = cast_network(module, copied_tensors(inputs), self.dtype, self.place)
            return CudaRunner(self.timer, lambda: module(*inputs))

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        """Kernel time of the region alone, weights cold, or the time it takes to launch it."""
        with self.refusing(f"the region {region.key} at sizes {sizes}"):
            module, inputs = cast_network(*region.build(sizes), self.dtype, self.place)
            return self.timer.time_region(lambda: module(*inputs), inputs, effort, launched=True)


def _precisions() -> tuple[str, str]:
    """In what float32 matrices are multiplied, and convolved: "tf32" or "ieee"."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # since torch 2.9, whose older names raise where these were used
        found = str(matmul.fp32_precision), str(cudnn.conv.fp32_precision)
        return found[0].replace("none", "ieee"), found[1].replace("none", "ieee")
    return "tf32" if matmul.allow_tf32 else "ieee", "tf32" if cudnn.allow_tf32 else "ieee"
