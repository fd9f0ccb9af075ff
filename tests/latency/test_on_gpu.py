"""The targets on an NVIDIA GPU, on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdp_fx.errors import TargetError
from mdp_fx.exporters.tensorrt_engine import export_tensorrt, missing_tensorrt
from mdp_fx.latency import Effort, Target, get_target
from mdp_fx.latency.measuring import compare
from mdp_fx.latency.tensorrt_target import TensorRt
from tests.latency.regions import Region, constant_region, conv_region, depthwise_region, token_region

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")

EFFORT = Effort(min_runs=10, max_runs=30)
GPU_TARGETS = ["torch:cuda", "onnxruntime:cuda", "onnxruntime:tensorrt", "onnxruntime:tensorrt-rtx", "tensorrt"]


@pytest.fixture(params=[(name, dtype) for name in GPU_TARGETS for dtype in ("float32", "float16")], ids=" ".join)
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target in a number format."""
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path))
    name, dtype = request.param
    try:
        return get_target(name, dtype=dtype)
    except TargetError as error:
        pytest.skip(str(error))


def test_it_describes_itself(target: Target) -> None:
    for part in (target.name, torch.cuda.get_device_name(0), "driver", target.dtype):
        assert part in target.fingerprint()
    assert target.device == torch.cuda.get_device_name(0)


@pytest.mark.parametrize("region", [conv_region(add=True), depthwise_region(), token_region(), constant_region()])
def test_every_kind_of_region_is_timed(target: Target, region: Region) -> None:
    timing = target.time_region(region, region.dense_sizes, EFFORT)
    assert 0 < timing.low_s < 0.1
    assert timing.spread < 0.5


def test_a_larger_region_takes_longer(target: Target) -> None:
    region = conv_region(side=112, dense=(512, 512))
    large, small = (target.time_region(region, sizes, EFFORT).low_s for sizes in ((512, 512), (64, 64)))
    assert 0 < 2 * small < large


def test_networks_run_in_turn_and_leave_the_users_as_they_are(target: Target) -> None:
    modules = {}
    for size in (64, 512):
        module, inputs = conv_region(side=112, dense=(size, size)).build((size, size))
        modules[size] = target.prepare(module, inputs)
        assert {(value.device.type, value.dtype) for value in module.parameters()} == {("cpu", torch.float32)}
    timings = compare({str(size): runner for size, runner in modules.items()}, min_time_s=0.05)
    assert 0 < timings["64"].low_s < timings["512"].low_s
    for runner in modules.values():
        runner.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_engine_is_written_checked_and_timed(tmp_path: Path, dtype: str) -> None:
    if missing_tensorrt():
        pytest.skip(" and ".join(missing_tensorrt()))
    module, inputs = conv_region().build((16, 16))
    batch = (inputs[0].repeat(4, 1, 1, 1),)
    report = export_tensorrt(module, batch, tmp_path / "x.engine", dtype=dtype, timing_cache=tmp_path)
    assert report.dynamic_batch
    assert report.batch == 4
    assert report.layers
    assert list(tmp_path.glob("tensorrt-*.timing"))
    plan = (tmp_path / "x.engine").read_bytes()
    for some in (batch, inputs):
        runner = TensorRt(dtype=dtype).prepare_engine(plan, some)
        seconds = runner()
        assert seconds is not None
        assert 0 < seconds < 0.1
