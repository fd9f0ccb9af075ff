"""TensorRT engines: what can be known without TensorRT and a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mdp_fx.errors import OutputError, TargetError
from mdp_fx.exporters import tensorrt_engine
from mdp_fx.exporters.tensorrt_engine import (
    EngineLayer,
    build_engine,
    export_tensorrt,
    missing_tensorrt,
    parse_layers,
)

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
