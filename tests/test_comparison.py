"""Networks and files timed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mdp_fx
from mdp_fx import comparison
from mdp_fx.errors import InputError, MdpFxError, TargetError
from mdp_fx.latency.ratio import FEWEST_ROUNDS
from mdp_fx.latency.targets import Runner
from tests.latency.fakes import FormulaTarget
from tests.onnx_files import FLOAT, write_onnx


class Slow(nn.Module):
    """Multiplies matrices so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.matrix = nn.Parameter(torch.eye(64))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x @ self.matrix
        return x


class EngineTarget(FormulaTarget):
    """Runs engines of any bytes."""

    name = "tensorrt"

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[bytes, tuple[Any, ...]]] = []

    def prepare_engine(self, data: bytes, inputs: tuple[Tensor, ...]) -> Runner:
        self.given.append((data, inputs))
        return _Nothing()


class _Nothing(Runner):
    closed = 0

    def __call__(self) -> None:
        sum(range(2000))

    def close(self) -> None:
        type(self).closed += 1


def test_networks_are_timed_in_turn_with_an_interval() -> None:
    x = torch.randn(8, 64)
    rows = mdp_fx.bench({"fast": Slow(20), "slow": Slow(200)}, x, target="torch:cpu", threads=1, time_limit=3)
    fast, slow = rows
    assert (fast.name, fast.ratio, fast.interval, fast.proven) == ("fast", 1.0, None, False)
    assert slow.ratio > 2
    assert slow.interval is not None
    assert slow.interval[0] <= slow.ratio <= slow.interval[1]
    assert slow.proven
    assert slow.per_second == pytest.approx(8e3 / slow.median_ms)
    assert slow.inputs == ((8, 64),)
    assert 0 <= slow.disturbed <= 1
    assert slow.memory_bytes is slow.memory_failure is None
    assert slow.to_json()["proven"] is True


def test_the_networks_stay_as_they_are() -> None:
    network = nn.Sequential(nn.BatchNorm1d(64), nn.Dropout()).train()
    network[0].eval()
    mdp_fx.bench({"it": network}, torch.randn(8, 64), target="torch:cpu", threads=1, time_limit=0.1)
    assert [part.training for part in network.modules()] == [True, False, True]


def test_memory_is_that_of_a_network_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(comparison, "peak_memory", lambda _, network, __: seen.append(network.training) or 1)
    network = nn.Dropout().train()
    mdp_fx.bench({"it": network}, torch.randn(1, 4), target="torch:cpu", threads=1, memory=True, time_limit=0.1)
    assert seen == [False]


def test_a_table_runs_nothing() -> None:
    class Unrunnable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it was run")

    with pytest.raises(TargetError, match="titan-v is a table: it predicts latency and runs no network"):
        mdp_fx.bench({"it": Unrunnable()}, torch.randn(1, 64), target="titan-v")


def test_timing_ends_at_its_limit() -> None:
    networks = {"a": Slow(1), "b": Slow(1)}
    rows = mdp_fx.bench(networks, torch.randn(8, 64), target="torch:cpu", threads=1, time_limit=1e-6)
    assert all(row.runs <= FEWEST_ROUNDS for row in rows)
    for wrong in (0, -1.0, float("nan"), "5"):
        with pytest.raises(InputError, match="it must be a number of seconds above 0"):
            mdp_fx.bench(networks, torch.randn(8, 64), time_limit=wrong)  # type: ignore[arg-type]


def test_an_onnx_file_runs_as_it_is_on_its_own_inputs(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", {"x": (FLOAT, ("N", 5)), "y": (FLOAT, (3, 2))})
    network, file = mdp_fx.bench({"net": nn.Linear(64, 4), "file": path}, torch.randn(2, 64), threads=1, time_limit=1)
    assert network.inputs == ((2, 64),)
    assert file.inputs == ((2, 5), (3, 2))
    assert file.per_second == pytest.approx(2e3 / file.median_ms)


def test_an_engine_gets_the_inputs_of_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = EngineTarget()
    monkeypatch.setattr(comparison, "get_target", lambda name, threads, dtype: target)
    (tmp_path / "a.engine").write_bytes(b"one")
    (tmp_path / "b.plan").write_bytes(b"two")
    x = torch.randn(4, 3)
    before = _Nothing.closed
    rows = mdp_fx.bench({"a": tmp_path / "a.engine", "b": str(tmp_path / "b.plan")}, x)
    assert [data for data, _ in target.given] == [b"one", b"two"]
    assert all(inputs[0] is x for _, inputs in target.given)
    assert [row.name for row in rows] == ["a", "b"]
    assert _Nothing.closed == before + 2


def test_a_failure_of_one_closes_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = EngineTarget()
    monkeypatch.setattr(comparison, "get_target", lambda name, threads, dtype: target)
    (tmp_path / "a.engine").write_bytes(b"one")
    before = _Nothing.closed
    with pytest.raises(NotImplementedError):
        mdp_fx.bench({"a": tmp_path / "a.engine", "net": nn.ReLU()}, torch.randn(4, 3))
    assert _Nothing.closed == before + 1


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("m.onnx", "torch:cpu", "m.onnx is an ONNX file, which torch:cpu does not run: use --target onnxruntime:cpu"),
        (
            "m.engine",
            "onnxruntime:cpu",
            "m.engine is a TensorRT engine, which onnxruntime:cpu does not run: use --target",
        ),
        ("m.txt", "onnxruntime:cpu", "m.txt is neither an ONNX file (.onnx) nor a TensorRT engine (.engine, .plan)"),
        ("none.onnx", "onnxruntime:cpu", "there is no file none.onnx"),
        ("folder.onnx", "onnxruntime:cpu", "folder.onnx is a folder; name a file in it"),
    ],
)
def test_files_that_a_target_does_not_run_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for made in ("m.onnx", "m.engine", "m.txt"):
        Path(made).touch()
    Path("folder.onnx").mkdir()
    with pytest.raises(MdpFxError) as refused:
        mdp_fx.bench({"net": nn.ReLU(), "file": name}, torch.randn(1, 4), target=target)
    assert str(refused.value).startswith(says)


def test_a_file_that_onnxruntime_refuses(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", {"x": (FLOAT, (1, 2))})
    path.write_bytes(path.read_bytes().replace(b"Identity", b"Identify"))
    with pytest.raises(MdpFxError, match=r"onnxruntime does not take .*m\.onnx: .*Identify"):
        mdp_fx.bench({"file": path}, torch.randn(1, 4))


def test_memory_on_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "get_target", lambda name, threads, dtype: EngineTarget())
    with pytest.raises(InputError, match="peak memory is measured on the processor: tensorrt has a device of its own"):
        mdp_fx.bench({"net": nn.ReLU()}, torch.randn(1, 4), memory=True)


def test_memory_that_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.ReLU()
    network.register_forward_hook(lambda *_: None)
    (row,) = mdp_fx.bench({"net": network}, torch.randn(1, 4), target="torch:cpu", threads=1, memory=True, time_limit=1)
    assert row.memory_bytes is None
    assert row.memory_failure is not None
    assert row.memory_failure.startswith("it cannot be handed to another process")
