"""Number formats of targets and regions."""

from __future__ import annotations

import pytest
import torch

from mdp_fx.errors import ModelError, TargetError
from mdp_fx.graph.casting import DTYPES
from mdp_fx.latency import Effort, get_target
from mdp_fx.latency.casting import CastRegion, check_dtype
from mdp_fx.latency.measuring import compare
from tests.latency.regions import Region, conv_region

QUICK = Effort(min_runs=3, max_runs=5, warm_up=1)


def test_a_target_names_the_number_formats_that_it_can() -> None:
    assert check_dtype("torch:cpu", "float16", DTYPES) == "float16"
    with pytest.raises(TargetError, match=r"^target onnxruntime:cpu cannot run in bfloat16 here; it can in float32$"):
        get_target("onnxruntime:cpu", 1, "bfloat16")
    with pytest.raises(TargetError, match=r"cannot run in int8 here; it can in float32, float16, bfloat16$"):
        get_target("torch:cpu", 1, "int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_region_is_built_in_the_number_format(dtype: str) -> None:
    region = conv_region()
    cast = CastRegion(region, dtype)
    assert (cast.key, cast.roles, cast.dense_sizes) == (region.key, region.roles, region.dense_sizes)
    module, inputs = cast.build((8, 16))
    wanted = getattr(torch, dtype)
    assert {value.dtype for value in (*module.parameters(), *inputs)} == {wanted}
    assert next(module.parameters()).shape == (16, 8, 3, 3)


def test_torch_runs_networks_and_regions_in_the_number_format() -> None:
    target = get_target("torch:cpu", 1, "bfloat16")
    assert "bfloat16" in target.fingerprint()
    assert target.fingerprint() != get_target("torch:cpu", 1).fingerprint()
    module, inputs = conv_region().build((8, 8))
    seen: list[torch.dtype] = []
    module.register_forward_hook(lambda _module, given, result: seen.extend([given[0].dtype, result.dtype]))
    runner = target.prepare(module, inputs)
    assert compare({"only": runner}, min_time_s=0.001, max_time_s=0.01)["only"].low_s > 0
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in module.parameters()} == {torch.float32}
    assert target.time_region(conv_region(), (8, 8), QUICK).low_s > 0


def test_a_half_precision_network_is_measured_in_float32_by_default() -> None:
    module, inputs = conv_region().build((8, 8))
    half = module.half()
    for name in ("onnxruntime:cpu", "torch:cpu"):
        get_target(name, 1).prepare(half, tuple(value.half() for value in inputs))()
    assert {value.dtype for value in half.parameters()} == {torch.float16}

    def build(sizes: tuple[int, ...]) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        made, given = conv_region().build(sizes)
        return made.half(), tuple(value.half() for value in given)

    region = Region("half", ("in", "out"), (8, 8), build)
    assert get_target("onnxruntime:cpu", 1).time_region(region, (8, 8), QUICK).low_s >= 0


class Literal(torch.nn.Module):
    """Writes its number format into its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x.to(torch.float32))
        return y


def test_what_does_not_run_in_a_number_format_is_one_line() -> None:
    target = get_target("torch:cpu", 1, "bfloat16")
    with pytest.raises(ModelError, match=r"^the network does not run on torch:cpu in bfloat16: .*dtype") as caught:
        target.prepare(Literal(), (torch.zeros(1, 4),))
    assert "\n" not in str(caught.value)
    region = Region("literal", (), (), lambda _: (Literal(), (torch.zeros(1, 4),)))
    with pytest.raises(ModelError, match=r"^the region literal at sizes \(\) does not run on torch:cpu in bfloat16"):
        target.time_region(region, (), QUICK)
