"""What is said of a GPU, read from made-up answers of torch and the driver."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mdp_fx.exporters import nvidia


@pytest.fixture
def titan(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch tells of a Titan V."""
    properties = SimpleNamespace(name="NVIDIA TITAN V", major=7, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    nvidia._driver_version.cache_clear()
    return properties


def answer(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """What nvidia-smi prints; None where it is not there."""

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        assert command[0] == "nvidia-smi"
        if text is None:
            raise FileNotFoundError(command[0])
        return SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("550.54.15\n", "550.54.15"),
        ("580.65\n580.65\n", "580.65"),
        ("NVIDIA-SMI has failed", "unknown"),
        (None, "unknown"),
    ],
)
@pytest.mark.usefixtures("titan")
def test_the_driver_and_the_libraries_are_named(monkeypatch: pytest.MonkeyPatch, text: str | None, driver: str) -> None:
    answer(monkeypatch, text)
    assert nvidia.gpu_libraries() == {"driver": driver, "CUDA": "12.4", "cuDNN": "90100"}
    nvidia._driver_version.cache_clear()


@pytest.mark.usefixtures("titan")
def test_the_gpu_itself_is_named() -> None:
    assert nvidia.gpu_model() == "NVIDIA TITAN V compute 7.0"


@pytest.mark.usefixtures("titan")
def test_nothing_is_missing_where_torch_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvidia.missing_gpu() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvidia.missing_gpu() == ["an NVIDIA GPU with its driver (this torch sees none)"]


def test_bfloat16_came_with_ampere(titan: SimpleNamespace) -> None:
    assert nvidia.gpu_dtypes() == ("float32", "float16")
    titan.major = 8
    assert nvidia.gpu_dtypes() == ("float32", "float16", "bfloat16")
