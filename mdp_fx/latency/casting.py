"""The number format that a target runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mdp_fx.errors import TargetError
from mdp_fx.graph.casting import cast_network
from mdp_fx.latency.targets import RegionSpec
from mdp_fx.passes.convolutions import Convolution


def check_dtype(name: str, dtype: str, known: Sequence[str]) -> str:
    """The number format to use.

    Args:
        name: of the target.
        dtype: asked for.
        known: those that the target can.

    Raises:
        TargetError: it is not among them.
    """
    if dtype not in known:
        message = f"target {name} cannot run in {dtype} here; it can in {', '.join(known)}"
        raise TargetError(message)
    return dtype


@dataclass(frozen=True)
class CastRegion:
    """A region that is built in `dtype`, whatever its network is in."""

    region: RegionSpec
    dtype: str

    @property
    def key(self) -> str:
        """That of the region."""
        return self.region.key

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of the region."""
        return self.region.roles

    @property
    def dense_sizes(self) -> tuple[int, ...]:
        """Those of the region."""
        return self.region.dense_sizes

    @property
    def build(self) -> Callable[[tuple[int, ...]], tuple[nn.Module, tuple[Tensor, ...]]]:
        """The region at given sizes, cast."""
        return lambda sizes: cast_network(*self.region.build(sizes), self.dtype)

    @property
    def convolutions(self) -> Callable[[tuple[int, ...]], tuple[Convolution, ...]]:
        """Those of the region."""
        return self.region.convolutions
