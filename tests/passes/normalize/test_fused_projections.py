"""Fused projections become one each: the pieces keep their values, and get dimensions of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdp_fx.passes.normalize.fused_projections import split_projections
from mdp_fx.pipeline import analyse
from tests.graph.small import net, parameter
from tests.passes.normalize.bench import left_alone, normalized, targets
from tests.pruning import parity_error

B, N, H, D, C = 2, 6, 4, 3, 12

Spelling = Callable[[Any, Tensor], Any]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B, H, N, D); parts that are mixed up change the result."""
    return F.scaled_dot_product_attention(q, k, v, scale=D**-0.5).transpose(1, 2).reshape(-1, N, C)


def unbound(m: Any, x: Tensor) -> Tensor:
    return attend(*m.qkv(x).reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0))


def unbound_by_function(m: Any, x: Tensor) -> Tensor:
    qkv = torch.reshape(m.qkv(x), (x.shape[0], N, 3, H, D))
    return attend(*torch.unbind(torch.permute(qkv, (2, 0, 3, 1, 4))))


def indexed(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).view(x.shape[0], N, 3, H, -1).permute(2, 0, 3, 1, 4).contiguous()
    return attend(qkv[0], qkv[1], qkv[-1])


def indexed_inside(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(x.shape[0], N, 3, H, D).transpose(1, 3)
    return attend(qkv[:, :, 0], qkv[..., 1, :, :], qkv[:, :, -1, :])


def selected(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).unflatten(-1, (3, H, D)).movedim(2, 0).swapaxes(2, 3)
    return attend(qkv.select(0, 0), torch.select(qkv, 0, 1), qkv.select(dim=0, index=2))


def chunked(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(x.shape[0], N, 3, H, D).permute(0, 2, 3, 1, 4).chunk(3, dim=1)
    return attend(q.squeeze(1), k[:, 0], v.flatten(1, 2))


def sliced(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(x.shape[0], N, 3, H, D).permute(0, 2, 3, 1, 4)
    return attend(qkv[:, 0:1].squeeze(1), qkv[:, -2:-1].flatten(1, 2), qkv[:, 2:][:, 0])


def split_by_one(m: Any, x: Tensor) -> Tensor:
    q, k, v = torch.split(m.qkv(x).reshape(x.shape[0], N, 3, H, D).permute(0, 2, 3, 1, 4), 1, 1)
    return attend(q.squeeze(1), k.squeeze(1), v.squeeze(1))


def heads_later(m: Any, x: Tensor) -> Tensor:
    parts = m.qkv(x).reshape(x.shape[0], N, 3, C).unbind(2)
    return attend(*(part.view(x.shape[0], N, H, D).transpose(1, 2) for part in parts))


def heads_outermost(m: Any, x: Tensor) -> Tensor:
    return attend(*m.qkv(x).reshape(x.shape[0], N, H, 3, D).permute(3, 0, 2, 1, 4).unbind())


def innermost(m: Any, x: Tensor) -> Tensor:
    return attend(*m.qkv(x).reshape(x.shape[0], N, H, D, 3).transpose(1, 2).unbind(-1))


def reshaped_in_two_steps(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(x.shape[0], N, 3 * H, D).reshape(x.shape[0], N, 3, H, D)
    return attend(*qkv.permute(2, 0, 3, 1, 4))


SPELLINGS: list[Spelling] = [
    unbound,
    unbound_by_function,
    indexed,
    indexed_inside,
    selected,
    chunked,
    sliced,
    split_by_one,
    heads_later,
    heads_outermost,
    innermost,
    reshaped_in_two_steps,
]


def x_tokens() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, N, C)


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS, ids=name_of)
def test_all_spellings_are_split_and_keep_their_values(spelling: Spelling, bias: bool) -> None:
    module = normalized(net(spelling, qkv=nn.Linear(C, 3 * C, bias)), x_tokens(), step=split_projections)
    parts = dict(module.get_submodule("qkv").named_children())
    assert list(parts) == ["q", "k", "v"]
    assert all(type(part) is nn.Linear and part.weight.shape == (C, C) for part in parts.values())
    assert all((part.bias is not None) is bias for part in parts.values())
    assert "unbind" not in targets(module)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=name_of)
def test_queries_and_values_have_sizes_of_their_own(spelling: Spelling) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.head(spelling(m, x))

    model = net(body, qkv=nn.Linear(C, 3 * C), head=nn.Linear(C, 2))
    assert sorted(group.size for group in analyse(model, (x_tokens(),)).groups) == [D, D, H]
    assert parity_error(model, (x_tokens(),), seed=3) <= 1e-9


def test_rows_of_outermost_heads_are_taken_with_their_stride() -> None:
    model = net(heads_outermost, qkv=nn.Linear(C, 3 * C)).double()
    module = normalized(model, x_tokens(), step=split_projections)
    rows = model.qkv.weight.reshape(H, 3, D, C)  # type: ignore[union-attr,operator]
    for i, name in enumerate("qkv"):
        assert torch.equal(module.get_submodule(f"qkv.{name}").weight, rows[:, i].reshape(C, C))  # type: ignore[arg-type]


def by_function(m: Any, x: Tensor) -> Tensor:
    qkv = F.linear(x, m.qkv.weight, m.qkv.bias)
    return attend(*qkv.reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4))


def by_function_with_joined_bias(m: Any, x: Tensor) -> Tensor:
    qkv = F.linear(input=x, weight=m.weight, bias=torch.cat((m.q_bias, m.zeros, m.v_bias)))
    return attend(*qkv.reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4))


def test_functions_of_stored_tensors_are_split() -> None:
    module = normalized(net(by_function, qkv=nn.Linear(C, 3 * C)), x_tokens(), step=split_projections)
    assert [name for name, _ in module.get_submodule("qkv").named_children()] == ["q", "k", "v"]


def test_a_joined_bias_is_taken_apart_with_the_weight() -> None:
    model = net(
        by_function_with_joined_bias, weight=parameter(3 * C, C), q_bias=parameter(C), v_bias=parameter(C)
    ).double()
    model.register_buffer("zeros", torch.zeros(C).double())
    module = normalized(model, x_tokens())
    bias = module.get_submodule("weight_parts.k").bias
    assert isinstance(bias, nn.Parameter)
    assert not bias.count_nonzero()
    assert dict(module.named_parameters()).keys() == {
        f"weight_parts.{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")
    }


def test_convolutions_are_split() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        qkv = m.qkv(x).reshape(x.shape[0], 3, H, D, 6).transpose(-2, -1)
        return attend(*qkv.unbind(1))

    layer = nn.Conv2d(5, 3 * C, (1, 3), padding=(0, 1), padding_mode="circular")
    module = normalized(net(body, qkv=layer), torch.randn(B, 5, 2, 3), step=split_projections)
    parts = list(module.get_submodule("qkv").children())
    assert [(type(part), part.out_channels, part.padding_mode) for part in parts] == [(nn.Conv2d, C, "circular")] * 3


def test_convolutions_are_split_behind_moved_axes() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        qkv = m.qkv(x).flatten(2).transpose(1, 2).reshape(x.shape[0], N, H, 3, D)
        return attend(*qkv.permute(3, 0, 2, 1, 4))

    normalized(net(body, qkv=nn.Conv2d(5, 3 * C, 1)), torch.randn(B, 5, 2, 3), step=split_projections)


def test_other_counts_than_three() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        k, v = m.kv(x).reshape(x.shape[0], N, 2, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        return attend(m.q(x).reshape(x.shape[0], N, H, D).transpose(1, 2), k, v)

    module = normalized(net(body, q=nn.Linear(C, C), kv=nn.Linear(C, 2 * C)), x_tokens(), step=split_projections)
    assert [name for name, _ in module.get_submodule("kv").named_children()] == ["part_0", "part_1"]


def test_parts_that_nobody_reads_are_not_computed() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.qkv(x).reshape(x.shape[0], N, 3, C)[:, :, 1]

    module = normalized(net(body, qkv=nn.Linear(C, 3 * C)), x_tokens(), step=split_projections)
    assert [name for name, _ in module.get_submodule("qkv").named_children()] == ["k"]


def test_the_same_part_may_be_read_twice() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        parts = m.qkv(x).reshape(x.shape[0], N, 3, C)
        return parts[:, :, 0] * parts[:, :, 0].relu() + parts[:, :, 2]

    module = normalized(net(body, qkv=nn.Linear(C, 3 * C)), x_tokens(), step=split_projections)
    assert [target for target in targets(module) if target.startswith("qkv")] == ["qkv.q", "qkv.v"]


def test_writes_to_a_part_stay_its_own() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4)
        q.mul_(2)
        k += 1
        return attend(q, k, v)

    module = normalized(net(body, qkv=nn.Linear(C, 3 * C)), x_tokens())
    assert "mul_" not in targets(module)
    assert "q" in dict(module.get_submodule("qkv").named_children())


def read_whole_too(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x)
    return attend(*qkv.reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4)) + qkv.sum()


def read_whole_later(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4)
    return attend(*qkv) + qkv.sum()


def several_entries(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(x.shape[0], N, 3, C)
    return qkv[:, :, 0] + qkv[:, :, 1:].sum(2)


def called_twice(m: Any, x: Tensor) -> Tensor:
    return unbound(m, x) + unbound(m, -x)


def weight_read_elsewhere(m: Any, x: Tensor) -> Tensor:
    return unbound(m, x) @ m.qkv.weight.t()


def places_taken_apart(m: Any, x: Tensor) -> Tensor:
    return sum(m.qkv(x).reshape(x.shape[0], 2, 3, 3 * C).unbind(2))


def examples_taken_apart(m: Any, x: Tensor) -> Tensor:
    return sum(m.qkv(x).unbind(0))


def single_channels(m: Any, x: Tensor) -> Tensor:
    return sum(m.qkv(x).unbind(-1))


def activated(m: Any, x: Tensor) -> Tensor:
    return attend(*m.qkv(x).relu().reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4))


def merged_across_the_axis(m: Any, x: Tensor) -> Tensor:
    return sum(m.qkv(x).reshape(x.shape[0], N, H, 3, D).permute(3, 0, 1, 4, 2).reshape(3, -1, N, C))


def single_entry(m: Any, x: Tensor) -> Tensor:
    return m.qkv(x).reshape(x.shape[0], N, 1, 3 * C)[:, :, 0]


def bias_joined_with_itself(m: Any, x: Tensor) -> Tensor:
    qkv = F.linear(x, m.qkv.weight, torch.cat([m.small, m.small, m.small]))
    return attend(*qkv.reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4))


def computed_bias(m: Any, x: Tensor) -> Tensor:
    qkv = F.linear(x, m.qkv.weight, m.qkv.bias * 2)
    return attend(*qkv.reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4))


def weight_is_a_buffer(m: Any, x: Tensor) -> Tensor:
    return attend(*F.linear(x, m.buffer, m.qkv.bias).reshape(x.shape[0], N, 3, H, D).permute(2, 0, 3, 1, 4))


def indexed_by_a_list(m: Any, x: Tensor) -> Tensor:
    return m.qkv(x).reshape(x.shape[0], N, 3, C)[:, :, [0, 2]].sum(2)


@pytest.mark.parametrize(
    "spelling",
    [
        read_whole_too,
        read_whole_later,
        several_entries,
        called_twice,
        weight_read_elsewhere,
        places_taken_apart,
        examples_taken_apart,
        single_channels,
        activated,
        merged_across_the_axis,
        single_entry,
        bias_joined_with_itself,
        computed_bias,
        weight_is_a_buffer,
        indexed_by_a_list,
    ],
    ids=name_of,
)
def test_what_is_not_only_taken_apart_is_left_alone(spelling: Spelling) -> None:
    model = net(spelling, qkv=nn.Linear(C, 3 * C), small=parameter(C))
    model.register_buffer("buffer", torch.randn(3 * C, C))
    left_alone(model, x_tokens(), step=split_projections)


def test_hooks_groups_and_other_classes_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    hooked = nn.Linear(C, 3 * C)
    hooked.register_forward_hook(lambda *_: None)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(C, 3 * C))
    for layer in (hooked, Scaled(C, 3 * C), normed):
        left_alone(net(unbound, qkv=layer), x_tokens(), step=split_projections)

    def grouped(m: Any, x: Tensor) -> Tensor:
        return sum(m.qkv(x).reshape(x.shape[0], 3, C, -1).unbind(1))

    left_alone(net(grouped, qkv=nn.Conv1d(6, 3 * C, 1, groups=3)), x_tokens(), step=split_projections)
