"""Meeting a budget on a table: what is asked is met exactly, nothing is run, and what is not counted is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mdp_fx
from mdp_fx.errors import BudgetError, TargetError
from mdp_fx.graph.axes import Dim
from mdp_fx.latency import get_target
from mdp_fx.latency.convolution_csv import write_convolutions
from mdp_fx.latency.convolution_table import ConvolutionTable
from mdp_fx.latency.network import exact_sum
from mdp_fx.latency.tables import cache_dir, table_for
from mdp_fx.passes.search_space import evaluate
from mdp_fx.pipeline import analyse
from mdp_fx.report.facts import Prediction
from tests.latency.convolutions import entry, linear_seconds
from tests.zoo import Head, Residual, conv_bn

BATCH = 64


class Network(nn.Module):
    """A stem, two residual blocks and a head; it notes how many examples it was run with at most."""

    most = 0

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(Residual(16, 32), Residual(16, 32))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Any:
        Network.most = max(Network.most, len(x))
        return self.head(self.blocks(F.relu(self.stem(x))))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def target(tmp_path: Path) -> str:
    """A table with all that `Network` has on 8 x 8."""
    points = {(i, o) for i in (3, 8, 16, 24, 32) for o in (8, 16, 24, 32)}
    rows = [entry(i, o, linear_seconds(i, o), batch=BATCH) for i, o in sorted(points)]
    write_convolutions(ConvolutionTable("t", rows), tmp_path / "t.csv")
    return f"table:{tmp_path / 't.csv'}"


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    Network.most = 0
    return Network().eval()


IMAGES = torch.zeros(BATCH, 3, 8, 8)
DENSE = linear_seconds(3, 16) + 2 * (linear_seconds(16, 32) + linear_seconds(32, 16))


def test_a_budget_is_met_and_nothing_is_run(network: Network, target: str, tmp_path: Path) -> None:
    result = mdp_fx.prune(network, IMAGES, latency="50%", target=target, threads=1)
    facts, told = result.report.latency, result.report.prediction
    assert Network.most < BATCH
    assert facts.measured_ms is None
    assert facts.dense_ms == pytest.approx(1e3 * DENSE)
    assert facts.asked_ms == pytest.approx(500 * DENSE)
    assert facts.predicted_ms is not None
    assert facts.predicted_ms <= facts.asked_ms * (1 + 1e-9)
    # What the search space says of the selection is what the table says of the network.
    assert result.report.solver["costs"]["latency"] == pytest.approx(1e3 * facts.predicted_ms)
    assert facts.rounds == 1
    assert told is not None
    assert told.dense_per_s == pytest.approx(BATCH / DENSE)
    assert told.slim_per_s == pytest.approx(1e3 * BATCH / facts.predicted_ms)
    assert (told.estimated, told.estimated_points, told.fit) == ((), 0, None)
    assert told.not_counted == ("head.pool", "head.fc")
    assert 0.999 < told.counted_macs < 1
    assert not any("multiply-accumulates" in text for text in result.report.warnings)
    assert (told.batch, result.report.batch, result.report.target) == (BATCH, BATCH, target)
    assert result.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    # The table of the user holds measurements, not predictions: it need not even be there.
    assert not cache_dir().exists()
    # The recipe can be applied without a batch of 64.
    assert result.recipe.input_shapes[0][0] <= 2
    again = mdp_fx.apply(network, result.recipe)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in result.module.parameters())


@pytest.mark.parametrize("method", ["halp", "mgp", "mdlm", "mdp", "uniform"])
def test_every_method_stays_within_the_budget(network: Network, target: str, method: str) -> None:
    result = mdp_fx.prune(network, IMAGES, latency="85%", target=target, threads=1, method=method)
    assert result.report.latency.predicted_ms is not None
    assert result.report.latency.predicted_ms <= 850 * DENSE * (1 + 1e-9)


def test_absolute_budgets_and_other_budgets(network: Network, target: str) -> None:
    result = mdp_fx.prune(network, IMAGES, latency=f"{700 * DENSE}ms", params="80%", target=target, threads=1)
    assert result.report.params.share <= 0.8
    assert result.report.latency.predicted_ms is not None
    assert result.report.latency.predicted_ms <= 700 * DENSE * (1 + 1e-9)
    free = mdp_fx.prune(network, IMAGES, params="60%", target=target, threads=1)
    assert free.report.latency.asked_ms is None
    assert free.report.latency.predicted_ms is not None


@pytest.mark.parametrize(
    ("latency", "says"),
    [("1%", "cannot be met: the smallest reachable is"), ("10s", r"is above the .* predicted for the dense network")],
)
def test_budgets_that_cannot_be(network: Network, target: str, latency: str, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        mdp_fx.prune(network, IMAGES, latency=latency, target=target, threads=1)


def test_another_batch_is_refused_before_the_work(network: Network, target: str) -> None:
    with pytest.raises(TargetError, match="has batch 64, not 2: pass --batch 64"):
        mdp_fx.prune(network, IMAGES[:2], target=target)
    assert Network.most == 0


def test_a_convolution_outside_of_the_table_is_named_or_estimated(network: Network, target: str) -> None:
    wide = torch.zeros(BATCH, 3, 12, 12)
    with pytest.raises(TargetError, match=r"stem\.0: 3 -> 16 channels, input 12x12, .* --fill analytic"):
        mdp_fx.prune(network, wide, target=target, threads=1)
    told = mdp_fx.prune(network, wide, target=target, fill="analytic", threads=1).report.prediction
    assert told is not None
    assert len(told.estimated) == 5
    assert told.estimated_points == told.points > 5
    assert told.fit is not None
    assert "median error" in told.fit


def test_a_network_without_convolutions_is_refused(target: str) -> None:
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with pytest.raises(TargetError, match="the network has no convolution"):
        mdp_fx.prune(network, torch.zeros(BATCH, 8), target=target)
    with pytest.raises(TargetError, match="the network has no convolution"):
        mdp_fx.profile(network, torch.zeros(BATCH, 8), target=target)


def test_a_table_that_knows_little_of_a_network_is_warned_of(target: str) -> None:
    class Mostly(nn.Module):
        """One convolution before wide linear layers."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.wide = nn.Linear(16 * 64, 512)
            self.head = nn.Linear(512, 4)

        def forward(self, x: Tensor) -> Any:
            return self.head(F.relu(self.wide(F.relu(self.conv(x)).flatten(1))))

    result = mdp_fx.prune(Mostly().eval(), IMAGES, latency="90%", target=target, threads=1)
    macs = 64 * 27 * 16
    share = 100 * macs / (macs + 16 * 64 * 512 + 512 * 4)
    assert any(f"counts {share:.1f} % of the multiply-accumulates" in text for text in result.report.warnings)


def test_a_search_space_of_a_table(network: Network, target: str) -> None:
    told: list[Prediction] = []
    space = mdp_fx.search_space(network, IMAGES, target=target, threads=1, predicted=told.append)
    assert evaluate(space, space.unpruned())["latency"] == pytest.approx(1e6 * DENSE)
    (prediction,) = told
    assert prediction.slim_per_s is None
    assert prediction.dense_per_s == pytest.approx(BATCH / DENSE)
    sizes = {dim.name: [size for size in dim.sizes if size] for dim in space.dimensions}
    assert sizes["blocks.0.first.0"] == [8, 16, 24, 32]


def test_a_profile_of_a_table(network: Network, target: str) -> None:
    found = mdp_fx.profile(network, IMAGES, target=target)
    assert found.dense_ms == found.sum_ms == pytest.approx(1e3 * DENSE)
    assert found.calibration == 1.0
    rows = {row.name: row for row in found.regions}
    assert rows["stem.0"].ms == pytest.approx(1e3 * linear_seconds(3, 16))
    assert rows["head.fc"].ms == 0.0
    assert found.prediction is not None
    assert found.prediction.not_counted == ("head.pool", "head.fc")


def test_networks_are_compared_by_a_table(network: Network, target: str) -> None:
    slim = mdp_fx.prune(network, IMAGES, latency="50%", target=target, threads=1)
    Network.most = 0
    found = mdp_fx.diff(network, slim.module, IMAGES, target=target)
    assert Network.most < BATCH
    assert found.ms is not None
    assert found.ms[0] == pytest.approx(1e3 * DENSE)
    assert found.ms[1] == pytest.approx(slim.report.latency.predicted_ms)


def test_a_table_times_nothing(network: Network, target: str) -> None:
    with pytest.raises(TargetError, match="predicts latency and runs no network"):
        mdp_fx.bench({"dense": network}, IMAGES, target=target)


PUBLISHED = {
    "layer1.0.conv3": 192,
    **{f"layer1.{i}.conv2": 32 for i in range(3)},
    "layer2.0.conv1": 64,
    "layer2.0.conv3": 384,
    "layer2.1.conv2": 96,
    "layer4.1.conv1": 480,
    "layer4.2.conv1": 480,
}
"""Groups of ResNet-50 that the largest structure of MDP's published MINLP cuts, and their widths there."""


def test_resnet50_on_a_titan_v() -> None:
    torchvision = pytest.importorskip("torchvision")
    device = get_target("titan-v", threads=1, batch=256)
    network = torchvision.models.resnet50(weights=None).eval()
    analysis = analyse(network, torch.zeros(256, 3, 1, 1).expand(-1, -1, 224, 224), all_examples=False)

    def total(widths: dict[str, int]) -> float:
        sizes: dict[Dim, int] = {group.dim: widths.get(group.name, group.size) for group in analysis.groups}
        with table_for(device) as table:
            return sum(exact_sum(analysis.regions, lambda dim: sizes.get(dim, dim.size), device, table).values())

    assert total({}) == pytest.approx(304_740e-6)
    # The authors' own sum for the structure that their solver starts from: 988 images a second.
    assert total(PUBLISHED) == pytest.approx(259_228e-6)
