from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.errors import ModelError
from mdp_fx.graph_data import describe, rebuild
from tests.slim_networks import Functional, Tied, TwoInputs, small_net


def through_json(module: fx.GraphModule) -> fx.GraphModule:
    data, tensors = describe(module)
    return rebuild(json.loads(json.dumps(data)), tensors)


def test_outputs_names_and_modes_survive() -> None:
    net = small_net()
    net.get_submodule("1").train()
    back = through_json(net)
    x = torch.randn(2, 3, 8, 8)
    assert [(n, type(m).__name__, m.training) for n, m in back.named_modules()] == [
        (n, type(m).__name__, m.training) for n, m in net.named_modules()
    ]
    assert [str(node) for node in back.graph.nodes] == [str(node) for node in net.graph.nodes]
    assert torch.equal(back.eval()(x), net.eval()(x))


def test_two_inputs_and_outputs_survive() -> None:
    net = fx.symbolic_trace(TwoInputs())
    inputs = (torch.randn(2, 3, 8, 8), torch.randn(2, 5))
    for a, b in zip(through_json(net)(*inputs), net(*inputs), strict=True):
        assert torch.equal(a, b)


def test_functions_and_arguments_of_every_kind_survive() -> None:
    net = fx.symbolic_trace(Functional())
    x = torch.randn(2, 3, 8, 8)
    back = through_json(net)
    assert torch.equal(back(x), net(x))
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in net.named_parameters()]


def test_sharing_gradients_and_persistence_survive() -> None:
    net = fx.symbolic_trace(Tied())
    net.alias = net.norm  # torch.fx calls a shared module by its first name
    next(node for node in reversed(net.graph.nodes) if node.op == "call_module").target = "alias"
    net.recompile()
    back = through_json(net)
    x = torch.randn(4, 6)
    assert back.first.weight is back.second.weight
    assert back.norm is back.alias
    assert not back.first.bias.requires_grad
    assert back.first.weight.requires_grad
    assert list(back.state_dict()) == list(net.state_dict())
    assert torch.equal(back.eval()(x), net.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_survive(dtype: torch.dtype) -> None:
    back = through_json(small_net().to(dtype))
    assert {p.dtype for p in back.parameters()} == {dtype}


class MarkedConv(nn.Conv2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mark = object()
        self.note = "kept"

    def extra_repr(self) -> str:
        return "marked"


class PaddedConv(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(input, (1, 1, 1, 1)), weight, bias)


class Twice(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Mixin:
    def forward(self, x: Tensor) -> Tensor:
        return x


class Mixed(Mixin, nn.ReLU):
    pass


def graph_of(leaf: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    return fx.GraphModule({"leaf": leaf}, graph)


def test_a_subclass_that_computes_the_same_is_stored_as_its_parent() -> None:
    net = graph_of(MarkedConv(3, 4, 3))
    back = through_json(net)
    x = torch.randn(1, 3, 8, 8)
    assert type(back.leaf) is nn.Conv2d
    assert back.leaf.note == "kept"
    assert not hasattr(back.leaf, "mark")
    assert torch.equal(back(x), net(x))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (PaddedConv(3, 4, 3), r"leaf \(PaddedConv\).*overrides _conv_forward of Conv2d"),
        (Twice(), "overrides forward of ReLU"),
        (Mixed(), "overrides forward of ReLU"),
        (Tied(), r"leaf \(Tied\).*not from torch.nn"),
    ],
)
def test_classes_that_compute_something_else_are_refused(leaf: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        describe(graph_of(leaf))


def test_hooks_and_strange_attributes_are_refused() -> None:
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match=r"leaf \(ReLU\) has hooks"):
        describe(graph_of(hooked))
    odd = nn.ReLU()
    odd.extra = object()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="its attribute 'extra' is or holds a value of type object"):
        describe(graph_of(odd))
    replaced = nn.ReLU()
    replaced.forward = F.gelu  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"replacement for ReLU\.forward"):
        describe(graph_of(replaced))


def test_functions_of_the_user_are_refused() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(through_json, (graph.placeholder("x"),)))
    with pytest.raises(ModelError, match=r"calls .*test_graph_data\.through_json, which cannot be saved"):
        describe(fx.GraphModule(nn.Module(), graph))


def test_attributes_that_refer_to_functions_and_classes_survive() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=F.gelu, batch_first=True)
    layer.norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)
    net = graph_of(layer.eval())
    back = through_json(net)
    x = torch.randn(2, 5, 8)
    assert back.leaf.activation is F.gelu
    assert back.leaf.norm_layer.func is nn.LayerNorm
    assert torch.equal(back.train().eval()(x), net(x))


def test_recurrent_layers_survive() -> None:
    net = graph_of(nn.LSTM(4, 5, batch_first=True))
    x = torch.randn(2, 3, 4)
    back = through_json(net)
    assert torch.equal(back(x)[0], net(x)[0])
    assert back.leaf._flat_weights[0] is back.leaf.weight_ih_l0


def test_the_training_flag_may_be_part_of_the_graph() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    flag = graph.get_attr("block.training")
    graph.output(graph.call_function(F.dropout, (x, 1.0, flag)))
    root = nn.Module()
    root.block = nn.Module()
    back = through_json(fx.GraphModule(root, graph))
    ones = torch.ones(3)
    assert torch.equal(back.train()(ones), torch.zeros(3))
    assert torch.equal(back.eval()(ones), ones)


Change = Callable[[dict[str, Any]], object]


def node(data: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(record for record in data["nodes"] if record["op"] == op)
    return found


def add_function(target: str, args: list[Any]) -> Change:
    def change(data: dict[str, Any]) -> None:
        call = {"op": "call_function", "name": "evil", "target": target, "wrapped": False}
        data["nodes"].insert(1, {**call, "args": ["tuple", args], "kwargs": ["dict", []]})

    return change


X = ["node", "input_1"]
SINK = "__import__('pathlib').Path('owned').touch()"
HOSTILE: dict[str, Change] = {
    "system": add_function("os.system", ["touch owned"]),
    "eval": add_function("builtins.eval", [SINK]),
    "load": add_function("torch.load", ["owned"]),
    "from_file": add_function("torch.from_file", ["owned", True, 8]),
    "getattr of anything": add_function("builtins.getattr", [X, "__class__"]),
    "getattr by node": add_function("builtins.getattr", [X, X]),
    "aten save": add_function("torch.ops.aten.save.default", [X, "owned"]),
    "method": lambda d: d["nodes"].insert(
        1,
        {
            "op": "call_method",
            "name": "n",
            "target": "__reduce_ex__",
            "args": ["tuple", [X, 2]],
            "kwargs": ["dict", []],
        },
    ),
    "method code": lambda d: node(d, "call_module").update(op="call_method", target=f"mean(), {SINK}"),
    "node name": lambda d: d["nodes"][1].update(name=f"a = {SINK}; b"),
    "placeholder": lambda d: node(d, "placeholder").update(target=f"x={SINK}"),
    "placeholder default": lambda d: node(d, "placeholder").update(target=f"x: {SINK}"),
    "keyword": lambda d: d["nodes"][1].update(kwargs=["dict", [[f"a={SINK}, b", 1]]]),
    "module name": lambda d: d["modules"][-1]["children"][0].__setitem__(0, f'0", {SINK}, "'),
    "module target": lambda d: d["nodes"][1].update(target=f'0"), {SINK}, ("'),
    "dunder target": lambda d: d["nodes"][1].update(op="get_attr", target="__class__", args=["tuple", []]),
    "attribute of a class": lambda d: d["nodes"][1].update(op="get_attr", target="0.register_forward_hook"),
    "attribute of Python": lambda d: d["nodes"][1].update(op="get_attr", target="0.forward.func_globals"),
    "module class": lambda d: d["modules"][0].update({"class": "torch.fx.graph_module.GraphModule"}),
    "any class": lambda d: d["modules"][0].update({"class": "subprocess.Popen"}),
    "method replaced": lambda d: d["modules"][0]["attributes"].append(["forward", ["function", "torch.relu"]]),
    "internals replaced": lambda d: d["modules"][0]["attributes"].append(["_forward_hooks", ["dict", []]]),
    "dunder attribute": lambda d: d["modules"][0]["attributes"].append(["__class__", 1]),
    "function attribute": lambda d: d["modules"][0]["attributes"].append(["a", ["function", "builtins.eval"]]),
    "partial attribute": lambda d: d["modules"][0]["attributes"].append(
        ["a", ["partial", [["function", "builtins.getattr"], ["tuple", []], ["dict", []]]]]
    ),
    "cycle": lambda d: d["modules"][0]["children"].append(["loop", 3]),
    "negative child": lambda d: d["modules"][1]["children"].append(["loop", -1]),
    "unknown operation": lambda d: d["nodes"][1].update(op="root"),
}
DAMAGED: dict[str, Change] = {
    "no nodes": lambda d: d.pop("nodes"),
    "no modules": lambda d: d["modules"].clear(),
    "unknown node": lambda d: d["nodes"][1].update(args=["tuple", [["node", "nowhere"]]]),
    "two of a name": lambda d: d["nodes"].insert(1, d["nodes"][0]),
    "missing tensor": lambda d: d["modules"][0]["parameters"][0].__setitem__(1, "nowhere"),
    "missing module": lambda d: d["nodes"][1].update(target="7"),
    "no output": lambda d: d["nodes"].__setitem__(slice(None), [3]),
    "too few arguments": add_function("operator.add", [X]),
    "records are numbers": lambda d: d.update(modules=[1, 2]),
    "deep": lambda d: d["nodes"][1].update(
        args=functools.reduce(lambda a, _: ["list", [a]], range(sys.getrecursionlimit()), ["list", []])
    ),
}


@pytest.mark.parametrize("change", [*HOSTILE.values(), *DAMAGED.values()], ids=[*HOSTILE, *DAMAGED])
def test_hostile_and_damaged_descriptions_are_refused(
    change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, tensors = describe(small_net())
    data = copy.deepcopy(data)
    change(data)
    with pytest.raises(ModelError) as caught:
        rebuild(data, tensors)(torch.randn(1, 3, 8, 8))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("text", [SINK, f"'); {SINK}; ('", f'"""{SINK}', "\\'", "\n" + SINK, "{0}"])
def test_strings_in_arguments_stay_strings(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = fx.Graph()
    x = graph.placeholder("x", default_value=text)
    check = graph.call_function(torch._assert, (False, text))
    graph.output((x, {"key": text, text: 1}))
    net = fx.GraphModule(nn.Module(), graph)
    graph_without_check = copy.deepcopy(net)
    graph_without_check.graph.erase_node(next(n for n in graph_without_check.graph.nodes if n.name == check.name))
    graph_without_check.recompile()
    with pytest.raises(AssertionError) as caught:
        through_json(net)()
    assert str(caught.value) == text
    assert through_json(graph_without_check)() == (text, {"key": text, text: 1})
    assert not (tmp_path / "owned").exists()
