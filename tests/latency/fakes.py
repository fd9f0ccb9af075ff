"""A target whose times are a formula: tests of measuring are then exact and fast."""

from __future__ import annotations

from torch import Tensor, nn

from mdp_fx.latency.targets import RegionSpec, Runner, Target
from mdp_fx.latency.timing import Effort, Timing


def steady(seconds: float, spread: float = 0.0) -> Timing:
    """A timing with one value everywhere."""
    return Timing(seconds, seconds, seconds, spread, 5)


class FormulaTarget(Target):
    """Takes 1 ms and 1 us per product of the sizes; counts what it is asked."""

    name = "fake"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or 1
        self.alignment = 8
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def fingerprint(self) -> str:
        return f"fake {self.threads}"

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        raise NotImplementedError

    def seconds(self, sizes: tuple[int, ...]) -> float:
        product = 1
        for size in sizes:
            product *= size
        return 1e-3 + 1e-6 * product

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        self.asked.append((region.key, sizes))
        return steady(self.seconds(sizes))
