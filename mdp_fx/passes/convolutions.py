"""The convolutions of a cost region in numbers, as published latency tables name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mdp_fx.graph.axes import Dim
from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.passes.isolated_regions import IsolatedRegion


@dataclass(frozen=True)
class Convolution:
    """One convolution at given sizes.

    Attributes:
        layer: the module or node that it is.
        in_channels: channels that it reads.
        out_channels: channels that it makes.
        groups: groups that its channels are cut into.
        batch: examples.
        input_size: places of the operand along each spatial axis, and `output_size` those of the result.
        kernel: size of the kernel along each spatial axis, likewise `stride` and `dilation`.
        transposed: whether it is a transposed one.
    """

    layer: str
    in_channels: int
    out_channels: int
    groups: int
    batch: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False

    def __str__(self) -> str:
        kind = " (transposed)" if self.transposed else ""
        dilation = f", dilation {_sides(self.dilation)}" if set(self.dilation) != {1} else ""
        return (
            f"{self.layer}{kind}: {self.in_channels} -> {self.out_channels} channels, input {_sides(self.input_size)}, "
            f"kernel {_sides(self.kernel)}, stride {_sides(self.stride)}{dilation}, groups {self.groups}, "
            f"batch {self.batch}"
        )


def _sides(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def find_convolutions(isolated: IsolatedRegion, sizes: Mapping[Dim, int], batch: int) -> tuple[Convolution, ...]:
    """The convolutions that the typing rules met in a region, at given sizes of its dimensions."""

    def size_of(dim: Dim) -> int:
        return batch if dim.rigid else sizes.get(dim, dim.size)

    found = []
    for node in isolated.module.graph.nodes:
        types = isolated.state.convolutions.get(node.name)
        if types is None:
            continue
        found.append(
            Convolution(
                layer=str(node.target) if node.op == "call_module" else str(node.name),
                in_channels=kept_size(types.inputs, size_of),
                out_channels=kept_size(types.outputs, size_of),
                groups=kept_size(types.groups, size_of),
                batch=prod(kept_size(axis, size_of) for axis in types.batch),
                input_size=tuple(kept_size(axis, size_of) for axis in types.input_sizes),
                output_size=tuple(kept_size(axis, size_of) for axis in types.output_sizes),
                kernel=types.kernel,
                stride=types.stride,
                dilation=types.dilation,
                transposed=types.transposed,
            )
        )
    return tuple(found)
