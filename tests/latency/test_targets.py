from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import TargetError
from mdp_fx.graph.casting import DTYPES
from mdp_fx.latency import Effort, get_target, target_names
from mdp_fx.latency.cpu import physical_cores, vector_alignment
from mdp_fx.latency.measuring import compare
from mdp_fx.latency.targets import is_engine, is_onnx, results_of, target_class

from .regions import conv_region, depthwise_region

QUICK = Effort(min_runs=3, max_runs=5, warm_up=1)
ON_CPU = ("onnxruntime:cpu", "torch:cpu")


def test_unknown_target_offers_near_names() -> None:
    with pytest.raises(TargetError, match="unknown target 'onnxruntime:cpuu': did you mean onnxruntime:cpu"):
        get_target("onnxruntime:cpuu")
    with pytest.raises(TargetError, match="known targets: onnxruntime:cpu, torch:cpu"):
        get_target("zzz")


def test_every_target_has_a_class_of_its_name() -> None:
    assert set(ON_CPU) <= set(target_names())
    for name in target_names():
        assert target_class(name).name == name
        assert set(target_class(name).dtypes) <= set(DTYPES)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "mdp_fx.latency.onnxruntime_cpu", raising=False)
    with pytest.raises(TargetError, match="pip install onnxruntime"):
        get_target("onnxruntime:cpu")


def test_an_import_that_fails_in_our_own_code_is_not_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mdp_fx.latency.torch_cpu", None)
    with pytest.raises(ImportError, match="torch_cpu"):
        get_target("torch:cpu")


@pytest.mark.parametrize("name", ON_CPU)
def test_every_target_describes_itself(name: str) -> None:
    target = get_target(name, threads=1)
    assert target.name == name
    assert target.threads == 1
    assert target.alignment in (8, 16)
    assert get_target(name).threads == physical_cores()
    for part in (name, "threads 1", "float32"):
        assert part in target.fingerprint()
    assert target.fingerprint() == get_target(name, threads=1).fingerprint()
    assert target.fingerprint() != get_target(name, threads=2).fingerprint()


@pytest.mark.parametrize("name", ON_CPU)
def test_bad_thread_counts_are_refused(name: str) -> None:
    with pytest.raises(TargetError, match="0 threads"):
        get_target(name, threads=0)
    for wrong in ("1", True, 1.0):
        with pytest.raises(TargetError, match=r"^threads is .*; it must be an int of at least 1"):
            get_target(name, threads=wrong)  # type: ignore[arg-type]


def test_files_are_known_by_their_names() -> None:
    assert is_onnx(Path("M.ONNX"))
    assert is_engine(Path("m.Plan"))
    assert not is_onnx(Path("m.pt"))
    assert not is_engine(Path("engine"))


def test_a_target_has_a_name() -> None:
    with pytest.raises(TargetError, match=r"^target is None; it must be a name"):
        get_target(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ON_CPU)
def test_a_larger_region_takes_longer(name: str) -> None:
    target = get_target(name, threads=1)
    region = conv_region(side=28, dense=(64, 128))
    large = target.time_region(region, (64, 128), QUICK)
    small = target.time_region(region, (16, 16), QUICK)
    assert 0 < 3 * small.low_s < large.low_s
    assert large.runs >= 3


@pytest.mark.parametrize("name", ON_CPU)
def test_a_network_runs(name: str) -> None:
    module, inputs = depthwise_region().build((16,))
    runner = get_target(name, threads=1).prepare(module, inputs)
    runner()
    timing = compare({"only": runner}, min_time_s=0.01, max_time_s=1.0)["only"]
    runner.close()
    assert timing.runs >= 1
    assert timing.low_s > 0


def test_torch_threads_are_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    target = get_target("torch:cpu", threads=1)
    module, inputs = conv_region().build((8, 8))
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    target.prepare(module, inputs)()
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(TargetError, match=r"^100000 threads asked for: this process may use \d+ processors?$"):
        get_target("onnxruntime:cpu", threads=100000)


def test_alignment_follows_the_vector_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (("AVX512", 16), ("AVX2", 8), ("DEFAULT", 8)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        assert vector_alignment() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity on this system")
def test_default_threads_respect_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from mdp_fx.latency.cpu import physical_cores; print(physical_cores())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "1\n"


def test_results_are_a_tuple() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x + 1]

    x = torch.zeros(1)
    assert results_of(nn.Identity(), (x,)) == (x,)
    assert [float(value) for value in results_of(Two(), (x,))] == [0.0, 1.0]
