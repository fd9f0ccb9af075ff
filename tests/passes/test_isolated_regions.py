"""Regions on their own: keys that tell apart what a runtime can, builds of the right shape, MACs by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mdp_fx.graph.axes import Axis, free_dims
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.cost_regions import CostRegion
from mdp_fx.pipeline import analyse
from tests.passes.specimens import analysed
from tests.zoo import ZOO, Specimen, image


def half(region: CostRegion) -> tuple[int, ...]:
    return tuple(max(1, size // 2) for size in region.dense_sizes)


def last_type(analysis: Analysis, region: CostRegion) -> tuple[Axis, ...]:
    types: tuple[Axis, ...] = analysis.graph.types[region.nodes[-1]]
    return types


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_a_build_at_the_dense_sizes_is_the_region(specimen: Specimen) -> None:
    analysis = analyse(specimen.make(), specimen.inputs())
    dense = dict(analysis.graph.module.named_modules())
    shapes = {node.name: node.meta.get("shape") for node in analysis.graph.module.graph.nodes}
    for region in analysis.regions:
        module, inputs = region.build(region.dense_sizes)
        assert not module.training
        for name, part in module.named_modules():
            if next(part.children(), None) is None and name:
                assert type(part) is type(dense[name])
                assert [p.shape for p in part.parameters()] == [p.shape for p in dense[name].parameters()]
        with torch.no_grad():
            assert module(*inputs).shape == shapes[region.nodes[-1]]


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_a_smaller_build_has_the_shape_that_the_types_say(specimen: Specimen) -> None:
    analysis = analyse(specimen.make(), specimen.inputs())
    for region in analysis.regions:
        sizes = half(region)
        module, inputs = region.build(sizes)
        with torch.no_grad():
            shape = module(*inputs).shape
        by_axis = dict(zip(region.axes, sizes, strict=True))
        for axis, size in zip(last_type(analysis, region), shape, strict=True):
            if axis.normal in {known.normal for known in by_axis}:
                assert size == next(kept for known, kept in by_axis.items() if known.normal == axis.normal)
            elif not free_dims(axis):
                assert size == axis.size


def test_builds_share_nothing_with_the_dense_network() -> None:
    specimen = next(s for s in ZOO if s.name == "plain_residual")
    model = specimen.make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for region in analyse(model, specimen.inputs()).regions:
        for tensor in region.build(region.dense_sizes)[0].state_dict().values():
            tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_builds_are_the_same_every_time_and_of_ordinary_size() -> None:
    for region in analysed("plain_residual").regions:
        (one, inputs), (other, same) = region.build(half(region)), region.build(half(region))
        assert all(torch.equal(a, b) for a, b in zip(inputs, same, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        with torch.no_grad():
            assert 0.01 < float(one(*inputs).std()) < 100


class Body(nn.Module):
    """One layer under test with what follows it; pools on both sides, which nothing fuses with, and a head."""

    def __init__(self, make: Callable[[], nn.Module], after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.layer = make()
        self.after = after
        self.head = nn.LazyConv2d(5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.layer(F.max_pool2d(self.stem(x), 2))
        return self.head(F.max_pool2d(x if self.after is None else self.after(x), 2)).mean((2, 3))


def region_of(
    make: Callable[[], nn.Module],
    after: Callable[[Tensor], Tensor] | None = None,
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    side: int = 8,
) -> CostRegion:
    """The region of the layer under test, which sees maps of side x side."""
    torch.manual_seed(0)
    body = Body(make, after)
    with torch.no_grad():
        body(image(side=2 * side))
    regions = analyse(body.to(dtype).eval(), (image(side=2 * side, batch=batch).to(dtype),)).regions
    return next(region for region in regions if any(name.startswith("layer") for name in region.nodes))


def conv(i: int = 16, o: int = 24, kernel: int = 3, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(i, o, kernel, **{"padding": kernel // 2, **options})


def with_norm(*more: nn.Module, o: int = 24) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(16, o, 3, padding=1), *more)


BASE = region_of(conv()).key


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: region_of(conv(o=32)), id="other channels"),
        pytest.param(lambda: region_of(lambda: nn.Sequential(conv()())), id="other name"),
        pytest.param(lambda: region_of(conv(bias=True)), id="the same again"),
    ],
)
def test_regions_of_one_geometry_have_equal_keys(other: Callable[[], CostRegion]) -> None:
    region = other()
    assert region.key == BASE
    assert region.roles == ("out", "in")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: region_of(conv(stride=2)), id="stride"),
        pytest.param(lambda: region_of(conv(kernel=5)), id="kernel"),
        pytest.param(lambda: region_of(conv(padding=0)), id="padding"),
        pytest.param(lambda: region_of(conv(dilation=2)), id="dilation"),
        pytest.param(lambda: region_of(conv(bias=False)), id="bias"),
        pytest.param(lambda: region_of(conv(padding_mode="circular")), id="padding mode"),
        pytest.param(lambda: region_of(conv(o=16, groups=16)), id="depthwise"),
        pytest.param(lambda: region_of(conv(groups=4)), id="groups"),
        pytest.param(lambda: region_of(conv(), batch=4), id="batch"),
        pytest.param(lambda: region_of(conv(), side=16), id="resolution"),
        pytest.param(lambda: region_of(conv(), dtype=torch.float64), id="dtype"),
        pytest.param(lambda: region_of(conv(), F.relu), id="activation"),
        pytest.param(lambda: region_of(with_norm(nn.BatchNorm2d(24))), id="norm"),
    ],
)
def test_what_a_runtime_can_tell_apart_has_another_key(other: Callable[[], CostRegion]) -> None:
    assert other().key != BASE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(F.relu, F.gelu, id="activation"),
        pytest.param(lambda x: F.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.2), id="slope"),
        pytest.param(lambda x: x * 2, lambda x: x + 2, id="arithmetic"),
    ],
)
def test_epilogues_are_told_apart(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> None:
    assert region_of(conv(), one).nodes[1:] != ()
    assert region_of(conv(), one).key == region_of(conv(o=32), one).key
    assert region_of(conv(), one).key != region_of(conv(), other).key


@pytest.mark.parametrize(
    ("region", "start"),
    [
        (lambda: region_of(conv()), "Conv2d Bxd1x8x8 torch.float32 batch 2 kernel 3x3 stride 1x1 groups 1"),
        (
            lambda: region_of(conv(kernel=5, stride=2, groups=4), F.relu, batch=4),
            "Conv2d Bxd1*d2x8x8 torch.float32 batch 4 kernel 5x5 stride 2x2 groups d1 + relu",
        ),
        (
            lambda: region_of(with_norm(nn.BatchNorm2d(24), nn.ReLU())),
            "Conv2d Bxd1x8x8 torch.float32 batch 2 kernel 3x3 stride 1x1 groups 1 + BatchNorm2d + ReLU",
        ),
        (lambda: region_of(lambda: nn.MaxPool2d(2)), "MaxPool2d Bxd0x8x8 torch.float32 batch 2"),
    ],
)
def test_a_key_says_what_the_region_is(region: Callable[[], CostRegion], start: str) -> None:
    readable, digest = region().key.rsplit(" ", 1)
    assert readable == start
    assert len(bytes.fromhex(digest)) == 8


def key_of(network: nn.Module, kind: str, inputs: tuple[Tensor, ...] | None = None) -> list[str]:
    regions = analyse(network, inputs or (image(side=4),)).regions
    return [region.key for region in regions if region.nodes[0].startswith(kind)]


class Joined(nn.Module):
    """Concatenations of equal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        one = self.head(F.max_pool2d(torch.cat([a, b], 1), 2))
        return (one + self.head(F.max_pool2d(torch.cat([b, a], 1), 2))).mean((2, 3))


def test_functions_of_one_geometry_have_equal_keys() -> None:
    one, other = key_of(Joined(), "cat")
    assert one == other


@pytest.mark.parametrize("kind", ["cat", "max_pool2d"])
def test_regions_without_weights_are_told_apart_by_dtype(kind: str) -> None:
    one = key_of(Joined(), kind)
    other = key_of(Joined().double(), kind, (image(side=4).double(),))
    assert one[0] != other[0]


def test_norms_with_an_activation_inside_are_told_apart() -> None:
    layers = pytest.importorskip("timm.layers")
    one, other = (region_of(partial(layers.BatchNormAct2d, 16, act_layer=act)) for act in (nn.ReLU, nn.GELU))
    assert one.key != other.key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [conv(), lambda: nn.MaxPool2d(2)], ids=["conv", "pool"])
def test_inputs_have_the_dtype_of_the_network(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    region = region_of(make, dtype=dtype)
    module, inputs = region.build(half(region))
    assert {value.dtype for value in inputs} == {dtype}
    with torch.no_grad():
        assert module(*inputs).dtype == dtype


class Words(nn.Module):
    """Positions that are looked up, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 32)
        self.fc = nn.Linear(32, 4)

    def forward(self, words: Tensor, mask: Tensor) -> Any:
        x = self.table(words.clamp(max=9))
        return self.fc(F.scaled_dot_product_attention(x, x, x, attn_mask=mask)).mean(1)


def test_inputs_that_are_no_floats_are_valid() -> None:
    inputs = (torch.randint(0, 10, (2, 7)), torch.ones(2, 7, 7, dtype=torch.bool))
    found = {region.name: region for region in analyse(Words(), inputs).regions}
    for region in found.values():
        module, given = region.build(half(region))
        with torch.no_grad():
            assert bool(module(*given).isfinite().all())
    assert [x.dtype for x in found["table"].build((5,))[1]] == [torch.int64]
    assert torch.bool in [x.dtype for x in found["scaled_dot_product_attention"].build((5,))[1]]


BATCH = 2


@pytest.mark.parametrize(
    ("make", "sizes", "expected"),
    [
        (conv(), (24, 16), 24 * 16 * 9 * 64),
        (conv(), (8, 4), 8 * 4 * 9 * 64),
        (conv(stride=2), (24, 16), 24 * 16 * 9 * 16),
        (conv(padding=0), (24, 16), 24 * 16 * 9 * 36),
        (conv(kernel=1), (1, 1), 64),
        (conv(o=16, groups=16), (16,), 16 * 9 * 64),
        (conv(o=16, groups=16), (5,), 5 * 9 * 64),
        # Axes are (out of each group, groups, in of each group).
        (conv(groups=4), (6, 4, 4), 24 * 4 * 9 * 64),
        (conv(groups=4), (3, 2, 1), 6 * 1 * 9 * 64),
        (lambda: nn.BatchNorm2d(16), (16,), 0),
        (lambda: nn.MaxPool2d(2), (16,), 0),
    ],
)
def test_macs_by_hand(make: Callable[[], nn.Module], sizes: tuple[int, ...], expected: int) -> None:
    region = region_of(make)
    assert len(region.dense_sizes) == len(sizes)
    assert region.macs(sizes) == BATCH * expected


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_macs_are_proportional_to_the_batch(batch: int) -> None:
    region = region_of(conv(), batch=batch)
    assert region.macs(region.dense_sizes) == batch * 24 * 16 * 9 * 64
    _, (x,) = region.build(region.dense_sizes)
    assert x.shape == (batch, 16, 8, 8)


def test_macs_of_a_transposed_convolution() -> None:
    # Every entry of the operand meets every weight of its channel once.
    region = region_of(lambda: nn.ConvTranspose2d(16, 24, 2, stride=2))
    assert region.macs(region.dense_sizes) == BATCH * 24 * 16 * 4 * 64


class Tokens(nn.Module):
    """Linear layers over tokens, with a stored table that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)
        self.table = nn.Parameter(torch.randn(1, 6, 12))
        self.down = nn.Linear(12, 4, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.down(F.gelu(self.up(x))[:, 1:] + self.table).mean(1)


def test_linear_layers_over_tokens() -> None:
    regions = {region.name: region for region in analyse(Tokens(), (torch.randn(2, 7, 6),)).regions}
    up, down = regions["up"], regions["down"]
    assert (up.nodes, up.roles, up.dense_sizes) == (("up", "gelu"), ("out",), (12,))
    assert (down.roles, down.dense_sizes) == (("in",), (12,))
    assert up.macs((12,)) == BATCH * 7 * 6 * 12
    assert down.macs((5,)) == BATCH * 6 * 5 * 4
    module, (x,) = up.build((5,))
    with torch.no_grad():
        assert (x.shape, module(x).shape) == ((2, 7, 6), (2, 7, 5))


def test_adding_a_stored_tensor_multiplies_nothing() -> None:
    regions = analyse(Tokens(), (torch.randn(2, 7, 6),)).regions
    added = next(region for region in regions if region.nodes[0] == "add")
    assert added.macs(added.dense_sizes) == 0


def test_a_norm_over_several_axes_multiplies_nothing() -> None:
    region = region_of(lambda: nn.LayerNorm([16, 8, 8]))
    assert region.macs(region.dense_sizes) == 0


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_macs_of_the_dense_network_are_those_that_hooks_count(specimen: Specimen) -> None:
    model, inputs = specimen.make().eval(), specimen.inputs()
    counted = 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal counted
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = out.numel() // out.shape[1 if isinstance(module, nn.Conv2d) else -1]
        counted += weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(*inputs)
    assert math.fsum(r.macs(r.dense_sizes) for r in analyse(specimen.make(), inputs).regions) == counted


class Windows(nn.Module):
    """Attention of every head within windows of 4 x 4: the batch is a factor of (batch, windows) and (batch, heads)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.q = nn.Linear(16, 24)
        self.k = nn.Linear(16, 24)
        self.v = nn.Linear(16, 32)
        self.out = nn.Linear(32, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(-1, 16, channels)
        q, k, v = (layer(x).reshape(len(x), 16, 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = (heads.reshape(-1, 16, heads.shape[-1]) for heads in (q, k, v))
        attended = torch.softmax((q * 0.4) @ k.transpose(1, 2), -1) @ v
        x = x + self.out(attended.reshape(len(x), 4, 16, -1).transpose(1, 2).reshape(len(x), 16, -1))
        return self.fc(x.reshape(batch, -1, channels).mean(1))


def windows(batch: int) -> dict[str, CostRegion]:
    torch.manual_seed(0)
    return {region.name: region for region in analyse(Windows().eval(), (image(batch=batch),)).regions}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_macs_of_window_attention_are_those_that_torch_counts(batch: int) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Windows().eval()(image(batch=batch))
    assert math.fsum(r.macs(r.dense_sizes) for r in windows(batch).values()) == counter.get_total_flops() / 2


def test_a_batch_inside_of_a_product_is_the_one_asked_for() -> None:
    one, three = windows(1), windows(3)
    assert one.keys() == three.keys()
    for name, region in one.items():
        assert region.dense_sizes == three[name].dense_sizes
        assert three[name].macs(region.dense_sizes) == 3 * region.macs(region.dense_sizes)
        assert three[name].key != region.key
        (module, inputs), (other, thrice) = (r.build(half(region)) for r in (region, three[name]))
        assert [(3 * x.shape[0], *x.shape[1:]) for x in inputs] == [tuple(x.shape) for x in thrice]
        with torch.no_grad():
            assert 3 * module(*inputs).shape[0] == other(*thrice).shape[0]


def test_axes_of_window_attention_are_its_heads_and_their_entries() -> None:
    found = {name: (region.roles, region.dense_sizes) for name, region in windows(2).items()}
    assert found["mul"] == (("out", "out"), (4, 6))
    assert found["matmul"] == (("out", "in"), (4, 6))
    assert found["matmul_1"] == (("out", "out"), (4, 8))
    assert [tuple(x.shape) for x in windows(2)["matmul_1"].build((3, 5))[1]] == [(24, 16, 16), (24, 16, 5)]
