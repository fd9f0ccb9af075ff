"""What is installed: the wheel's content, its metadata, the requirements per platform."""

from __future__ import annotations

import re
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mdp_fx

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("wheel")))
    return Path(path)


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"mdp_fx", f"mdp_fx-{mdp_fx.__version__}.dist-info"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mdp_fx").rglob("*.py")}
    assert sources <= set(names)
    assert "mdp_fx/py.typed" in names
    assert {f"mdp_fx/latency/data/{name}" for name in ("titan_v_batch256_conv_latency.csv", "README.md")} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_carries_licence_readme_and_command(wheel: Path) -> None:
    info = f"mdp_fx-{mdp_fx.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
        assert "mdp-fx = mdp_fx.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        facts = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in facts
    assert "Requires-Python: >=3.11" in facts
    assert "# mdp-fx" in facts


def test_the_version_is_stated_once_in_effect() -> None:
    assert PROJECT["version"] == mdp_fx.__version__


@pytest.mark.parametrize(
    ("system", "machine", "runtime"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
    ],
)
def test_exactly_one_onnx_runtime_per_platform(system: str, machine: str, runtime: str) -> None:
    platform = {"sys_platform": system, "platform_machine": machine}
    wanted = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("onnxruntime")]
    assert [r.name for r in wanted if r.marker is not None and r.marker.evaluate(platform)] == [runtime]


def requirements() -> list[Requirement]:
    """Those of the package and of what `make` installs."""
    extras = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras["dev"], *extras["bench"]]]


def test_pins_satisfy_the_ranges_and_miss_nothing() -> None:
    for requirement in requirements():
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        assert name in PINS, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(PINS[name]), f"{name} {PINS[name]} is outside of {requirement}"


def test_what_runs_here_is_within_the_ranges() -> None:
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            found = metadata.version(requirement.name)
            assert requirement.specifier.contains(found, prereleases=True), f"{requirement.name} {found}"


def test_every_extra_is_there() -> None:
    wanted = {"vision", "tensorrt", "mindtpy", "train", "detection", "demo", "dev"}
    assert wanted <= PROJECT["optional-dependencies"].keys()


def test_links_at_the_top_need_no_symlinks() -> None:
    # A clone without symlink support has two small text files there: nothing may import through them.
    for name in ("passes", "exporters"):
        link = ROOT / name
        assert link.resolve() == ROOT / "mdp_fx" / name or link.read_text(encoding="utf-8") == f"mdp_fx/{name}"
    through = re.compile(r"^\s*(?:from|import) (?:passes|exporters)\b", re.MULTILINE)
    for path in [*(ROOT / "mdp_fx").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert not through.search(path.read_text(encoding="utf-8")), path
