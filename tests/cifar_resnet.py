"""The CIFAR ResNet of He et al. with option-A shortcuts, and its trained weights where they are at hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "cifar10_resnet56.pt"


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut without weights."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.extra = o - i

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2), "constant", 0)
        out += x
        return F.relu(out)


class CifarResNet(nn.Module):
    """6 n + 2 layers."""

    def __init__(self, n: int = 9) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] + [16] * n + [32] * n + [64] * n
        blocks = [BasicBlock(i, o, 1 + (i != o)) for i, o in itertools.pairwise(widths)]
        self.layer1 = nn.Sequential(*blocks[:n])
        self.layer2 = nn.Sequential(*blocks[n : 2 * n])
        self.layer3 = nn.Sequential(*blocks[2 * n :])
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def resnet56() -> CifarResNet:
    """ResNet-56, trained where its weights are found."""
    net = CifarResNet()
    if WEIGHTS.exists():
        state = torch.load(WEIGHTS, weights_only=True)
        state = state.get("state_dict", state)
        net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return net
