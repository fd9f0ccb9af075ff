"""TensorRT engines: what can be known without TensorRT and a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mdp_fx.errors import ModelError, OutputError, TargetError
from mdp_fx.exporters import tensorrt_engine
from mdp_fx.exporters.tensorrt_engine import (
    Engine,
    EngineLayer,
    build_engine,
    export_tensorrt,
    missing_tensorrt,
    parse_layers,
)
from tests.exporters.fake_tensorrt import FakeTensorRt

EXTRA = 'pip install "mdp-fx[tensorrt]"'


@pytest.fixture
def _without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


@pytest.mark.usefixtures("_without_tensorrt")
def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt_engine, "missing_gpu", list)
    assert missing_tensorrt() == [f"the package tensorrt ({EXTRA})"]
    with pytest.raises(TargetError, match=r"^TensorRT cannot be imported \(.*\): pip install"):
        build_engine(b"", [])
    monkeypatch.setattr(tensorrt_engine, "missing_gpu", lambda: ["a GPU"])
    path = tmp_path / "x.engine"
    with pytest.raises(TargetError) as caught:
        export_tensorrt(nn.Identity(), (torch.zeros(1),), path)
    assert str(caught.value) == f"export to TensorRT needs a GPU and the package tensorrt ({EXTRA})"
    assert not path.exists()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.touch()
    with pytest.raises(OutputError, match="--force"):
        export_tensorrt(nn.Identity(), (torch.zeros(1),), path)


def test_other_number_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"^cannot export to TensorRT in bfloat16; it can be float32 or float16$"):
        export_tensorrt(nn.Identity(), (torch.zeros(1),), tmp_path / "x.engine", dtype="bfloat16")


def test_the_inspectors_layers_are_read() -> None:
    conv = {
        "Name": "conv1 + relu",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "y", "Format/Datatype": "Half NHWC8"}],
        "TacticName": "sm80_xmma",
    }
    told = {"Layers": [conv, {"Name": "shuffle", "Outputs": []}, "names only"], "Bindings": ["x", "y"]}
    assert parse_layers(json.dumps(told)) == (
        EngineLayer("conv1 + relu", "CaskConvolution", "Half NHWC8", "sm80_xmma"),
        EngineLayer("shuffle"),
        EngineLayer("names only"),
    )


def test_a_dynamic_batch_starts_at_one_and_other_axes_stay() -> None:
    assert tensorrt_engine._smallest((-1, 3, -1, 224), (16, 3, 32, 224)) == (1, 3, 32, 224)
    assert tensorrt_engine._smallest((2, -1), (2, 9)) == (2, 9)


def test_timing_caches_are_told_apart_by_version_and_gpu() -> None:
    assert tensorrt_engine._cache_name("10.3.0", "NVIDIA TITAN V") == "tensorrt-10.3.0-NVIDIA-TITAN-V.timing"


def use(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRt) -> None:
    """Puts it in TensorRT's place."""
    monkeypatch.setattr(tensorrt_engine, "load_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_engine, "gpu_name", lambda: "GPU")


@pytest.mark.parametrize(("smaller_batches", "smallest"), [(False, (16, 3, 32, 32)), (True, (1, 3, 32, 32))])
def test_only_an_engine_for_smaller_batches_takes_other_shapes(
    smaller_batches: bool, smallest: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRt([(-1, 3, -1, -1), (4,)])
    use(monkeypatch, trt)
    shape = (16, 3, 32, 32)
    assert build_engine(b"", [shape, (4,)], smaller_batches=smaller_batches) == b"engine"
    assert trt.profiles == {"x0": (smallest, shape, shape)}


def test_the_last_error_is_shown_and_a_stale_cache_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = FakeTensorRt([(2, 3)])
    use(monkeypatch, trt)
    file = tmp_path / tensorrt_engine._cache_name(trt.__version__, "GPU")
    file.write_bytes(b"stale")
    trt.errors = ["a symptom", "the cause"]
    with pytest.raises(ModelError, match=r"^TensorRT cannot build an engine: the cause$"):
        build_engine(b"", [(2, 3)], tmp_path)
    assert file.read_bytes() == b"stale"
    trt.build_serialized_network = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"^TensorRT cannot build an engine: it does not say why$"):
        build_engine(b"", [(2, 3)], tmp_path)


def test_what_two_builders_learn_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = FakeTensorRt([(2, 3)])
    use(monkeypatch, trt)
    build_engine(b"", [(2, 3)], tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"new"
    trt.learned, trt.meanwhile = "newer", lambda: file.write_bytes(b"new,other")
    build_engine(b"", [(2, 3)], tmp_path)
    assert file.read_bytes() == b"new,newer,other"


def test_a_stale_cache_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = FakeTensorRt([(2, 3)])
    use(monkeypatch, trt)
    file = tmp_path / tensorrt_engine._cache_name(trt.__version__, "GPU")
    file.write_bytes(b"stale")
    build_engine(b"", [(2, 3)], tmp_path)
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["FP4", "INT4", "E8M0"])
@pytest.mark.parametrize("tensor", ["x", "y"])
def test_number_formats_that_torch_lacks_are_refused(kind: str, tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeTensorRt([], {"x": "FLOAT", "y": "FLOAT", tensor: kind}))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, _, kind: self.type(kind))
    with pytest.raises(ModelError, match=rf"^the engine has '{tensor}' in {kind}, which torch has no numbers of"):
        Engine(b"", [torch.zeros(2, 3)])


def test_an_engine_of_eight_bit_numbers_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeTensorRt([], {"x": "FP8", "y": "HALF"}))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, _, kind: self.type(kind))
    engine = Engine(b"", [torch.zeros(2, 3)], [torch.zeros(2, 3, dtype=torch.float16)])
    assert engine.inputs[0].dtype == torch.float8_e4m3fn
