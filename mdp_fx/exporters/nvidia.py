"""The NVIDIA GPU of this machine: the first one that CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

import re
import subprocess
from functools import cache

import torch

from mdp_fx.graph.casting import DTYPES

_AMPERE = 8


def missing_gpu() -> list[str]:
    """What a GPU needs that is not here, with the reason; empty where there is one."""
    if torch.version.cuda is None:
        return [f"a torch built for CUDA (torch {torch.__version__} is not)"]
    if not torch.cuda.is_available():
        return ["an NVIDIA GPU with its driver (this torch sees none)"]
    return []


def gpu_name() -> str:
    """What the GPU is called: "NVIDIA TITAN V"."""
    return str(torch.cuda.get_device_properties(0).name)


def compute_capability() -> tuple[int, int]:
    """Major and minor: (7, 0) for a Titan V."""
    properties = torch.cuda.get_device_properties(0)
    return properties.major, properties.minor


def gpu_dtypes() -> tuple[str, ...]:
    """Number formats that the GPU computes in: bfloat16 came with Ampere (before it torch only emulates it)."""
    return DTYPES if compute_capability()[0] >= _AMPERE else tuple(name for name in DTYPES if name != "bfloat16")


def gpu_model() -> str:
    """The GPU itself: "NVIDIA TITAN V compute 7.0"."""
    major, minor = compute_capability()
    return f"{gpu_name()} compute {major}.{minor}"


def gpu_libraries() -> dict[str, str]:
    """Versions of the driver and of the libraries that torch and others compute with on the GPU."""
    return {
        "driver": _driver_version(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }


@cache
def _driver_version() -> str:
    """As nvidia-smi says, which comes with the driver; "unknown" where a container leaves it out."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    found = re.match(r"[\d.]+", answer.stdout)
    return found.group() if found else "unknown"
