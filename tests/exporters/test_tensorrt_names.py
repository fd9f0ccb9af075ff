"""Every name of TensorRT that the code uses is in the bindings of the oldest, a middle and the newest version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mdp_fx
from tests.exporters.tensorrt_names import extension_of, names_missing, names_used

PACKAGE = Path(mdp_fx.__file__).parent
SOURCE = (PACKAGE / "exporters" / "tensorrt_engine.py").read_text(encoding="utf-8")

VERSIONS = {"10.3.0": (), "10.16.1.11": (), "11.4.0.106": ("FP16", "EXPLICIT_BATCH", "platform_has_fast_fp16")}
"""Versions, each with some names that it lacks and earlier ones have: 10.3 is the last one for a Titan V."""

ELSEWHERE = ["latency/tensorrt_target.py", "latency/onnxruntime_gpu.py", "cli/export_command.py"]


def wheel(version: str, folder: Path) -> Path:
    """The bindings wheel of a version, fetched once; one for Python 3.11 serves, whatever runs this."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--retries", "1", "--timeout", "15", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "none"]
    command += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64"]
    name = f"tensorrt_cu12_bindings-{version}-*.whl"
    if not list(folder.glob(name)):
        done = subprocess.run(
            [*command, f"tensorrt-cu12-bindings=={version}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"pip fetches no bindings of TensorRT {version}: {done.stderr.strip().splitlines()[-1:]}")
    (path,) = folder.glob(name)
    return path


@pytest.fixture(params=VERSIONS)
def bindings(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """A version and its extension module, which cannot be imported without TensorRT's libraries."""
    folder = request.config.cache.mkdir("tensorrt-bindings")
    return request.param, extension_of(wheel(request.param, folder))


def test_every_name_is_there(bindings: tuple[str, bytes]) -> None:
    names = names_used(SOURCE)
    assert len(names) > 40
    assert names_missing(names, bindings[1]) == set()


def test_what_is_not_there_is_noticed(bindings: tuple[str, bytes]) -> None:
    version, extension = bindings
    lacks = VERSIONS[version]
    wrong = {"execute_async_v4", "get_tensor_dytpe", "uild_serialized_network", "STRONGLYTYPED", "create_networks"}
    assert names_missing({*wrong, *lacks}, extension) == {*wrong, *lacks}
    assert names_missing(set(VERSIONS["11.4.0.106"]) - set(lacks), extension) == set()


@pytest.mark.parametrize("name", ["build_serialized_network", "execute_async_v3", "STRONGLY_TYPED", "set_timing_cache"])
def test_a_misspelt_name_is_collected(name: str) -> None:
    assert name in names_used(SOURCE)
    assert f"{name}x" in names_used(SOURCE.replace(name, f"{name}x"))


def test_names_are_followed_through_variables_attributes_and_parameters() -> None:
    source = """
trt = load()
builder = trt.Builder(log)
config = builder.create_builder_config()
config.verbosity = other.unrelated

class Engine:
    def __init__(self, plan):
        self._engine = trt.Runtime().deserialize(plan, flag=1)
        self.kept = plan.size
    def names(self):
        return [self._engine.get_name(i) for i in range(self._engine.count)]

def use(config: trt.IBuilderConfig, plain: int):
    return config.inside, plain.real
"""
    expected = {"Builder", "create_builder_config", "verbosity", "Runtime", "deserialize", "flag", "get_name", "count"}
    assert names_used(source) == expected | {"IBuilderConfig", "inside"}


@pytest.mark.parametrize("path", ELSEWHERE)
def test_no_other_file_uses_tensorrt_itself(path: str) -> None:
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert "import tensorrt\n" not in source
    assert names_used(source) == set()
