"""The CIFAR ResNet of He et al. with option-A shortcuts (strided subsampling, zero-padded channels)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common import SHARED


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.padded = (outer - inner) // 2
        self.stride = stride
        self.shortcut: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.padded:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padded, self.padded))
        return F.relu(out + x)


def convolve_shortcuts(network: nn.Module) -> None:
    """Writes padded shortcuts as fixed 1 x 1 convolutions that compute the same: not every tool can follow a pad."""
    for block in network.modules():
        if isinstance(block, _Block) and block.padded:
            inner, outer = block.conv1.in_channels, block.conv2.out_channels
            convolution = nn.Conv2d(inner, outer, 1, block.stride, bias=False)
            with torch.no_grad():
                convolution.weight.zero_()
                convolution.weight[block.padded : block.padded + inner, :, 0, 0] = torch.eye(inner)
            block.shortcut = convolution.requires_grad_(False)


class _Selection(nn.Module):
    """A strided shortcut that gives some channels and zeros; `index` of shape (out channels,) names a channel or, by
    the number of channels, zeros."""

    def __init__(self, index: Tensor, stride: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1)).index_select(1, self.index)


def select_shortcuts(network: nn.Module) -> None:
    """Writes what is left of `convolve_shortcuts` without the convolutions, which would count in latency."""
    for block in network.modules():
        if isinstance(block, _Block) and isinstance(block.shortcut, nn.Conv2d):
            weight = block.shortcut.weight.detach()[:, :, 0, 0]
            index = torch.where(weight.any(1), weight.argmax(1), weight.shape[1])
            block.shortcut = _Selection(index, block.stride)


class ResNetCifar(nn.Module):
    """A ResNet of 6 n + 2 layers for 32 x 32 images."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            layers = [
                _Block(widths[stage - 1] if i == 0 else widths[stage], widths[stage], 2 if i == 0 and stage > 1 else 1)
                for i in range(blocks)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size(3))
        return self.linear(x.view(x.size(0), -1))


def resnet56() -> nn.Module:
    """ResNet-56, with the trained weights of the shared data where they are at hand."""
    torch.manual_seed(0)
    model = ResNetCifar(9)
    weights = SHARED / "cifar10_resnet56.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()
