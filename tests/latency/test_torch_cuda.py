"""What torch:cuda says of itself; tests/latency/test_on_gpu.py runs it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.latency.gpu import LIBRARIES, MODEL, pretend_gpu, unstarted

DEVICE = f"{MODEL} with AMD EPYC 25/17 (AVX512)"


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)


def test_a_fingerprint_has_the_versions_and_then_the_devices() -> None:
    versions = " ".join(f"{name} {version}" for name, version in LIBRARIES.items())
    target = unstarted("torch:cuda")
    assert target.fingerprint() == f"torch:cuda torch {torch.__version__} {versions} {DEVICE} float32 m{target.method}"


@pytest.mark.parametrize(
    ("owner", "name", "value", "said"),
    [
        (torch.backends.cudnn, "enabled", False, "without cuDNN"),
        (torch.backends.cudnn, "benchmark", True, "benchmark"),
        (torch.backends.cudnn, "deterministic", True, "deterministic"),
    ],
)
def test_what_a_script_sets_is_in_the_fingerprint(
    owner: object, name: str, value: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value)
    assert f"{DEVICE} {said} float32" in unstarted("torch:cuda").fingerprint()
    assert f"{DEVICE} float32" in unstarted("onnxruntime:cuda").fingerprint()


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older names only")
def test_precisions_by_their_new_names() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    try:
        matmul.fp32_precision, convolution.fp32_precision = "tf32", "ieee"
        assert f"{DEVICE} matmul tf32 convolution ieee float32" in unstarted("torch:cuda").fingerprint()
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before


def test_precisions_by_their_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(enabled=True, benchmark=False, deterministic=False, allow_tf32=False)
    monkeypatch.setattr(torch.backends, "cudnn", old)
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)))
    assert f"{DEVICE} matmul tf32 convolution ieee float32" in unstarted("torch:cuda").fingerprint()


@pytest.mark.parametrize("name", ["torch:cuda", "tensorrt"])
def test_the_environment_can_switch_tf32_off_for_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert f"{DEVICE} NVIDIA_TF32_OVERRIDE=0 float32" in unstarted(name).fingerprint()
