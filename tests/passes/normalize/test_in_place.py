"""In-place operations: every spelling keeps the numerics, and what cannot be spelled out stays and is marked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mdp_fx.graph.purity import WRITES, remove_dead_nodes
from mdp_fx.passes.normalize import normalize
from mdp_fx.passes.normalize.in_place import write_out_of_place
from tests.passes.normalize.bench import Bench, Body, impure, name_of, outputs, same, traced_as_written


def two_additions(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y += net.other(x)
    y -= 0.25
    return y


def two_products(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y *= net.other(x)
    y /= 3
    return y


def power(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y **= 2
    y %= 0.5
    y //= 0.1
    return y


def chained_methods(net: Bench, x: Tensor) -> Any:
    return net.conv(x).add_(1).mul_(net.other(x)).clamp_(min=-0.5, max=0.5)


def operand_read_later(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    z = y.relu_()
    return y * 2 + z


def read_before_and_after(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    before = y + 1
    y.mul_(3)
    return before * y


def method_with_keywords(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y.add_(net.other(x), alpha=2)
    return y


def module_read_later(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    return net.relu(y) + y


def module_called_twice(net: Bench, x: Tensor) -> Any:
    return net.relu(net.relu(net.conv(x)) - 0.1)


def dropout_in_place(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    net.drop(y).mul_(2)
    return y


def function_by_keyword(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    F.relu(y, inplace=True)
    F.leaky_relu(y, 0.2, inplace=True)
    return y


def function_by_position(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    F.hardtanh(y, -0.2, 0.2, True)
    return y


def function_with_underscore(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    F.relu_(y)
    torch.sigmoid_(y)
    return y


def views_in_place(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y.unsqueeze_(1)
    y.squeeze_(1)
    y.transpose_(1, 2)
    return y


def view_made_later(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y.mul_(2)
    return y.view(2, -1) + 1


def view_written_alone(net: Bench, x: Tensor) -> Any:
    y = net.conv(x).transpose(1, 2)
    y.mul_(2)
    return y


def input_written(net: Bench, x: Tensor) -> Any:
    x.mul_(2)
    return net.conv(x)


SPELLED_OUT: list[Body] = [
    chained_methods,
    operand_read_later,
    read_before_and_after,
    method_with_keywords,
    module_read_later,
    module_called_twice,
    dropout_in_place,
    function_by_keyword,
    function_by_position,
    function_with_underscore,
    views_in_place,
    view_made_later,
    view_written_alone,
    input_written,
]

# torch.fx has no proxies for augmented assignment: Python falls back on the plain operator while tracing.
AUGMENTED: list[Body] = [two_additions, two_products, power]


def part_written(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y[:, :2].mul_(3)
    return y


def item_set(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y[:, 0] = 1.0
    return y


def alias_read_later(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    flat = y.view(2, -1)
    y.mul_(2)
    return flat


def alias_of_alias_written(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y.view(2, -1).view(-1).add_(1)
    return y


def module_over_alias(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    flat = y.view(2, -1)
    net.relu(y)
    return flat


def function_over_alias(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    flat = y.view(2, -1)
    F.relu(y, inplace=True)
    return flat


def no_other_spelling(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    z = y + 1
    y.fill_(0.5)
    z.copy_(y)
    z += 1
    return z * y


def buffer_written(net: Bench, x: Tensor) -> Any:
    net.scale.clamp_(max=0.25)
    return net.conv(x) * net.scale


def view_of_a_buffer_written(net: Bench, x: Tensor) -> Any:
    net.scale.view(-1).clamp_(max=0.25)
    return net.conv(x) * net.scale


KEPT_IN_PLACE: dict[Body, list[str]] = {
    part_written: ["mul_"],
    item_set: ["setitem"],
    alias_read_later: ["mul_"],
    alias_of_alias_written: ["add_"],
    module_over_alias: ["relu"],
    function_over_alias: ["relu"],
    no_other_spelling: ["fill_", "copy_"],
    buffer_written: ["clamp_"],
    view_of_a_buffer_written: ["clamp_"],
}


@pytest.mark.parametrize("body", [*SPELLED_OUT, *AUGMENTED], ids=name_of)
def test_in_place_spellings_become_pure_and_keep_the_numerics(body: Body) -> None:
    module, x, expected = traced_as_written(body)
    assert normalize(module) is True
    assert impure(module) == []
    assert same(outputs(module, x), expected)
    assert not any(getattr(part, "inplace", False) for part in module.modules())


@pytest.mark.parametrize("body", KEPT_IN_PLACE, ids=name_of)
def test_what_others_read_stays_in_place_and_is_marked(body: Body) -> None:
    module, x, expected = traced_as_written(body)
    normalize(module)
    assert impure(module) == KEPT_IN_PLACE[body]
    # A node that writes is not dead, although nobody reads what it returns.
    remove_dead_nodes(module.graph)
    module.recompile()
    assert same(outputs(module, x), expected)


@pytest.mark.parametrize("body", [*SPELLED_OUT, *AUGMENTED, *KEPT_IN_PLACE], ids=name_of)
def test_a_second_run_changes_nothing(body: Body) -> None:
    module, _, _ = traced_as_written(body)
    normalize(module)
    code = module.code
    assert normalize(module) is False
    assert module.code == code


def test_a_module_called_in_both_ways_becomes_two() -> None:
    def both_ways(net: Bench, x: Tensor) -> Any:
        y = net.conv(x)
        flat = y.view(2, -1)
        net.relu(y)
        return flat, net.relu(net.other(x))

    module, x, expected = traced_as_written(both_ways)
    assert normalize(module) is True
    calls = [node for node in module.graph.nodes if str(node.target).startswith("relu")]
    assert [str(node.target) for node in calls] == ["relu_in_place_relu", "relu"]
    assert [bool(node.meta.get(WRITES)) for node in calls] == [True, False]
    assert [module.get_submodule(str(node.target)).inplace for node in calls] == [True, False]
    assert same(outputs(module, x), expected)
    assert normalize(module) is False


def test_a_later_reader_reads_the_result() -> None:
    module, _, _ = traced_as_written(operand_read_later)
    assert write_out_of_place(module) is True
    nodes = {node.name: node for node in module.graph.nodes}
    assert nodes["relu_"].target == "relu"
    assert list(nodes["conv"].users) == [nodes["relu_"]]
    assert set(nodes["relu_"].users) == {nodes["mul"], nodes["add"]}
    assert write_out_of_place(module) is False


def written_after_the_alias_moved(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y.relu_()
    flat = y.view(2, -1)
    y.sub_(1)
    return flat


def written_to_a_third_tensor(net: Bench, x: Tensor) -> Any:
    a, b = net.conv(x), net.other(x)
    c = torch.empty_like(a)
    torch.add(a, b, out=c)
    return a * c


def wider_operand(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    y.add_(net.scale.double())
    return y


def operator_on_a_view(net: Bench, x: Tensor) -> Any:
    y = net.conv(x)
    first = y[:, :2]
    first += 1
    return y


def buffer_counted_up(net: Bench, x: Tensor) -> Any:
    net.scale.add_(1)
    return net.conv(x) * net.scale


@pytest.mark.parametrize(
    "body",
    [
        written_after_the_alias_moved,
        written_to_a_third_tensor,
        wider_operand,
        operator_on_a_view,
        buffer_counted_up,
    ],
    ids=name_of,
)
def test_rare_writes_keep_the_numerics(body: Body) -> None:
    module, x, expected = traced_as_written(body)
    normalize(module)
    assert same(outputs(module, x), expected)
    assert normalize(module) is False
