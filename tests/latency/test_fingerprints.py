"""Fingerprints read again: those that the targets write, and any other text."""

from __future__ import annotations

from importlib import metadata

import pytest

from mdp_fx.latency import get_target, target_names
from mdp_fx.latency.fingerprints import Fingerprint
from mdp_fx.latency.targets import target_class


@pytest.mark.parametrize("name", target_names())
def test_those_of_the_targets_are_understood(name: str) -> None:
    if (lacking := target_class(name).missing()) is not None:
        pytest.skip(lacking)
    target = get_target(name, threads=1)
    found = Fingerprint.parse(target.fingerprint())
    assert (found.target, found.threads, found.dtype) == (name, 1, "float32")
    assert found.runtime == name.partition(":")[0]
    assert found.version is not None
    assert found.version[0].isdigit()
    assert found.device
    assert not found.is_stale


def test_parts() -> None:
    text = "onnxruntime:cpu onnxruntime 1.31.1 AMD EPYC 25/17 (AVX512) threads 1 float32 m1"
    assert Fingerprint.parse(text) == Fingerprint(
        text, "onnxruntime:cpu", "onnxruntime", "1.31.1", "AMD EPYC 25/17 (AVX512)", 1, "float32"
    )
    gpu = Fingerprint.parse("torch:cuda torch 2.14.1+cu130 NVIDIA H200 driver 570.86 float16 m2")
    assert (gpu.device, gpu.threads, gpu.dtype) == ("NVIDIA H200 driver 570.86", None, "float16")


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
