"""Proxies: dicts of tensors, reading, and tensors that the forward makes and writes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import ModelError
from mdp_fx.graph.exported import export
from mdp_fx.graph.trace import Traced, trace
from mdp_fx.pipeline import analyse, rewrite
from tests.graph.small import images, net, vectors

Body = Callable[[Any, Any], Any]


def same_output(model: nn.Module, result: Traced, *inputs: Any) -> bool:
    with torch.no_grad():
        return torch.equal(model(*inputs), result.module(*inputs))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda net, d: sum(net.a(value) for value in d.values()), id="values"),
        pytest.param(lambda net, d: sum(net.a(value) for _, value in d.items()), id="items"),
        pytest.param(lambda net, d: sum(net.a(d[key]) for key in d.keys()), id="keys"),  # noqa: SIM118
        pytest.param(lambda net, d: sum(net.a(d[key]) for key in d), id="iteration"),
        pytest.param(lambda net, d: net.a(dict(d)["u"]) + net.a(d.get("v")), id="copy and get"),
    ],
)
def test_a_dict_of_inputs_gives_proxies(body: Body) -> None:
    model = net(body, a=nn.Linear(3, 8))
    result = trace(model, ({"u": vectors(), "v": vectors() + 1},))
    assert same_output(model, result, {"u": vectors() * 2, "v": vectors() - 1})
    assert len(result.module.graph.find_nodes(op="call_module")) == 2


def assigned(net: Any, x: Tensor) -> Any:
    out = torch.zeros(x.size(0), 8, 4, 4)
    out[:, :] = net.a(x)
    return net.c(out)


def assigned_in_parts(net: Any, x: Tensor) -> Any:
    h = net.a(x)
    out = torch.empty(x.size(0), 8, 4, 4)
    out[:, :4] = h[:, 4:]
    out[:, 4:] = h[:, :4].relu()
    return net.c(out)


def indexed(net: Any, x: Tensor) -> Any:
    out = torch.zeros(x.size(0), 8, 4, 4)
    out.index_copy_(1, torch.arange(8).flip(0), net.a(x))
    return net.c(out)


def added(net: Any, x: Tensor) -> Any:
    out = torch.zeros(8, 4, 4)
    out += net.a(x).mean(0)
    return net.c(net.a(x) + out)


def added_by_method(net: Any, x: Tensor) -> Any:
    out = torch.zeros(8, 4, 4)
    out.add_(net.a(x).mean(0))
    return net.c(net.a(x) + out)


def through_a_view(net: Any, x: Tensor) -> Any:
    out = torch.ones(2 * 8 * 16)
    out.view_as(net.a(x)).copy_(net.a(x))
    return net.c(out.view(2, 8, 4, 4))


def through_a_view_of_its_own(net: Any, x: Tensor) -> Any:
    out = torch.ones(2, 8, 4, 4)
    row = out[0]
    row[:] = net.a(x)[0]
    return net.c(out)


def given_memory(net: Any, x: Tensor) -> Any:
    out = torch.ones(2, 8, 4, 4)
    torch.add(net.a(x), 1, out=out)
    return net.c(out)


def written_after_it_was_read(net: Any, x: Tensor) -> Any:
    scale = torch.ones(8, 1, 1)
    h = net.a(x) * scale
    scale += 1
    return net.c(h * scale)


WRITES = (
    assigned,
    assigned_in_parts,
    indexed,
    added,
    added_by_method,
    through_a_view,
    through_a_view_of_its_own,
    given_memory,
    written_after_it_was_read,
)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("body", WRITES, ids=lambda body: body.__name__)
def test_a_tensor_that_the_forward_makes_and_writes_to_is_made_in_every_call(body: Body) -> None:
    model = net(body, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 4, 1))
    result = trace(model, (images(),))
    assert result.constants == ()
    for shift in range(3):
        assert same_output(model, result, images() + shift)
    analysis = analyse(model, images(), front_end="symbolic")
    slim = rewrite(analysis, {}, ())
    with torch.no_grad():
        for shift in range(3):
            assert torch.allclose(slim(images() + shift), model(images() + shift), atol=1e-5)
    assert analysis.graph.baked_in in ((), ("the batch size: another one may fail",))


def test_entries_of_what_was_written_from_the_input_are_not_read() -> None:
    def body(net: Any, x: Tensor) -> Any:
        total = torch.zeros(())
        total.copy_(x.sum())
        return net.a(x) * float(total)

    with pytest.raises(
        ModelError, match=r"decides on the entries of a tensor, not on shapes \(test_proxy.py, line \d+"
    ):
        trace(net(body, a=nn.Linear(3, 8)), (vectors(),))


def keeps_a_sum(net: Any, x: Tensor) -> Any:
    net.total.mul_(0.9).add_(net.a(x).mean(0))
    return net.a(x) * net.total


@pytest.mark.parametrize(("front_end", "file"), [(trace, "test_proxy.py"), (export, "small.py")])
def test_a_tensor_that_is_no_buffer_is_not_written_to(front_end: Callable[..., Traced], file: str) -> None:
    model = net(keeps_a_sum, a=nn.Linear(3, 8))
    vars(model)["total"] = torch.zeros(8)
    with pytest.raises(ModelError, match=rf"writes to a tensor that is no buffer of the network \({file}, line"):
        front_end(model, (vectors(),))


def test_a_buffer_may_be_written_to() -> None:
    model = net(keeps_a_sum, a=nn.Linear(3, 8))
    model.register_buffer("total", torch.zeros(8))
    result = trace(model, (vectors(),))
    assert result.constants == result.state == ()
    for shift in range(3):
        assert same_output(model, result, vectors() + shift)
