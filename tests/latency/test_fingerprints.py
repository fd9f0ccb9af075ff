"""Fingerprints read again: those that the targets write, and any other text."""

from __future__ import annotations

from importlib import metadata

import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch

from mdp_fx.latency import get_target, target_names
from mdp_fx.latency.fingerprints import Fingerprint
from mdp_fx.latency.targets import target_class
from tests.latency.gpu import GPU_TARGETS, LIBRARIES, MODEL, pretend_gpu, unstarted


@pytest.mark.parametrize("name", target_names())
def test_those_of_the_targets_are_understood(name: str) -> None:
    if (lacking := target_class(name).missing()) is not None:
        pytest.skip(lacking)
    target = get_target(name, threads=1)
    found = Fingerprint.parse(target.fingerprint())
    assert (found.target, found.dtype) == (name, "float32")
    assert found.threads == (1 if name.endswith(":cpu") else None)
    assert found.runtime == name.partition(":")[0]
    assert found.version is not None
    assert found.version[0].isdigit()
    assert found.device
    assert not found.is_stale


@pytest.mark.parametrize("name", GPU_TARGETS)
def test_those_of_the_gpu_targets_are_understood_without_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    target = unstarted(name, "float16")
    found = Fingerprint.parse(target.fingerprint())
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "tensorrt": "10.16.1.11"}
    assert (found.target, found.dtype, found.threads, found.method) == (name, "float16", None, target.method)
    assert found.runtime == name.partition(":")[0]
    assert found.version == versions[found.runtime]
    assert found.device == f"{MODEL} with AMD EPYC 25/17 (AVX512)"
    assert found.libraries == {**target.versions(), **LIBRARIES}
    assert not found.is_stale


def test_parts() -> None:
    text = "onnxruntime:cpu onnxruntime 1.31.1 AMD EPYC 25/17 (AVX512) threads 1 float32 m1"
    device = "AMD EPYC 25/17 (AVX512)"
    libraries = {"onnxruntime": "1.31.1"}
    assert Fingerprint.parse(text) == Fingerprint(
        text, "onnxruntime:cpu", "onnxruntime", "1.31.1", device, 1, "float32", 1, libraries
    )


@pytest.mark.parametrize("text", ["", "machine", "fake 1", "a b c"])
def test_another_text_stays_whole(text: str) -> None:
    found = Fingerprint.parse(text)
    assert found == Fingerprint(text)
    assert not found.is_stale


@pytest.mark.parametrize(
    ("runtime", "version", "stale"),
    [
        ("torch", "1.13.0", True),
        ("torch", metadata.version("torch"), False),
        ("torch", metadata.version("torch").partition("+")[0] + "+cu1", "+" in metadata.version("torch")),
        ("onnxruntime", "1.0.0", True),
        ("no-such-runtime", "1.0.0", False),
    ],
)
def test_only_another_version_of_what_is_installed_is_stale(runtime: str, version: str, stale: bool) -> None:
    found = Fingerprint.parse(f"x:cpu {runtime} {version} CPU threads 1 float32 m1")
    assert found.is_stale is stale


@pytest.mark.parametrize("name", [name for name in target_names() if target_class(name).method is not None])
def test_an_older_way_of_measuring_is_stale_and_a_newer_one_is_not(name: str) -> None:
    method = target_class(name).method
    assert method is not None
    for number in (method - 1, method, method + 1):
        found = Fingerprint.parse(f"{name} no-such-runtime 1.0 Device float32 m{number}")
        assert found.is_stale is (number < method)


def test_torch_cuda_without_its_version_is_stale() -> None:
    assert Fingerprint.parse("torch:cuda AMD EPYC 25/17 (AVX512) NVIDIA H200 compute 9.0 float32 m1").is_stale


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("torch:cuda", "torch"),
        ("torch:cuda", "cuDNN"),
        ("onnxruntime:tensorrt", "driver"),
        ("onnxruntime:tensorrt", "tensorrt"),
        ("onnxruntime:cuda", "onnxscript"),
        ("tensorrt", "CUDA"),
    ],
)
def test_every_library_counts(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    installed = {package: metadata.version(package) for package in ("torch", "onnxscript", "onnxruntime-gpu")}
    monkeypatch.setattr(metadata, "version", {**installed, "tensorrt": "10.16.1.11"}.__getitem__)
    monkeypatch.setattr(metadata, "PackageNotFoundError", KeyError)
    text = unstarted(name).fingerprint()
    version = Fingerprint.parse(text).libraries[library]
    assert not Fingerprint.parse(text).is_stale
    assert Fingerprint.parse(text.replace(f" {library} {version} ", f" {library} 1.2 ")).is_stale


def test_the_driver_of_another_machines_gpu_says_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    text = unstarted("torch:cuda").fingerprint().replace("570.86.15", "550.54")
    assert Fingerprint.parse(text).is_stale
    assert not Fingerprint.parse(text.replace("H200", "L4")).is_stale
