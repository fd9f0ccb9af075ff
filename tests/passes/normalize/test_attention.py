"""Attention layers become separate projections around the attention of every head, with the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

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
    {"add_bias_kv": True},
    {"add_bias_kv": True, "batch_first": False, "dropout": 0.25},
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

    def __init__(self, read_weights: bool, average: bool, add_bias_kv: bool = False, **masks: Tensor) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(E, H, batch_first=True, add_bias_kv=add_bias_kv)
        self.names = list(masks)
        self.average = average
        self.read_weights = read_weights
        for name, mask in masks.items():
            self.register_buffer(name, mask)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        masks = {name: getattr(self, name) for name in self.names}
        options = {"need_weights": self.read_weights, "average_attn_weights": self.average}
        result, weights = self.layer(x, memory, memory, **options, **masks)
        return (result, weights) if self.read_weights else result


@pytest.mark.parametrize(("read_weights", "average"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.parametrize("attn", [None, "bool", "float", "bool3", "float3"])
@pytest.mark.parametrize("add_bias_kv", [False, True])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_values_stay_under_masks(
    attn: str | None, padding: str | None, read_weights: bool, average: bool, add_bias_kv: bool
) -> None:
    torch.manual_seed(0)
    masks = {}
    if attn is not None:
        masks["attn_mask"] = MASKS["attn_mask"][attn].clone()
    if padding is not None:
        masks["key_padding_mask"] = MASKS["key_padding_mask"][padding].clone()
    same_after_split(Masked(read_weights, average, add_bias_kv, **masks), torch.randn(B, L, E), torch.randn(B, S, E))


def same_after_split(model: nn.Module, x: Tensor, memory: Tensor) -> None:
    """No attention layer is left, and the values stay."""
    model, x, memory = model.double().eval(), x.double(), memory.double()
    module = trace(model, (x, memory)).module
    assert split_attention(module) is True
    module.recompile()
    assert not any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
    with torch.no_grad():
        assert error(model(x, memory), module(x, memory)) <= LIMIT
        assert error(model(-x, memory + 1), module(-x, memory + 1)) <= LIMIT


@pytest.mark.parametrize("read_weights", [False, True])
@pytest.mark.parametrize("kind", [None, "bool", "float"])
@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"add_bias_kv": True, "dropout": 0.1}], ids=str)
def test_one_example_without_a_batch_axis(options: dict[str, Any], kind: str | None, read_weights: bool) -> None:
    torch.manual_seed(0)
    masks: dict[str, Tensor] = {}
    if kind == "bool":
        masks = {"attn_mask": blocked(H, L, S), "key_padding_mask": blocked(S)}
    elif kind == "float":
        masks = {"attn_mask": torch.randn(L, S), "key_padding_mask": torch.randn(S)}

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(E, H, **options)
            for name, mask in masks.items():
                self.register_buffer(name, mask)

        def forward(self, x: Tensor, memory: Tensor) -> Any:
            given = {name: getattr(self, name) for name in masks}
            result, weights = self.layer(x, memory, memory, need_weights=read_weights, **given)
            return (result, weights) if read_weights else result

    same_after_split(Alone(), torch.randn(L, E), torch.randn(S, E))


def test_a_causal_mask_may_be_said_to_be_one() -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(S)

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(E, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.mask = nn.Buffer(mask)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.encoder(x, mask=self.mask, is_causal=True)
            return result

    model = nn.Sequential(nn.Linear(6, E), Causal(), nn.Linear(E, 4)).double().eval()
    x = torch.randn(B, S, 6).double()
    analysis = analyse(model, (x,))
    assert sorted(group.size for group in analysis.groups) == sorted([*[2, E // 2, E // 2, 16] * 2, E])
    assert parity_error(model, (x,), seed=1) <= 1e-9


class Function(nn.Module):
    """The function behind the layer, with weights of its own."""

    def __init__(self, separate: bool, read_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(E, E) for _ in range(4))
        self.weight, self.bias = nn.Parameter(torch.randn(3 * E, E)), nn.Parameter(torch.randn(3 * E))
        self.separate = separate
        self.read_weights = read_weights
        self.options = options

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        layers = (self.q, self.k, self.v)
        result, weights = F.multi_head_attention_forward(
            x,
            memory,
            memory,
            E,
            H,
            in_proj_weight=None if self.separate else self.weight,
            in_proj_bias=torch.cat([layer.bias for layer in layers]) if self.separate else self.bias,
            **{"bias_k": None, "bias_v": None, "add_zero_attn": False, "dropout_p": 0.0, **self.options},
            out_proj_weight=self.out.weight,
            out_proj_bias=self.out.bias,
            training=False,
            use_separate_proj_weight=self.separate,
            q_proj_weight=self.q.weight if self.separate else None,
            k_proj_weight=self.k.weight if self.separate else None,
            v_proj_weight=self.v.weight if self.separate else None,
        )
        return (result, weights) if self.read_weights else result


@pytest.mark.parametrize("read_weights", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_the_function_is_taken_apart_as_the_layer_is(separate: bool, read_weights: bool) -> None:
    torch.manual_seed(0)
    module = normalized(
        Function(separate, read_weights), torch.randn(L, B, E), torch.randn(S, B, E), step=split_attention
    )
    assert "multi_head_attention_forward" not in targets(module)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("front_end", ["symbolic", "export"])
def test_heads_of_the_function_are_dimensions(separate: bool, front_end: Any) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.inner = nn.Linear(6, E), nn.Linear(E, 4), Function(separate)

        def forward(self, x: Tensor) -> Any:
            y = self.first(x).transpose(0, 1)
            return self.last(self.inner(y, y).transpose(0, 1))

    torch.manual_seed(0)
    analysis = analyse(Tokens(), (torch.randn(B, L, 6),), front_end=front_end)
    if front_end == "symbolic":
        assert sorted(group.size for group in analysis.groups) == [H, E // H, E // H, E, E]
    assert parity_error(Tokens(), (torch.randn(B, L, 6),), seed=1, front_end=front_end) <= 1e-9


@pytest.mark.parametrize(
    "options",
    [{"add_zero_attn": True}, {"static_k": torch.randn(B * H, S, E // H)}],
    ids=lambda options: next(iter(options)),
)
def test_calls_of_the_function_that_do_more_are_left_alone(options: dict[str, Any]) -> None:
    left_alone(Function(False, **options), torch.randn(L, B, E), torch.randn(S, B, E), step=split_attention)


def test_masks_may_be_inputs() -> None:
    model = Attending(forward={"masks": ["key_padding_mask"], "need_weights": False})
    module = normalized(model, *operands(), blocked(B, S), step=split_attention)
    assert "logical_not" in targets(module)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("read_weights", [False, True])
def test_a_layer_that_makes_weights_gives_no_number_where_all_keys_are_blocked(read_weights: bool, kind: str) -> None:
    # Fused attention gives zero there.
    torch.manual_seed(0)
    mask = blocked(B, S)
    mask[1] = True
    model = Attending(read_weights, forward={"masks": ["key_padding_mask"]}).eval()
    inputs = (*operands(), mask if kind == "bool" else torch.zeros(B, S).masked_fill(mask, -torch.inf))
    module = trace(model, inputs).module
    assert split_attention(module) is True
    module.recompile()
    with torch.no_grad():
        expected = model(*inputs)
        torch.testing.assert_close(module(*inputs), expected, equal_nan=True)
    result = expected[0] if read_weights else expected
    assert result[1].isnan().all()
    assert not result[0].isnan().any()


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


class Chained(nn.Module):
    """A layer called on its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(E, H, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.layer(x, x, x)
        result: Tensor = self.layer(y, y, y, attn_mask=weights.repeat(H, 1, 1))[0]
        return result


def test_a_layer_may_read_its_own_result() -> None:
    module = normalized(Chained(), torch.randn(B, L, E), step=split_attention)
    assert [target for target in targets(module) if "q_proj" in target] == ["layer.q_proj"] * 2


class Sharing(nn.Module):
    """Two layers with the same projections, and results of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.MultiheadAttention(E, H, batch_first=True) for _ in range(2))
        self.other.in_proj_weight = self.one.in_proj_weight
        self.other.out_proj.weight = self.one.out_proj.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x, x, x, need_weights=False)[0]
        result: Tensor = self.other(y, y, y, need_weights=False)[0]
        return result


def test_layers_may_share_weights() -> None:
    module = normalized(Sharing(), torch.randn(B, L, E), step=split_attention)
    one, other = module.get_submodule("one"), module.get_submodule("other")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        mine, theirs = (layer.get_submodule(name) for layer in (one, other))
        assert mine.weight is theirs.weight
        assert mine.bias is not theirs.bias
    model = nn.Sequential(nn.Linear(6, E), Sharing(), nn.Linear(E, 4))
    assert parity_error(model, (torch.randn(B, L, 6),), seed=1) <= 1e-9


def test_a_layer_that_shares_weights_with_one_that_stays_stays() -> None:
    model = Sharing()
    model.other.add_zero_attn = True
    left_alone(model, torch.randn(B, L, E), step=split_attention)


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


def parametrised() -> Attending:
    model = Attending()
    spectral_norm(model.layer.out_proj)
    return model


class Tied(Attending):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> Any:
        return super().forward(query, key, value) @ self.layer.in_proj_weight.t()


@pytest.mark.parametrize(
    "model",
    [
        Attending(add_zero_attn=True),
        hooked(),
        parametrised(),
        Tied(),
    ],
    ids=["zero_attn", "hook", "parametrisation", "weights_read_elsewhere"],
)
def test_layers_that_do_more_are_left_alone(model: nn.Module) -> None:
    module = left_alone(model, *operands(), step=split_attention)
    assert any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
