"""Attention layers become separate projections around the attention of every head, with the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.graph.trace import trace
from mdp_fx.passes.normalize import normalize
from mdp_fx.passes.normalize.attention import split_attention
from mdp_fx.pipeline import analyse
from tests.passes.normalize.bench import LIMIT, left_alone, normalized, targets
from tests.pruning import error, parity_error

B, L, S, E, H = 2, 5, 7, 12, 3


class Attending(nn.Module):
    """An attention layer of which the result, and maybe the weights, are given back."""

    def __init__(self, read_weights: bool = False, forward: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(**{"embed_dim": E, "num_heads": H, "batch_first": True, **options})
        self.read_weights = read_weights
        self.given = forward or {}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> Any:
        named = dict(zip(self.given.get("masks", ()), masks, strict=True))
        options = {name: option for name, option in self.given.items() if name != "masks"}
        result, weights = self.layer(query, key, value, **named, **options)
        return (result, weights) if self.read_weights else result


def operands(batch_first: bool = True, kdim: int = E, vdim: int = E) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.randn(B, L, E), torch.randn(B, S, kdim), torch.randn(B, S, vdim)
    return found if batch_first else tuple(x.transpose(0, 1).contiguous() for x in found)  # type: ignore[return-value]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": False},
    {"kdim": 8, "vdim": 10},
    {"kdim": 8, "vdim": 10, "bias": False, "batch_first": False},
    {"dropout": 0.25},
    {"num_heads": 1},
    {"num_heads": E},
]


@pytest.mark.parametrize("read_weights", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_stay_for_all_kinds_of_layers(options: dict[str, Any], read_weights: bool) -> None:
    torch.manual_seed(0)
    inputs = operands(options.get("batch_first", True), options.get("kdim", E), options.get("vdim", E))
    module = normalized(Attending(read_weights, **options), *inputs, step=split_attention)
    assert not any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
    by_hand = read_weights or "dropout" in options
    assert ("scaled_dot_product_attention" in targets(module)) is not by_hand


def blocked(*shape: int) -> Tensor:
    """A mask that blocks some keys and never all of them."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.6
    mask[..., 0] = False
    return mask


MASKS = {
    "attn_mask": {
        "bool": blocked(L, S),
        "float": torch.randn(L, S),
        "bool3": blocked(B * H, L, S),
        "float3": torch.randn(B * H, L, S),
    },
    "key_padding_mask": {"bool": blocked(B, S), "float": torch.randn(B, S)},
}


class Masked(nn.Module):
    """Attention under stored masks."""

    def __init__(self, read_weights: bool, average: bool, **masks: Tensor) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(E, H, batch_first=True)
        self.names = list(masks)
        self.average = average
        self.read_weights = read_weights
        for name, mask in masks.items():
            self.register_buffer(name, mask)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        masks = {name: getattr(self, name) for name in self.names}
        result, weights = self.layer(x, memory, memory, average_attn_weights=self.average, **masks)
        return (result, weights) if self.read_weights else result


@pytest.mark.parametrize(("read_weights", "average"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.parametrize("attn", [None, "bool", "float", "bool3", "float3"])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_values_stay_under_masks(attn: str | None, padding: str | None, read_weights: bool, average: bool) -> None:
    torch.manual_seed(0)
    masks = {}
    if attn is not None:
        masks["attn_mask"] = MASKS["attn_mask"][attn].clone()
    if padding is not None:
        masks["key_padding_mask"] = MASKS["key_padding_mask"][padding].clone()
    model = Masked(read_weights, average, **masks).double().eval()
    x, memory = torch.randn(B, L, E).double(), torch.randn(B, S, E).double()
    module = trace(model, (x, memory)).module
    assert split_attention(module) is True
    module.recompile()
    assert not any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
    with torch.no_grad():
        assert error(model(x, memory), module(x, memory)) <= LIMIT
        assert error(model(-x, memory + 1), module(-x, memory + 1)) <= LIMIT


def test_masks_may_be_inputs() -> None:
    model = Attending(forward={"masks": ["key_padding_mask"]})
    module = normalized(model, *operands(), blocked(B, S), step=split_attention)
    assert "logical_not" in targets(module)


def test_the_structure_is_plain_linear_layers_with_the_exact_parameters() -> None:
    model = Attending().double().eval()
    module = trace(model, tuple(x.double() for x in operands())).module
    normalize(module)
    parts = dict(module.get_submodule("layer").named_children())
    assert {name: type(part) for name, part in parts.items()} == dict.fromkeys(
        ["q_proj", "k_proj", "v_proj", "out_proj"], nn.Linear
    )
    stored = [parts[name].weight for name in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(torch.cat(stored), model.layer.in_proj_weight)
    assert parts["out_proj"].weight is model.layer.out_proj.weight
    assert all(isinstance(weight, nn.Parameter) and weight.requires_grad for weight in stored)
    (call,) = module.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)
    assert call.kwargs["scale"] == (E // H) ** -0.5


def test_frozen_parameters_stay_frozen() -> None:
    model = Attending()
    model.layer.requires_grad_(False)
    module = normalized(model, *operands(), step=split_attention)
    assert not any(parameter.requires_grad for parameter in module.parameters())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(E, H, batch_first=True)
        self.again = self.layer

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer(x, x, x)[0]
        return x + self.again(x, x, x, need_weights=False)[0]


def test_a_layer_that_is_called_twice_is_replaced_once() -> None:
    module = normalized(Twice(), torch.randn(B, L, E), step=split_attention)
    assert [target for target in targets(module) if "q_proj" in target] == ["layer.q_proj"] * 2


def test_heads_and_sizes_of_queries_and_values_are_dimensions_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, E), Twice(), nn.Linear(E, 4))
    analysis = analyse(model, (torch.randn(B, L, 6),))
    assert sorted(group.size for group in analysis.groups) == [H, E // H, E // H, E]
    assert parity_error(model, (torch.randn(B, L, 6),), seed=1) <= 1e-9


def test_dropout_follows_the_mode() -> None:
    module = trace(Attending(dropout=0.5), operands()).module
    normalize(module)
    inputs = operands()
    with torch.no_grad():
        assert torch.equal(module(*inputs), module(*inputs))
        module.train()
        assert not torch.equal(module(*inputs), module(*inputs))


def hooked() -> Attending:
    model = Attending()
    model.layer.register_forward_hook(lambda *_: None)
    return model


class Tied(Attending):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> Any:
        return super().forward(query, key, value) @ self.layer.in_proj_weight.t()


@pytest.mark.parametrize(
    "model",
    [
        Attending(add_bias_kv=True),
        Attending(add_zero_attn=True),
        Attending(forward={"is_causal": True, "attn_mask": torch.zeros(L, S)}),
        hooked(),
        Tied(),
    ],
    ids=["bias_kv", "zero_attn", "causal", "hook", "weights_read_elsewhere"],
)
def test_layers_that_do_more_are_left_alone(model: nn.Module) -> None:
    module = left_alone(model, *operands(), step=split_attention)
    assert any(isinstance(part, nn.MultiheadAttention) for part in module.modules())


def test_one_example_without_a_batch_axis_is_left_alone() -> None:
    left_alone(Attending(), torch.randn(L, E), torch.randn(S, E), torch.randn(S, E), step=split_attention)
