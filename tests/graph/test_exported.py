"""The front end of torch.export: the same network as tracing gives, more networks, refusals in one line, training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mdp_fx.checkpoint import load_slim, save_slim
from mdp_fx.errors import InputError, ModelError
from mdp_fx.graph.exported import export
from mdp_fx.graph.prune_graph import infer_types
from mdp_fx.graph.purity import remove_dead_nodes, target_name
from mdp_fx.graph.trace import FrontEnd, Traced, trace
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE
from mdp_fx.pipeline import analyse, rewrite
from tests.graph.small import images, net, parameter, sizes, vectors
from tests.pruning import parity_error, randomise, tensors
from tests.slim_networks import RECIPE
from tests.zoo import ZOO, Specimen, image

LIMIT = 1e-9


def targets(result: Traced, op: str) -> list[Any]:
    return [node.target for node in result.module.graph.nodes if node.op == op]


def calls(module: fx.GraphModule) -> list[str]:
    return [target_name(node.target) for node in module.graph.nodes if node.op.startswith("call")]


def same_output(model: nn.Module, result: Traced, *inputs: Any) -> bool:
    with torch.no_grad():
        return all(map(torch.equal, tensors(model(*inputs)), tensors(result.module(*inputs))))


# The same network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_groups_and_blocks_are_those_of_a_traced_network(specimen: Specimen) -> None:
    exported, traced = (
        analyse(specimen.make(), specimen.inputs(), front_end=kind) for kind in get_args(FrontEnd)[::-1]
    )
    assert exported.graph.front_end == "export"
    assert [(group.name, group.size) for group in exported.groups] == [
        (group.name, group.size) for group in traced.groups
    ]
    assert exported.blocks.exclusive == traced.blocks.exclusive
    assert [block.name for block in exported.blocks.removable] == [block.name for block in traced.blocks.removable]


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_parity_of_a_pruned_network(specimen: Specimen) -> None:
    model = randomise(specimen.make())
    assert parity_error(model, specimen.inputs(), 0, front_end="export") < LIMIT


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_library_network_is_the_one_that_tracing_gives(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    model = randomise(models.get_model(name, weights=None)).eval()
    traced, exported = (analyse(model, image(side=64), front_end=kind) for kind in ("symbolic", "export"))
    assert [(group.name, group.size) for group in exported.groups] == [
        (group.name, group.size) for group in traced.groups
    ]
    assert [region.key.split(" ")[0] for region in exported.regions] == [
        region.key.split(" ")[0] for region in traced.regions
    ]
    assert exported.blocks.exclusive == traced.blocks.exclusive
    assert parity_error(model, (image(side=64),), 0, front_end="export") < LIMIT


class Transformer(nn.Module):
    """Patches, a class token, positions, and one block of attention and an MLP, all in functions."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20) -> None:
        super().__init__()
        self.heads = heads
        self.patches = parameter(width, 3, 4, 4)
        self.token, self.places = parameter(1, 1, width), parameter(1, 5, width)
        self.query, self.key, self.value = parameter(width, width), parameter(width, width), parameter(width, width)
        self.out, self.up, self.down = parameter(width, width), parameter(hidden, width), parameter(width, hidden)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.patches, stride=4).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        q, k, v = (
            F.linear(x, weight).view(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)
            for weight in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + F.linear(attended, self.out)
        x = x + F.linear(F.gelu(F.linear(x, self.up)), self.down)
        return self.head(x[:, 0])


def test_a_transformer_of_functions() -> None:
    model = Transformer()
    exported = analyse(model, images(3, 8), front_end="export")
    assert sizes(exported) == sizes(analyse(model, images(3, 8), front_end="symbolic"))
    assert 20 in sizes(exported)
    assert exported.graph.batch is not None
    assert parity_error(model, (images(3, 8),), 0, front_end="export") < LIMIT


def test_modules_and_parameters_are_the_models_own() -> None:
    model = net(
        lambda net, x: net.inner(x) * net.scale, inner=nn.Sequential(nn.Linear(3, 8), nn.Dropout()), scale=parameter(8)
    )
    result = export(model, (vectors(),))
    assert targets(result, "call_module") == ["inner.0", "inner.1"]
    assert targets(result, "get_attr") == ["scale"]
    assert result.module.state_dict().keys() == model.state_dict().keys()
    stored = dict(model.named_parameters())
    assert all(tensor is stored[name] for name, tensor in result.module.named_parameters())
    assert same_output(model, result, vectors())


def test_nodes_have_the_facts_that_tracing_finds() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).view(2, 2, 4).flatten(1).double().float().chunk(2, 1)[0]),
        a=nn.Linear(3, 8),
        fc=nn.Linear(4, 5),
    )
    found = []
    for graph in (export(model, (vectors(),)).module.graph, trace(model, (vectors(),)).module.graph):
        remove_dead_nodes(graph)
        order = [node.name for node in graph.nodes]
        found.append(
            [
                (node.meta[SHAPE], node.meta[DTYPE], [order.index(name) for name in node.meta[ALIASES]])
                for node in graph.nodes
                if node.op != "output"
            ]
        )
    assert found[0] == found[1]


def test_the_batch_is_open_and_a_batch_of_one_is_traced_as_two() -> None:
    model = net(
        lambda net, x: net.fc(net.a(x).view(x.shape[0], 2, 4).flatten(1)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5)
    )
    result = export(model, (vectors()[:1],))
    assert result.batch == 2
    assert result.example_inputs[0].shape == (2, 3)
    slim = rewrite(analyse(model, vectors(), front_end="export"), {}, ())
    assert torch.allclose(slim(torch.ones(7, 3)), model(torch.ones(7, 3)))
    assert export(model, (vectors(),), open_batch=False).batch is None


def test_tensors_that_the_forward_makes_are_constants() -> None:
    model = net(lambda net, x: net.fc(net.a(x) * torch.arange(8.0)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    result = export(model, (vectors(),))
    assert len(result.constants) == 1
    assert infer_types(result).baked_in == ("a tensor that the forward makes (8, read by mul)",)
    assert same_output(model, result, vectors())


def test_a_made_tensor_that_is_written_to_is_no_constant() -> None:
    def fills(net: Any, x: Tensor) -> Any:
        made = torch.zeros(2, 8)
        made[:, :4] = net.a(x)[:, 4:]
        return net.fc(made)

    model = net(fills, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    result = export(model, (vectors(),))
    assert result.constants == ()
    for x in (vectors(), vectors() + 1):
        assert same_output(model, result, x)


def nested(net: Any, both: Any) -> Any:
    return {"sum": net.a(both["x"]) + net.b(both["y"]), "pair": (net.a(both["x"]).relu(), None)}


def test_nested_inputs_and_outputs() -> None:
    both = {"x": vectors(), "y": vectors(4)}
    model = net(nested, a=nn.Linear(3, 8), b=nn.Linear(4, 8))
    result = export(model, (both,))
    assert targets(result, "placeholder") == targets(trace(model, (both,)), "placeholder")
    assert same_output(model, result, both)
    assert result.module(both)["pair"][1] is None


def test_modules_that_work_in_place_or_give_several_tensors() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        net.relu(x)
        y, (h, _) = net.lstm(x[:, None])
        return net.fc(y[:, 0] + h[0])

    model = net(
        body, a=nn.Linear(3, 8), relu=nn.ReLU(inplace=True), lstm=nn.LSTM(8, 6, batch_first=True), fc=nn.Linear(6, 5)
    )
    result = export(model, (vectors(),))
    assert {"relu", "lstm"} <= set(targets(result, "call_module"))
    assert same_output(model, result, vectors())


def test_in_place_functions_become_what_tracing_makes_of_them() -> None:
    def body(net: Any, x: Tensor) -> Any:
        x = F.silu(net.a(x), inplace=True)
        x += 1
        return net.fc(x.relu_())

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    analysis = analyse(model, vectors(), front_end="export")
    assert calls(analysis.graph.module) == ["a", "silu", "add", "relu", "fc"]
    assert sizes(analysis) == [8]


def test_the_model_is_left_as_it_was() -> None:
    def counts(net: Any, x: Tensor) -> Any:
        net.calls.add_(1)
        return net.fc(net.a(x))

    model = net(counts, a=nn.Linear(3, 8), fc=nn.Linear(8, 5)).train()
    model.register_buffer("calls", torch.zeros(1))
    before = copy.deepcopy(model.state_dict())
    export(model, (vectors(),))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# Networks that tracing cannot follow --------------------------------------------------------------------------------


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


with warnings.catch_warnings(action="ignore"):
    scripted = torch.jit.script(swish)


class Clamp(torch.autograd.Function):
    """A function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)


def mapped(net: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda one: one * net.scale)(x)


def branching(net: Any, x: Tensor) -> Tensor:
    return torch.cond(x.abs().sum() > 0, lambda y: y * 2, lambda y: y * 3, (x,))


HARD: dict[str, tuple[Callable[[Any, Tensor], Any], str, list[int]]] = {
    "vmap": (mapped, "its forward calls torch.vmap", [8, 12]),
    "scripted": (lambda _, x: scripted(x), "its forward calls a scripted function", [8, 12]),
    "autograd": (lambda _, x: Clamp.apply(x), "its forward calls an autograd.Function", [8, 12]),
    # Nothing is known of what the branches do: what they read is frozen.
    "cond": (branching, "its forward calls torch.cond", [12]),
}


def hard(body: Callable[[Any, Tensor], Any]) -> nn.Module:
    return net(
        lambda net, x: net.fc(F.relu(net.b(body(net, net.norm(net.a(x))))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8),
        b=nn.Conv2d(8, 12, 3, padding=1),
        scale=parameter(8, 1, 1),
        fc=nn.Linear(12, 5),
    )


@pytest.mark.parametrize("kind", HARD)
def test_what_tracing_refuses_is_exported(kind: str) -> None:
    body, reason, expected = HARD[kind]
    model = hard(body)
    with pytest.raises(ModelError, match=reason):
        trace(model, (images(),))
    analysis = analyse(model, images())
    assert (analysis.graph.front_end, sizes(analysis)) == ("export", expected)
    assert analysis.graph.why.startswith(f"symbolic tracing fails: {reason}")
    assert analysis.graph.batch is not None
    assert parity_error(model, (images(),), 0) < LIMIT


def test_regions_without_gradients_or_without_autocast_are_part_of_the_network() -> None:
    def body(net: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            y = net.a(x.float())
        with torch.enable_grad():
            y = y * 2
        return net.fc(y)

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    result = export(model, (vectors(),))
    assert calls(result.module)[-3:] == ["a", "mul", "fc"]
    assert same_output(model, result, vectors())


@pytest.mark.parametrize("kind", ["vmap", "scripted"])
def test_a_slim_network_survives_a_file(kind: str, tmp_path: Path) -> None:
    slim = rewrite(analyse(hard(HARD[kind][0]), images()), {"b": [0, 1, 2, 5]}, ())
    save_slim(tmp_path / "slim.pt", slim, RECIPE, {})
    again = load_slim(tmp_path / "slim.pt").module
    assert torch.equal(again(images()), slim(images()))


def test_a_slim_network_that_branches_is_not_saved(tmp_path: Path) -> None:
    slim = rewrite(analyse(hard(branching), images()), {"b": [0, 1, 2, 5]}, ())
    with pytest.raises(ModelError, match=r"^node cond calls torch.ops.higher_order.cond, which cannot be saved$"):
        save_slim(tmp_path / "slim.pt", slim, RECIPE, {})


# Refusals -----------------------------------------------------------------------------------------------------------


def decides(net: Any, x: Tensor) -> Any:
    return net.a(x) if x.sum() > 0 else net.fc(net.a(x))


def reads(net: Any, x: Tensor) -> Any:
    return net.a(x) * float(x.max())


def lists(net: Any, x: Tensor) -> Any:
    return net.a(x) * x.tolist()[0][0]


def casts(net: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.a(x) + 1


ENTRIES = "its forward decides on the entries of a tensor, not on shapes"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (decides, rf"{ENTRIES} \(test_exported.py, line \d+: return net.a\(x\) if x.sum\(\) > 0"),
        (reads, rf"{ENTRIES} \(test_exported.py, line \d+: return net.a\(x\) \* float"),
        (lists, rf"{ENTRIES} \(small.py, line \d+: return self.body\(self, x\)\)"),
        (casts, r"its forward runs under autocast \(.*\), which a graph cannot hold; cast the model instead"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    body: Callable[..., Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=f"^Net runs but cannot be exported: {reason}") as caught:
        export(net(body, a=nn.Linear(3, 3), fc=nn.Linear(3, 5)), (vectors(),))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_inputs_that_do_not_fit_are_the_inputs_fault() -> None:
    with pytest.raises(InputError, match="rejects an input of shape 2x4"):
        export(net(lambda net, x: net.a(x), a=nn.Linear(3, 3)), (vectors(4),))
