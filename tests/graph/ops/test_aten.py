"""ATen overloads in torch's own spelling."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mdp_fx.graph.ops.aten import Spelling, is_check, respell
from mdp_fx.pipeline import analyse
from tests.graph.small import net, sizes, vectors

aten = torch.ops.aten
X = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
W = torch.randn(6, 6, 3, 3, generator=torch.Generator().manual_seed(1))
GRID = X[:, :2].permute(0, 2, 3, 1).tanh()
ONES, ZEROS = torch.ones(6), torch.zeros(6)


def run(call: Spelling) -> Any:
    kind, target, args, kwargs = call
    return getattr(args[0], target)(*args[1:], **kwargs) if kind == "call_method" else target(*args, **kwargs)


def spelled(overload: Any, *args: Any, **kwargs: Any) -> Spelling | None:
    return respell(overload, args, kwargs, run)


@pytest.mark.parametrize(
    ("overload", "args", "kwargs", "target"),
    [
        (aten.add.Tensor, (X, X), {"alpha": 2}, torch.add),
        (aten.mul.Tensor, (X, 0.5), {}, torch.mul),
        (aten.conv2d.default, (X, W, None, [1, 1], [1, 1]), {}, F.conv2d),
        (aten.linear.default, (X, ONES[:4].expand(3, 4)), {}, F.linear),
        (aten.batch_norm.default, (X, ONES, ONES, ZEROS, ONES, False, 0.1, 1e-5, False), {}, F.batch_norm),
        (aten.layer_norm.default, (X, [4, 4]), {}, F.layer_norm),
        (aten.group_norm.default, (X, 2, ONES, ONES), {}, F.group_norm),
        (aten.scaled_dot_product_attention.default, (X, X, X), {}, F.scaled_dot_product_attention),
        (aten.max_pool2d.default, (X, [2, 2]), {}, F.max_pool2d),
        (aten.adaptive_avg_pool2d.default, (X, [1, 1]), {}, F.adaptive_avg_pool2d),
        (aten.softmax.int, (X, 1), {}, F.softmax),
        (aten.mean.dim, (X, [2, 3], True), {}, torch.mean),
        (aten.split_with_sizes.default, (X, [2, 4], 1), {}, torch.split),
        (aten.split.Tensor, (X, 3, 1), {}, torch.split),
        (aten.view.default, (X, [2, 96]), {}, "view"),
        (aten._unsafe_view.default, (X, [2, 96]), {}, torch.reshape),
        (aten.expand.default, (X[:1], [3, -1, -1, -1]), {}, "expand"),
        (aten.contiguous.default, (X,), {}, "contiguous"),
        (aten.to.dtype, (X, torch.float64), {}, "to"),
        (aten.to.dtype_layout, (X,), {"dtype": torch.float64, "layout": torch.strided}, "to"),
        (aten.silu.default, (X,), {}, F.silu),
        (aten.hardtanh.default, (X, 0.0, 6.0), {}, F.hardtanh),
        (aten.im2col.default, (X, [2, 2], [1, 1], [0, 0], [1, 1]), {}, F.unfold),
        (aten.embedding.default, (ONES[:, None], torch.tensor([1, 2])), {}, F.embedding),
        (aten.slice.Tensor, (X, 1, 2, 2**63 - 1), {}, operator.getitem),
        (aten.slice.Tensor, (X, -2, 0, 3, 2), {}, operator.getitem),
        (aten.index.Tensor, (X, [None, torch.tensor([2, 0])]), {}, operator.getitem),
        (aten.upsample_nearest2d.vec, (X, None, [2.0, 2.0]), {}, F.interpolate),
        (aten.upsample_bilinear2d.vec, (X, [8, 8], False, None), {}, F.interpolate),
        (aten.upsample_bicubic2d.vec, (X, [8, 8], True, None), {}, F.interpolate),
        (aten._upsample_bilinear2d_aa.vec, (X, [2, 2], False, None), {}, F.interpolate),
        (aten._upsample_nearest_exact2d.vec, (X, [3, 3], None), {}, F.interpolate),
        (aten.numpy_T.default, (W[:, :, 0, 0],), {}, getattr),
        (aten.mT.default, (X,), {}, getattr),
        (
            aten.grid_sampler.default,
            (X, GRID, 1, 2, True),
            {},
            F.grid_sample,
        ),
        (
            aten.grid_sampler.default,
            (X, GRID, 2, 1, False),
            {},
            F.grid_sample,
        ),
        (aten.tensordot.default, (X, W, [1], [1]), {}, torch.tensordot),
        (aten.clamp_min.default, (X, 0.1), {}, torch.clamp_min),
        (aten.linalg_vector_norm.default, (X, 2, [1]), {}, torch.linalg.vector_norm),
    ],
)
def test_an_overload_is_a_call_of_torch_with_the_same_value(
    overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any
) -> None:
    call = spelled(overload, *args, **kwargs)
    assert call is not None
    assert call[1] is target or call[1] == target
    expected, found = overload(*args, **kwargs), run(call)
    pairs = [(expected, found)] if isinstance(expected, Tensor) else zip(expected, found, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("overload", "args", "target"),
    [
        (aten.relu_.default, (X.clone(),), "relu_"),
        (aten.add_.Tensor, (X.clone(), 1), "add_"),
        (aten.silu_.default, (X.clone(),), F.silu),
        (aten.hardtanh_.default, (X.clone(), 0.0, 6.0), F.hardtanh),
        (aten.dropout.default, (X, 0.5, True), F.dropout),
    ],
)
def test_what_writes_or_draws_is_not_run(overload: Any, args: tuple[Any, ...], target: Any) -> None:
    def never(call: Spelling) -> Any:
        raise AssertionError(call)

    call = respell(overload, args, {}, never)
    assert call is not None
    assert call[1] == target


def test_a_spelling_that_computes_something_else_is_not_taken() -> None:
    expected = aten.relu.default(X)

    def other(call: Spelling) -> Any:
        return expected if call[1] is aten.relu.default else expected + 1

    assert respell(aten.relu.default, (X,), {}, other) is None


def test_assertions_are_told_from_operations() -> None:
    assert is_check(aten._assert_async.msg)
    assert not is_check(aten.relu.default)
    assert not is_check(aten.add_.Tensor)


def test_a_forward_that_calls_overloads_is_typed_as_if_it_called_torch() -> None:
    def body(net: Any, x: Tensor) -> Any:
        y = aten.relu.default(net.a(x))
        return net.fc(aten.add.Tensor(aten.slice.Tensor(y, 1, 0, 4), net.b(x)))

    model = net(body, a=torch.nn.Linear(3, 8), b=torch.nn.Linear(3, 4), fc=torch.nn.Linear(4, 5))
    assert sizes(analyse(model, vectors(), front_end="symbolic")) == [4, 4]
