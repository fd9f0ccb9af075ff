"""A target whose times are a formula, and a network of two stages on it: no clocks, so every number is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx import whole_network
from mdp_fx.budget_search import BudgetSearch
from mdp_fx.latency import LatencyTable, Timing
from mdp_fx.latency.targets import RegionSpec, Runner, Target
from mdp_fx.latency.timing import Effort
from mdp_fx.outcome import SolverOptions
from mdp_fx.passes.choices import Analysis, choose
from mdp_fx.passes.importance import LayerImportance, score
from mdp_fx.pipeline import analyse
from mdp_fx.whole_network import MIXED_SHARES
from tests.latency.fakes import steady
from tests.pruning import layer_macs
from tests.zoo import Head, Residual, conv_bn, image

STEP = 2
CALIBRATING = len(MIXED_SHARES) + 2  # with the dense network and one that is slim throughout

MEASURING = ["measure cost regions", "measure the regions of slim networks", "time the dense network and slim ones"]

LEAST = 0.93
"""Measured over asked latency that a network of a few layers can be expected to come up to."""


class Stages(nn.Module):
    """A stem and two stages of two residual blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.one = nn.Sequential(Residual(16, 24), Residual(16, 24))
        self.widen = conv_bn(16, 32, stride=2)
        self.two = nn.Sequential(Residual(32, 40), Residual(32, 40))
        self.head = Head(32)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.two(F.relu(self.widen(self.one(F.relu(self.stem(x)))))))


def work(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Seconds of a network: 1 us and 1 ns per multiply-accumulate for every convolution and linear layer."""
    return sum(1e-6 + 1e-9 * macs for macs in layer_macs(module, inputs))


class FakeRunner(Runner):
    """Knows its time."""

    def __init__(self, seconds: float, open_runners: set[FakeRunner]) -> None:
        self.seconds = seconds
        self._open = open_runners
        self._open.add(self)

    def __call__(self) -> None:
        raise AssertionError("nothing is timed by a clock")

    def close(self) -> None:
        self._open.discard(self)


class WorkTarget(Target):
    """Takes as long as there is work, a whole network `whole` of the work of its layers and their number."""

    name = "work"

    def __init__(
        self, threads: int | None = None, whole: Callable[[float, int], float] = lambda seconds, _: seconds
    ) -> None:
        self.threads = threads or 1
        self.alignment = 2
        self.asked: list[tuple[int, ...]] = []
        self.prepared: list[float] = []
        self.open: set[FakeRunner] = set()
        self._whole = whole

    def fingerprint(self) -> str:
        return "work"

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Runner:
        self.prepared.append(self._whole(work(module, inputs), len(layer_macs(module, inputs))))
        return FakeRunner(self.prepared[-1], self.open)

    def time_region(self, region: RegionSpec, sizes: tuple[int, ...], effort: Effort) -> Timing:
        self.asked.append(sizes)
        return steady(work(*region.build(sizes)) + 1e-8)


def compare_fakes(runners: Mapping[str, Runner], min_runs: int = 0) -> dict[str, Timing]:
    found: dict[str, Timing] = {}
    for name, runner in runners.items():
        assert isinstance(runner, FakeRunner)
        found[name] = steady(runner.seconds)
    return found


@pytest.fixture(scope="module")
def analysed() -> tuple[Analysis, tuple[LayerImportance, ...], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    inputs = (image(side=16, batch=1),)
    analysis = analyse(Stages().eval(), inputs, step=STEP)
    return analysis, score(analysis.graph, analysis.groups, "l1"), inputs


@pytest.fixture
def table(tmp_path: Path) -> Iterator[LatencyTable]:
    with LatencyTable(tmp_path / "t.sqlite") as opened:
        yield opened


@pytest.fixture
def no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_network, "time_networks", compare_fakes)


Analysed = tuple[Analysis, tuple[LayerImportance, ...], tuple[Tensor, ...]]


def search(analysed: Analysed, target: Target, table: LatencyTable, **options: Any) -> BudgetSearch:
    analysis, importance, inputs = analysed
    return BudgetSearch(
        analysis,
        choose(analysis),
        importance,
        target,
        table,
        inputs,
        options=SolverOptions(**{"gap": 1e-3, **options}),
        stage=lambda _: None,
    )


def dense_time(analysed: Analysed) -> float:
    analysis, _, inputs = analysed
    return work(analysis.graph.module, inputs[:1])
