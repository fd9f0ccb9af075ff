"""Calls that stay whole in an exported network, so that its slim network trains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.eval_flag import is_eval_flag
from mdp_fx.graph.exported import export
from mdp_fx.pipeline import analyse, rewrite
from tests.zoo import image


class Learner(nn.Module):
    """Norms and dropout as modules and as functions, and a branch on train mode, behind a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 12, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.vmap(torch.relu)(self.norm(self.stem(x)))
        x = F.dropout(self.mix(x), 0.2, self.training)
        if self.training:
            x = x + 1
        return self.fc(self.drop(x.mean((2, 3))))


def test_the_slim_network_trains() -> None:
    torch.manual_seed(0)
    analysis = analyse(Learner(), image())
    assert analysis.graph.front_end == "export"
    slim = rewrite(analysis, {"stem": list(range(0, 16, 2)), "mix": [1, 2, 3, 5, 8, 9]}, (), training=True)
    x, labels = image(batch=8), torch.arange(8) % 5
    assert not torch.equal(slim(x), slim(x))
    statistics = slim.get_submodule("norm").running_mean.clone()
    optimiser = torch.optim.Adam(slim.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = F.cross_entropy(slim(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in slim.parameters())
    assert not torch.equal(slim.get_submodule("norm").running_mean, statistics)
    slim.eval()
    assert torch.equal(slim(x), slim(x))


def test_branches_on_train_mode_are_told() -> None:
    (line,) = export(Learner(), (image(),)).training_reads
    assert line.endswith("if self.training:")


def test_modules_and_functions_that_follow_train_mode_stay_whole() -> None:
    nodes = [node for node in export(Learner(), (image(),)).module.graph.nodes if node.op.startswith("call")]
    assert [node.target for node in nodes if node.op == "call_module"] == ["stem", "norm", "mix", "drop", "fc"]
    (dropout,) = (node for node in nodes if node.target is F.dropout)
    assert is_eval_flag(dropout.kwargs["training"])
    assert not any("mdp_fx" in str(node.target) for node in nodes)
