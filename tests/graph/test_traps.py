"""Networks with one trap each: shared, hidden, nested or moved channels. What is pruned is pruned right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.small import net, tokens, vectors
from tests.pruning import parity_error, randomise

LIMIT = 1e-12


def conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 12)
        self.c = conv(12, 16)
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        y = self.c(F.relu(self.b(x)))
        return {"f": y, "o": self.h((x + y).mean((2, 3)))}


class NestedOutput(DictOutput):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        m = F.relu(self.b(x))
        y = self.c(m)
        return (self.h((x + y).mean((2, 3))), [m.mean((2, 3))])


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 16, bias=False)
        self.c = conv(16, 16, bias=False)
        self.c.weight = self.b.weight
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.h(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class WeightInTwoRoles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.w = nn.Parameter(torch.randn(16, 16))
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).mean((2, 3))
        return self.h(F.relu(F.linear(y, self.w)) + y @ self.w)


class TransposedTiedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.e = nn.Linear(16, 24, bias=False)
        self.b1 = nn.Parameter(torch.randn(16))
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).mean((2, 3))
        return self.h(F.linear(F.relu(self.e(y)), self.e.weight.t(), self.b1))


class DeadBranch(DictOutput):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        y = self.c(F.relu(self.b(x)))
        self.b(x * 2)
        return self.h((x + y).mean((2, 3)))


class ResidualOnTheInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(16, 3)
        self.c = conv(3, 8)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = x + self.b(F.relu(self.a(x)))
        return self.h(F.relu(self.c(x)).mean((2, 3)))


class SumOfFour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.l = nn.ModuleList([conv(8, 8) for _ in range(4)])
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return self.h((self.l[0](x) + self.l[1](x) + self.l[2](x) + self.l[3](x)).relu().mean((2, 3)))


class SumOfSums(SumOfFour):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return self.h((self.l[0](x) + self.l[1](x) + (self.l[2](x) + self.l[3](x))).relu().mean((2, 3)))


class BranchReadTwice(SumOfFour):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        y = self.l[0](x)
        z = x + self.l[1](F.relu(y))
        return self.h((z + self.l[2](y).relu()).mean((2, 3)))


class ForwardThatWritesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.c = conv(8, 8)
        self.h = nn.Linear(8, 4)
        self.n: Any = nn.Buffer(torch.zeros(()))
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        self.n += 1
        if self.cache is None:
            self.cache = torch.ones(8, 1, 1)
        x = F.relu(self.a(x)) * self.cache.to(x.dtype)
        return self.h(self.c(x).mean((2, 3)))


class PositionTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12)
        self.t = nn.Parameter(torch.randn(12, 15))
        self.i = nn.Buffer(torch.randint(0, 15, (8, 8)))
        self.c = conv(12, 8)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.h(F.relu(self.c(self.a(x) + self.t[:, self.i])).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.g = conv(16, 16)
        self.v = conv(16, 16)
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.h((torch.sigmoid(self.g(x)) * torch.tanh(self.v(x)) + x).mean((2, 3)))


class DenselyConnected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.l = nn.ModuleList([conv(8 + 6 * i, 6) for i in range(4)])
        self.n = nn.ModuleList([nn.BatchNorm2d(8 + 6 * i) for i in range(5)])
        self.h = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Any:
        f = [self.a(x)]
        for norm, layer in zip(self.n, self.l, strict=False):
            f.append(layer(F.relu(norm(torch.cat(f, 1)))))
        return self.h(self.n[4](torch.cat(f, 1)).mean((2, 3)))


class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.b = conv(8, 8)
        self.c = conv(8, 8)
        self.h = nn.Linear(16, 4)

    def shuffle(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        for m in (self.b, self.c):
            p, q = x.chunk(2, 1)
            x = self.shuffle(torch.cat([p, F.relu(m(q))], 1))
        return self.h(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 12, 3, padding=1)
        self.r = nn.LSTM(12, 10, batch_first=True)
        self.h = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Any:
        return self.h(self.r(self.a(x.flatten(2)).transpose(1, 2))[0].mean(1))


class AttentionModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.m = nn.MultiheadAttention(16, 4, batch_first=True)
        self.f = nn.Linear(16, 24)
        self.g = nn.Linear(24, 16)
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).flatten(2).transpose(1, 2)
        x = x + self.m(x, x, x, need_weights=False)[0]
        x = x + self.g(F.gelu(self.f(x)))
        return self.h(x.mean(1))


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 16)
        self.q = nn.Linear(16, 48)
        self.p = nn.Linear(16, 16)
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).flatten(2).transpose(1, 2)
        b, n, d = x.shape
        q, k, v = self.q(x).reshape(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.p(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return self.h(x.mean(1))


class SplitAttention(FusedAttention):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 24)
        self.k = nn.Linear(16, 24)
        self.v = nn.Linear(16, 32)
        self.p = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) * 6**-0.5, -1)
        x = x + self.p((weights @ v).transpose(1, 2).reshape(b, n, -1))
        return self.h(x.mean(1))


class NormCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 8)
        self.n = nn.BatchNorm2d(8)
        self.n2 = nn.BatchNorm2d(8, track_running_stats=False)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.n(self.a(x))
        x = x + self.n(self.b(x))
        return self.h(x.mean((2, 3)))


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 8)
        self.c = conv(8, 8)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        y = self.b(x)
        return self.h((x - y + self.c(y)).mean((2, 3)))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(1, 8, 3, padding=1)
        self.b = nn.Conv3d(8, 8, 3, padding=1)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.h(F.relu(self.b(F.relu(self.a(x[:, None])))).mean((2, 3, 4)))


class LayerPerChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.h = nn.ModuleList([nn.Linear(1, 2) for _ in range(8)])

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).mean((2, 3))
        return torch.cat([h(y[:, i : i + 1]) for i, h in enumerate(self.h)], 1)


class TakenApart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 8)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        out = []
        for t in x.unbind(1):
            out.append(t * 2)
        return self.h(self.b(torch.stack(out, 1)).mean((2, 3)))


class LinearOverSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.w = nn.Linear(8, 8)
        self.b = conv(8, 8)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        x = x + self.w(x)
        x = x + self.w(x.transpose(1, 3)).transpose(1, 3)
        return self.h(self.b(x).mean((2, 3)))


class BatchAndChannelsFlat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.l = nn.Linear(64, 16)
        self.o = nn.Linear(16, 64)
        self.h = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        b = y.shape[0]
        z = y.reshape(b * 8, 64)
        z = self.o(F.relu(self.l(z)))
        return self.h(z.reshape(b, 8, 64).mean(2))


class OneChannelSqueezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 1)
        self.c = conv(1, 6)
        self.h = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.b(F.relu(self.a(x))).squeeze(1)
        return self.h(self.c(y.unsqueeze(1)).mean((2, 3)))


NETWORKS: tuple[type[nn.Module], ...] = (
    DictOutput,
    NestedOutput,
    TiedWeights,
    WeightInTwoRoles,
    TransposedTiedWeight,
    DeadBranch,
    ResidualOnTheInput,
    SumOfFour,
    SumOfSums,
    BranchReadTwice,
    ForwardThatWritesItself,
    PositionTable,
    Gated,
    DenselyConnected,
    ChannelShuffle,
    Recurrent,
    AttentionModule,
    FusedAttention,
    SplitAttention,
    NormCalledTwice,
    Difference,
    Volume,
    LayerPerChannel,
    TakenApart,
    LinearOverSpace,
    BatchAndChannelsFlat,
    OneChannelSqueezed,
)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_pruned_right_or_frozen(network: type[nn.Module]) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = randomise(network(), seed).eval()
        assert parity_error(model, (torch.randn(2, 3, 8, 8),), seed) <= LIMIT


# Attributes that the forward sets ------------------------------------------------------------------------------------


class Resized(nn.Module):
    """A buffer that the forward replaces where it does not fit, as caches of positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("places", torch.zeros(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.places.shape[1] != x.shape[1]:
            self.places = torch.arange(x.shape[1], dtype=x.dtype).unsqueeze(0)
        return self.fc(torch.tanh(self.a(x) + self.places.expand(x.shape[0], -1).unsqueeze(2)))


def test_a_buffer_that_the_forward_replaces_counts_as_it_is_then() -> None:
    model = Resized().eval()
    before = model.places.clone()
    assert parity_error(model, (tokens(),), 0) <= LIMIT
    assert torch.equal(model.places, before)


def test_views_of_memory_that_is_written_to_keep_their_blocks() -> None:
    """Without its block a sum would be a view, and see what is written to the memory behind it."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        left, right = torch.split(x, [3, 5], 1)
        total = right + net.b(right)
        x = torch.relu_(x)
        return net.fc(torch.cat([left, total, x], 1))

    model = net(body, a=nn.Linear(3, 8), b=nn.Linear(5, 5), fc=nn.Linear(16, 4))
    for seed in range(4):
        assert parity_error(model, (vectors(),), seed) <= LIMIT
