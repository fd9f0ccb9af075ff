"""One network per op and spelling: whatever a rule makes of it, the pruned network is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.passes.channel_groups import find_frozen
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import parity_error, randomise

Middle = Callable[[Any, Tensor], Any]
LIMIT = 1e-12


class Around(nn.Module):
    """A stem of 16 channels, an op that returns 16 channels, and a classifier."""

    def __init__(self, middle: Middle, modules: dict[str, Any]) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 16, 3, padding=1)
        self.b1 = nn.BatchNorm2d(16)
        self.c2 = nn.Conv2d(16, 12, 3, padding=1)
        self.c3 = nn.Conv2d(12, 16, 1)
        self.h = nn.Linear(16, 5)
        self.middle = middle
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        x = self.middle(self, F.relu(self.b1(self.c1(x))))
        return self.h(x.mean((2, 3)))


def mid(n: Any, x: Tensor) -> Any:
    """A residual branch."""
    return n.c3(F.relu(n.c2(x)))


OPS: dict[str, tuple[Middle, dict[str, Any]]] = {
    "scaled": (lambda n, x: x + 0.1 * mid(n, x), {}),
    "sub": (lambda n, x: x - mid(n, x), {}),
    "alpha": (lambda n, x: torch.add(x, mid(n, x), alpha=0.5), {}),
    "radd": (lambda n, x: x.add(other=mid(n, x)), {}),
    "convT": (lambda n, x: n.t(F.relu(n.c2(x))), {"t": nn.ConvTranspose2d(12, 16, 2, 2)}),
    "convTg": (lambda n, x: n.t(F.relu(n.c2(x))), {"t": nn.ConvTranspose2d(12, 16, 3, 2, 1, groups=4)}),
    "convTdw": (lambda n, x: n.t(x), {"t": nn.ConvTranspose2d(16, 16, 3, 1, 1, groups=16)}),
    "gn": (lambda n, x: n.c3(n.g(n.c2(x))), {"g": nn.GroupNorm(4, 12)}),
    "in": (lambda n, x: n.c3(n.g(n.c2(x))), {"g": nn.InstanceNorm2d(12, affine=True)}),
    "in0": (lambda n, x: n.c3(n.g(n.c2(x))), {"g": nn.InstanceNorm2d(12)}),
    "lrn": (lambda n, x: n.c3(n.g(n.c2(x))), {"g": nn.LocalResponseNorm(3)}),
    "pshuf": (lambda n, x: n.t(F.pixel_shuffle(n.c2(x), 2)), {"t": nn.Conv2d(3, 16, 1)}),
    "pshufm": (lambda n, x: n.t(n.p(n.c2(x))), {"p": nn.PixelShuffle(2), "t": nn.Conv2d(3, 16, 1)}),
    "unshuf": (lambda n, x: n.t(F.pixel_unshuffle(n.c2(x), 2)), {"t": nn.Conv2d(48, 16, 1)}),
    "glu": (lambda n, x: n.t(F.glu(n.c2(x), 1)), {"t": nn.Conv2d(6, 16, 1)}),
    "flip": (lambda n, x: n.c3(torch.flip(n.c2(x), [1])), {}),
    "flips": (lambda n, x: n.c3(torch.flip(n.c2(x), [2])), {}),
    "roll": (lambda n, x: n.c3(torch.roll(n.c2(x), 1, 1)), {}),
    "cumsum": (lambda n, x: n.c3(torch.cumsum(n.c2(x), 1)), {}),
    "sort": (lambda n, x: n.c3(torch.sort(n.c2(x), 1)[0]), {}),
    "topk": (lambda n, x: n.t(torch.topk(n.c2(x), 6, 1)[0]), {"t": nn.Conv2d(6, 16, 1)}),
    "idx": (lambda n, x: n.t(n.c2(x)[:, [0, 2, 4]]), {"t": nn.Conv2d(3, 16, 1)}),
    "stride": (lambda n, x: n.t(n.c2(x)[:, ::2]), {"t": nn.Conv2d(6, 16, 1)}),
    "idxsel": (lambda n, x: n.t(torch.index_select(n.c2(x), 1, torch.tensor([1, 3]))), {"t": nn.Conv2d(2, 16, 1)}),
    "maskfill": (lambda n, x: n.c3((y := n.c2(x)).masked_fill(y < 0, -1.0)), {}),
    "where": (lambda n, x: n.c3(torch.where((y := n.c2(x)) < 0, y * 2, y)), {}),
    "cmp": (lambda n, x: n.c3((y := n.c2(x)) * (y > 0)), {}),
    "max2": (lambda n, x: n.c3(torch.max((y := n.c2(x)), -y)), {}),
    "einsum": (lambda n, x: torch.einsum("bchw,oc->bohw", n.c2(x), n.w), {"w": nn.Parameter(torch.randn(16, 12))}),
    "flinear": (
        lambda n, x: F.linear(n.c2(x).permute(0, 2, 3, 1), n.w, n.bb).permute(0, 3, 1, 2),
        {"w": nn.Parameter(torch.randn(16, 12)), "bb": nn.Parameter(torch.randn(16))},
    ),
    "fconv": (
        lambda n, x: F.conv2d(n.c2(x), n.w, n.bb),
        {"w": nn.Parameter(torch.randn(16, 12, 1, 1)), "bb": nn.Parameter(torch.randn(16))},
    ),
    "fbn": (
        lambda n, x: n.c3(F.batch_norm(n.c2(x), n.m, n.v, n.w, n.bb)),
        {
            "m": nn.Parameter(torch.randn(12)),
            "v": nn.Parameter(torch.rand(12) + 0.5),
            "w": nn.Parameter(torch.randn(12)),
            "bb": nn.Parameter(torch.randn(12)),
        },
    ),
    "chmean": (lambda n, x: n.c3((y := n.c2(x)) * torch.sigmoid(y.mean(1, keepdim=True))), {}),
    "chsoft": (lambda n, x: n.c3(torch.softmax(n.c2(x), 1)), {}),
    "normalize": (lambda n, x: n.c3(F.normalize(n.c2(x), dim=1)), {}),
    "cos": (lambda n, x: n.c3((y := n.c2(x)) * F.cosine_similarity(y, y.roll(1, 2), dim=1)[:, None]), {}),
    "bcast1": (lambda n, x: n.c3(n.c2(x) * n.t(x)), {"t": nn.Conv2d(16, 1, 1)}),
    "const": (lambda n, x: n.c3(n.c2(x) * n.k), {"k": nn.Parameter(torch.randn(1, 12, 1, 1))}),
    "constscalar": (lambda n, x: n.c3(n.c2(x) * n.k), {"k": nn.Parameter(torch.randn(()))}),
    "tile": (lambda n, x: n.t(n.c2(x).repeat(1, 2, 1, 1)), {"t": nn.Conv2d(24, 16, 1)}),
    "tile2": (lambda n, x: n.t(torch.tile(n.c2(x), (1, 2, 1, 1))), {"t": nn.Conv2d(24, 16, 1)}),
    "rint": (lambda n, x: n.t(n.c2(x).repeat_interleave(2, 1)), {"t": nn.Conv2d(24, 16, 1)}),
    "catself": (lambda n, x: n.t(torch.cat([(y := n.c2(x)), y], 1)), {"t": nn.Conv2d(24, 16, 1)}),
    "stackv": (lambda n, x: n.t(torch.stack([(y := n.c2(x)), y * 2], 1).flatten(1, 2)), {"t": nn.Conv2d(24, 16, 1)}),
    "stackv2": (lambda n, x: n.t(torch.stack([(y := n.c2(x)), y * 2], 2).flatten(1, 2)), {"t": nn.Conv2d(24, 16, 1)}),
    "shuffle": (
        lambda n, x: n.c3((y := n.c2(x)).view(y.shape[0], 2, 6, *y.shape[2:]).transpose(1, 2).reshape(y.shape)),
        {},
    ),
    "chunku": (lambda n, x: n.c3(torch.cat([(p := n.c2(x).chunk(3, 1))[1], p[0], p[2]], 1)), {}),
    "splitl": (lambda n, x: n.c3(torch.cat([(p := n.c2(x).split([2, 4, 6], 1))[1], p[0], p[2]], 1)), {}),
    "splitu": (lambda n, x: n.c3(torch.cat([(p := torch.split(n.c2(x), 5, dim=1))[2], p[0], p[1]], 1)), {}),
    "tsplit": (lambda n, x: n.c3(torch.cat([(p := torch.tensor_split(n.c2(x), 2, dim=1))[1], p[0]], 1)), {}),
    "unfold": (
        lambda n, x: n.t(F.unfold((y := n.c2(x)), 3, padding=1).view(y.shape[0], -1, *y.shape[2:])),
        {"t": nn.Conv2d(108, 16, 1)},
    ),
    "twice": (lambda n, x: n.c3(F.relu(n.d(F.relu(n.d(n.c2(x)))))), {"d": nn.Conv2d(12, 12, 3, padding=1)}),
    "inplaceview": (lambda n, x: ((y := n.c2(x))[:, :4].mul_(2), n.c3(y))[1], {}),
    "inplaceadd": (lambda n, x: ((y := n.c2(x)).add_(1), n.c3(y))[1], {}),
    "setitem": (lambda n, x: ((y := n.c2(x)).__setitem__((slice(None), slice(0, 3)), 0.0), n.c3(y))[1], {}),
    "prelu": (lambda n, x: n.c3(n.p(n.c2(x))), {"p": nn.PReLU(12)}),
    "bmm": (
        lambda n, x: n.c3(
            torch.bmm((y := n.c2(x)).flatten(2).transpose(1, 2) @ y.flatten(2) * 0.1, y.flatten(2).transpose(1, 2))
            .transpose(1, 2)
            .reshape(y.shape)
        ),
        {},
    ),
    "gram": (
        lambda n, x: n.c3(
            (torch.bmm((y := n.c2(x)).flatten(2), y.flatten(2).transpose(1, 2)) * 0.05 @ y.flatten(2)).reshape(y.shape)
        ),
        {},
    ),
    "sum3": (lambda n, x: sum([x, mid(n, x), n.t(x)]), {"t": nn.Conv2d(16, 16, 1)}),
    "sdpa": (
        lambda n, x: n.c3(
            F.scaled_dot_product_attention((y := n.c2(x).flatten(2).transpose(1, 2)), y * 2, y)
            .transpose(1, 2)
            .reshape(y.shape[0], 12, 8, 8)
        ),
        {},
    ),
    "lnlast": (lambda n, x: n.c3(n.l(n.c2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), {"l": nn.LayerNorm(12)}),
    "lnspat": (lambda n, x: n.c3(n.l(n.c2(x))), {"l": nn.LayerNorm([8, 8])}),
    "lnall": (lambda n, x: n.c3(n.l(n.c2(x))), {"l": nn.LayerNorm([12, 8, 8])}),
    "wn": (lambda n, x: n.c3(n.t(x)), {"t": nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 12, 1))}),
    "sn": (lambda n, x: n.c3(n.t(x)), {"t": nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 12, 1))}),
    "bilin": (
        lambda n, x: n.t((y := n.c2(x)).mean((2, 3)), y.amax((2, 3)))[:, :, None, None],
        {"t": nn.Bilinear(12, 12, 16)},
    ),
    "emb": (
        lambda n, x: n.c3(n.c2(x) + n.e(torch.zeros(1, dtype=torch.long))[..., None, None]),
        {"e": nn.Embedding(3, 12)},
    ),
    "addmm": (
        lambda n, x: torch.addmm(n.bb, n.c2(x).mean((2, 3)), n.w)[:, :, None, None],
        {"w": nn.Parameter(torch.randn(12, 16)), "bb": nn.Parameter(torch.randn(16))},
    ),
    "matw": (lambda n, x: (n.c2(x).mean((2, 3)) @ n.w)[:, :, None, None], {"w": nn.Parameter(torch.randn(12, 16))}),
    "matwl": (
        lambda n, x: (n.w @ n.c2(x).flatten(2)).reshape(x.shape[0], 16, 8, 8),
        {"w": nn.Parameter(torch.randn(16, 12))},
    ),
    "sqz": (lambda n, x: n.c3(n.c2(x).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)[:, :, None, None]), {}),
    "apool2": (
        lambda n, x: n.t(F.adaptive_avg_pool2d(n.c2(x), 2).flatten(1))[:, :, None, None],
        {"t": nn.Linear(48, 16)},
    ),
    "flatlin": (lambda n, x: n.t(torch.flatten(n.c2(x), 1))[:, :, None, None], {"t": nn.Linear(768, 16)}),
    "viewm1": (lambda n, x: n.t(n.c2(x).view(x.size(0), -1)).view(-1, 16, 1, 1), {"t": nn.Linear(768, 16)}),
    "varch": (lambda n, x: n.c3((y := n.c2(x)) / (y.var(1, keepdim=True) + 1)), {}),
    "maxch": (lambda n, x: n.c3((y := n.c2(x)) - torch.max(y, 1, keepdim=True)[0]), {}),
    "clamp": (lambda n, x: n.c3(n.c2(x).clamp(min=-1, max=1)), {}),
    "cbam": (
        lambda n, x: n.c3(
            (y := n.c2(x)) * torch.sigmoid(n.t(torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1)))
        ),
        {"t": nn.Conv2d(2, 1, 3, padding=1)},
    ),
    "se": (
        lambda n, x: n.c3((y := n.c2(x)) * torch.sigmoid(n.u(F.relu(n.t(y.mean((2, 3), keepdim=True)))))),
        {"t": nn.Conv2d(12, 4, 1), "u": nn.Conv2d(4, 12, 1)},
    ),
    "eca": (
        lambda n, x: n.c3(
            (y := n.c2(x)) * torch.sigmoid(n.t(y.mean((2, 3)).unsqueeze(1))).squeeze(1)[:, :, None, None]
        ),
        {"t": nn.Conv1d(1, 1, 3, padding=1)},
    ),
    "addself": (lambda n, x: n.c3((y := n.c2(x)) + y), {}),
    "drop3": (lambda n, x: n.c3(F.dropout(n.c2(x), 0.5, n.training)), {}),
    "padch": (lambda n, x: n.t(F.pad(n.c2(x), (0, 0, 0, 0, 2, 2))), {"t": nn.Conv2d(16, 16, 1)}),
    "padref": (lambda n, x: n.c3(F.pad(n.c2(x), (1, 1, 1, 1), mode="reflect")), {}),
    "upd": (lambda n, x: n.c3(F.interpolate(n.c2(x), scale_factor=2)), {}),
    "logsum": (lambda n, x: n.c3((y := n.c2(x)) - y.logsumexp(1, keepdim=True)), {}),
    "mult": (
        lambda n, x: n.t(n.d(n.c2(x))),
        {"d": nn.Conv2d(12, 24, 3, padding=1, groups=12), "t": nn.Conv2d(24, 16, 1)},
    ),
    "multg": (
        lambda n, x: n.t(n.d(n.c2(x))),
        {"d": nn.Conv2d(12, 24, 3, padding=1, groups=4), "t": nn.Conv2d(24, 16, 1, groups=2)},
    ),
    "conv by a buffer": (lambda n, x: F.conv2d(n.c2(x).sigmoid(), n.k), {"k": nn.Buffer(torch.randn(16, 12, 1, 1))}),
    "conv by computed": (
        lambda n, x: F.conv2d(n.c2(x).sigmoid(), 1 - n.w),
        {"w": nn.Parameter(torch.randn(16, 12, 1, 1))},
    ),
    "linear by computed": (
        lambda n, x: F.linear(n.c2(x).sigmoid().mean((2, 3)), n.w.exp())[:, :, None, None],
        {"w": nn.Parameter(torch.randn(16, 12))},
    ),
    "transposed by a buffer": (
        lambda n, x: F.conv_transpose2d(n.c2(x).sigmoid(), n.k),
        {"k": nn.Buffer(torch.randn(12, 16, 1, 1))},
    ),
    "products of computed": (
        lambda n, x: n.t(F.linear((y := n.c2(x).flatten(2).mT), F.softplus(n.w)) @ F.linear(y, F.softplus(n.w)).mT)[
            :, :16, :, None
        ],
        {"w": nn.Parameter(torch.randn(6, 12)), "t": nn.Linear(64, 8)},
    ),
    "pool over channels": (lambda n, x: n.c3(F.max_pool3d(n.c2(x), (3, 1, 1), 1, (1, 0, 0))), {}),
    "pool of rows": (lambda n, x: n.c3(F.avg_pool1d(n.c2(x).mean((2, 3)), 3, 1, 1)[:, :, None, None]), {}),
    "lerp by name": (
        lambda n, x: n.c3(torch.lerp((y := n.c2(x)), end=n.d(x), weight=0.3) + y),
        {"d": nn.Conv2d(16, 12, 1)},
    ),
    "addcmul by name": (
        lambda n, x: n.c3(torch.addcmul(n.c2(x), tensor1=(y := n.d(x)), tensor2=y)),
        {"d": nn.Conv2d(16, 12, 1)},
    ),
    "pow by name": (
        lambda n, x: n.c3(torch.pow(n.c2(x).abs() + 1, exponent=n.d(x).sigmoid())),
        {"d": nn.Conv2d(16, 12, 1)},
    ),
    "where by name": (
        lambda n, x: n.c3(torch.where((y := n.c2(x)) > 0, input=y, other=n.d(x))),
        {"d": nn.Conv2d(16, 12, 1)},
    ),
    "cat by axis": (lambda n, x: n.t(torch.cat([n.c2(x), n.c2(x)], axis=1)), {"t": nn.Conv2d(24, 16, 1)}),
    "mean by axis": (lambda n, x: n.c3(n.c2(x).mean(axis=(2, 3), keepdims=True)), {}),
    "bmm by name": (
        lambda n, x: n.c3(torch.bmm((y := n.c2(x).flatten(2)).mT, mat2=y)[:, :12, :8, None]),
        {},
    ),
    "unit made inside": (lambda n, x: n.c3(nn.ReLU()(n.c2(x))), {}),
    "named squeeze": (
        lambda n, x: n.c3(n.squeeze(n.c2(x).mean(3, keepdim=True))[:, :12, None, None]),
        {"squeeze": nn.Flatten()},
    ),
    "masked heads": (
        lambda n, x: n.c3(
            F.scaled_dot_product_attention(
                (y := n.c2(x).flatten(2).view(-1, 4, 3, 64).mT), y, y, attn_mask=n.table
            ).mT.reshape(-1, 12, 8, 8)
        ),
        {"table": nn.Parameter(torch.randn(4, 64, 64))},
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_pruned_right_or_frozen(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(Around(*OPS[name])).eval()
    for seed in (0, 1):
        assert parity_error(model, (torch.randn(2, 3, 8, 8),), seed) <= LIMIT


class Standardised(nn.Conv2d):
    """A convolution that computes its weight in between."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def test_a_convolution_that_computes_its_weight_is_frozen() -> None:
    model = randomise(Around(lambda n, x: n.c3(n.t(n.c2(x))), {"t": Standardised(12, 12, 3, padding=1)})).eval()
    assert parity_error(model, (torch.randn(2, 3, 8, 8),), 0) <= LIMIT


def test_a_forward_that_was_replaced_is_frozen() -> None:
    model = randomise(Around(lambda n, x: n.c3(n.c2(x)), {})).eval()
    plain = model.c2.forward
    model.c2.forward = lambda x: plain(x).cumsum(1)  # type: ignore[method-assign]
    reasons = {row.reason for row in find_frozen(analyse(model, torch.randn(2, 3, 8, 8)).graph)}
    assert "no typing rule for Conv2d with hooks or parametrisations at c2" in reasons


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x[x.shape[0] // 2 :], x[: x.shape[0] // 2]]),
        lambda x: torch.stack([row * 2 for row in x]),
        lambda x: torch.stack([row * 2 for row in x.unbind(0)]),
        lambda x: torch.cat([part * 2 for part in x.split(1, 0)]),
        lambda x: torch.cat([part * 2 for part in x.chunk(2, 0)]),
        lambda x: x[:2],
    ],
    ids=["rolled", "iterated", "unbound", "split", "chunked", "cut"],
)
def test_a_batch_that_is_taken_apart_is_right_for_the_batch_that_was_given(
    function: Callable[[Tensor], Tensor],
) -> None:
    model = randomise(Around(lambda n, x: function(n.c3(n.c2(x))), {})).eval()
    x = torch.randn(1, 3, 8, 8)
    slim = rewrite(analyse(model, x), {}, ())
    with torch.no_grad():
        assert torch.allclose(slim(x), model(x), atol=1e-5)


def test_a_sum_that_is_written_to_keeps_its_block() -> None:
    def body(n: Any, x: Tensor) -> Any:
        z = x + n.c3(n.c2(x))
        seen = z.flatten(1)
        z.relu_()
        return seen.view(z.shape) + x

    blocks = analyse(randomise(Around(body, {})).eval(), torch.randn(2, 3, 8, 8)).blocks
    assert any(block.reason.endswith("is written to in place") for block in blocks.kept)


def test_autocast_inside_of_a_forward_is_refused() -> None:
    def body(n: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return n.c3(n.c2(x)).float()

    with pytest.raises(ModelError, match="its forward runs under autocast"):
        analyse(Around(body, {}).eval(), torch.randn(2, 3, 8, 8))


def test_a_model_that_kept_a_result_can_be_traced() -> None:
    model = Around(lambda n, x: n.c3(n.c2(x)), {}).eval()
    model.last = model(torch.randn(2, 3, 8, 8))
    assert analyse(model, torch.randn(2, 3, 8, 8)).groups
