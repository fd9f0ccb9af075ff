"""Tracing: what resolves, what is recorded, what is left alone, what is refused and how."""

from __future__ import annotations

import copy
import operator
import pickle
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mdp_fx.errors import InputError, MdpFxError, ModelError
from mdp_fx.graph import tracer
from mdp_fx.graph.eval_flag import is_eval_flag
from mdp_fx.graph.prune_graph import infer_types
from mdp_fx.graph.trace import Traced, trace
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE, attribute
from mdp_fx.pipeline import analyse, rewrite
from tests.graph.small import images, net, parameter, tokens, vectors
from tests.zoo import ZOO, Specimen


def traced(body: Callable[..., Any], x: Tensor, **layers: nn.Module | nn.Parameter) -> Traced:
    return trace(net(body, **layers), (x,))


def targets(result: Traced, op: str) -> list[Any]:
    return [node.target for node in result.module.graph.nodes if node.op == op]


def same_output(model: nn.Module, result: Traced, *inputs: Any) -> bool:
    with torch.no_grad():
        pairs = zip(pytree.tree_leaves(model(*inputs)), pytree.tree_leaves(result.module(*inputs)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


# What a forward may do ----------------------------------------------------------------------------------------------


def branches(net: Any, x: Tensor) -> Any:
    x = net.a(x)
    assert x.shape[1] == 8, "another width"
    if x.ndim == 2 and x.size(-1) > 4:
        x = x * x.shape[-1] ** -0.5
    for _ in range(x.size(1) // 4):
        x = torch.relu(x) + 1
    return net.fc(x)


def unpacks(net: Any, x: Tensor) -> Any:
    b, c = x.shape
    first, *others = net.a(x).view(b, 4, c - 1).unbind(1)
    return net.fc(torch.cat([first, *[other * 2 for other in others]], -1))


def asks_types(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    assert isinstance(y, Tensor)
    assert torch.is_tensor(y)
    assert not torch.compiler.is_compiling()
    return net.fc(y if y.dtype.is_floating_point and len(y) == 2 else y.float())


def counts_entries(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    return net.fc(y / y[0].numel() * int(y.stride(0)) / max(y.shape))


def keywords(net: Any, x: Tensor) -> Any:
    return net.fc(input=torch.add(input=net.a(x), other=net.a(x), alpha=2))


BODIES = {body.__name__: body for body in (branches, unpacks, asks_types, counts_entries, keywords)}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_forward_that_depends_on_shapes_resolves(body: Callable[..., Any]) -> None:
    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    result = trace(model, (vectors(),))
    assert same_output(model, result, vectors())
    assert set(targets(result, "call_module")) == {"a", "fc"}
    assert result.constants == ()


def test_loops_and_branches_leave_only_what_they_did() -> None:
    result = traced(branches, vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert [node.name for node in result.module.graph.nodes] == [
        "x", "a", "mul", "relu", "add", "relu_1", "add_1", "fc", "output",
    ]  # fmt: skip
    (scale,) = (node.args[1] for node in result.module.graph.nodes if node.name == "mul")
    assert scale == 8**-0.5


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_modules_keep_the_names_of_the_dense_network(specimen: Specimen) -> None:
    model = specimen.make()
    result = trace(model, specimen.inputs())
    dense = dict(model.named_modules())
    called = targets(result, "call_module")
    assert called
    for name in called:
        assert type(result.module.get_submodule(name)) is type(dense[name])
    parameters = dict(model.named_parameters())
    for name, tensor in result.module.named_parameters():
        assert tensor is parameters[name]


def test_every_node_has_its_shape_type_and_aliases() -> None:
    result = traced(
        lambda net, x: net.fc(net.a(x).view(2, 2, 4).flatten(1).double().float().chunk(2, 1)[0]),
        vectors(),
        a=nn.Linear(3, 8),
        fc=nn.Linear(4, 5),
    )
    found = {
        node.name: (node.meta[SHAPE], node.meta[DTYPE], node.meta[ALIASES])
        for node in result.module.graph.nodes
        if node.op != "output"
    }
    f32, f64 = torch.float32, torch.float64
    assert found == {
        "x": (torch.Size((2, 3)), f32, ()),
        "a": (torch.Size((2, 8)), f32, ()),
        "view": (torch.Size((2, 2, 4)), f32, ("a",)),
        "flatten": (torch.Size((2, 8)), f32, ("view",)),
        "double": (torch.Size((2, 8)), f64, ()),
        "float_1": (torch.Size((2, 8)), f32, ()),
        "chunk": ((torch.Size((2, 4)),) * 2, (f32,) * 2, ("float_1",)),
        "getitem": (torch.Size((2, 4)), f32, ("chunk",)),
        "fc": (torch.Size((2, 5)), f32, ()),
    }


def test_a_network_in_float64_is_traced_in_float64() -> None:
    model = net(lambda net, x: net.fc(torch.relu(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5)).double()
    result = trace(model, (vectors().double(),))
    assert {node.meta[DTYPE] for node in result.module.graph.nodes if node.op != "output"} == {torch.float64}
    assert same_output(model, result, vectors().double())


def test_a_parameter_and_a_buffer_that_are_read_are_nodes() -> None:
    model = net(lambda net, x: net.fc(x * net.scale + net.shift), scale=parameter(3), fc=nn.Linear(3, 5))
    model.register_buffer("shift", torch.ones(3))
    assert targets(trace(model, (vectors(),)), "get_attr") == ["scale", "shift"]
    assert same_output(model, trace(model, (vectors(),)), vectors())


@fx.wrap
def wrapped_helper(x: Tensor) -> Tensor:
    return torch.relu(x) + (1 if x.shape[1] > 2 else 0)


def test_functions_that_hide_from_tracing_are_traced_through() -> None:
    result = traced(lambda net, x: net.fc(wrapped_helper(net.a(x))), vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert [node.name for node in result.module.graph.nodes] == ["x", "a", "relu", "add", "fc", "output"]


def test_wrapped_functions_stay_wrapped_for_others() -> None:
    before = dict(fx._symbolic_trace._wrapped_fns_to_patch)
    assert before
    traced(lambda net, x: net.fc(wrapped_helper(net.a(x))), vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert fx._symbolic_trace._wrapped_fns_to_patch == before


def test_a_tensor_that_the_forward_makes_is_a_constant() -> None:
    result = traced(
        lambda net, x: net.fc(net.a(x) * torch.arange(8.0)), vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5)
    )
    (name,) = result.constants
    assert torch.equal(attribute(result.module, name), torch.arange(8.0))
    (line,) = infer_types(result).baked_in
    assert line == "a tensor that the forward makes (8, read by mul)"


@pytest.mark.parametrize(
    ("function", "is_open"),
    [
        pytest.param(lambda x: x * torch.arange(8.0), True, id="a constant of another size"),
        pytest.param(lambda x: x * torch.ones(x.shape[0], 1), False, id="a constant of the batch's size"),
        pytest.param(lambda x: x.repeat_interleave(x.shape[0], 0), False, id="an argument of an op without a rule"),
        pytest.param(lambda x: x.view(x.shape[0], 2, 4).flatten(1), True, id="a size of a view"),
    ],
)
def test_a_batch_that_ends_up_in_a_literal_is_baked_in(function: Callable[[Tensor], Tensor], is_open: bool) -> None:
    model = net(lambda net, x: net.fc(function(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert (analyse(model, (vectors(),)).graph.batch is not None) == is_open


def test_a_dotted_attribute() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
    assert attribute(model, "1.0.weight").shape == (4, 3)


# Inputs -------------------------------------------------------------------------------------------------------------


class Optional(nn.Module):
    """A mask that may be left out, and a number with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, *, twice: bool = False) -> Any:
        y = self.a(x) * scale
        if mask is not None:
            y = y * mask
        return self.fc(y + y if twice else y)


def test_an_optional_input_that_is_left_out_stays_out() -> None:
    model = Optional().eval()
    result = trace(model, (vectors(),))
    assert same_output(model, result, vectors())
    assert "mul_1" not in [node.name for node in result.module.graph.nodes]
    slim = rewrite(analyse(model, (vectors(),)), {"a": [0, 3]}, ())
    assert slim(vectors()).shape == (2, 5)


def test_an_optional_input_that_is_given_is_an_input() -> None:
    model, mask = Optional().eval(), torch.rand(2, 8)
    result = trace(model, (vectors(), mask))
    assert same_output(model, result, vectors(), mask)
    assert targets(result, "placeholder")[:2] == ["x", "mask"]


class Pair(NamedTuple):
    """A structured input."""

    left: Tensor
    right: Tensor


class Structured(nn.Module):
    """Reads a dict, a tuple or a list of tensors; gives one of them back in a dict."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.fc = nn.Linear(3, 8), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, both: Any) -> Any:
        if self.kind == "dict":
            assert "x" in both
            assert list(both.keys()) == ["x", "y"]
            x, y = both["x"], both["y"]
        else:
            assert len(both) == 2
            x, y = both
        return {"sum": self.fc(torch.relu(self.a(x)) + self.b(y)), "pair": (self.a(x).relu(),)}


def test_a_named_tuple_as_output() -> None:
    model = net(lambda net, x: Pair(net.a(x), net.a(x).mean()), a=nn.Linear(3, 8))
    result = trace(model, (vectors(),))
    assert result.constants == ()
    assert same_output(model, result, vectors() * 2)


@pytest.mark.parametrize("kind", ["dict", "tuple", "list"])
def test_structured_inputs_and_outputs(kind: str) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 4)
    both: Any = {"dict": {"x": x, "y": y}, "tuple": (x, y), "list": [x, y]}[kind]
    model = Structured(kind).eval()
    result = trace(model, (both,))
    assert result.batch == 2
    assert same_output(model, result, both)
    graph = infer_types(result)
    assert graph.batch is not None
    (node,) = result.module.graph.find_nodes(op="placeholder")
    assert pytree.tree_leaves(node.meta[DTYPE]) == [torch.float32, torch.float32]


def test_a_batch_of_one_is_traced_as_two() -> None:
    model = net(lambda net, x: net.fc(net.a(x)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    x = vectors()[:1]
    result = trace(model, (x,))
    assert result.batch == 2
    assert result.example_inputs[0].shape == (2, 3)
    assert torch.equal(result.example_inputs[0][:1], x)
    assert torch.equal(result.example_inputs[0][1:], x)
    assert same_output(model, result, x)


@pytest.mark.parametrize(
    ("inputs", "open_batch", "batch"),
    [
        pytest.param(lambda: (vectors(),), True, 2, id="two stay two"),
        pytest.param(lambda: (vectors()[:1],), False, None, id="asked to bake in"),
        pytest.param(lambda: (torch.randn(5, 3),), True, 5, id="five stay five"),
    ],
)
def test_batches_of_inputs(inputs: Callable[[], tuple[Tensor, ...]], open_batch: bool, batch: int | None) -> None:
    model = net(lambda net, x: net.fc(net.a(x)), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    result = trace(model, inputs(), open_batch=open_batch)
    assert result.batch == batch
    assert result.example_inputs[0].shape == inputs()[0].shape


class TwoSizes(nn.Module):
    """Reads tensors whose first axes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.a(x) + self.a(y).mean(0)


def test_inputs_without_a_common_first_axis_have_no_batch() -> None:
    result = trace(TwoSizes(), (torch.randn(2, 3), torch.randn(4, 3)))
    assert result.batch is None
    assert infer_types(result).baked_in == ("the batch size: another one may fail",)


def test_a_batch_that_the_forward_insists_on_is_baked_in() -> None:
    def one_image(net: Any, x: Tensor) -> Any:
        assert x.shape[0] == 1, "one image at a time"
        return net.fc(net.a(x))

    result = traced(one_image, vectors()[:1], a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert result.batch is None
    assert result.example_inputs[0].shape == (1, 3)


# What is left alone -------------------------------------------------------------------------------------------------


class Caches(nn.Module):
    """Keeps what it computed, in a dict, an attribute, a buffer and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(1))
        self.calls: Tensor
        self.bias: Tensor | None = None
        self.seen: dict[int, Tensor] = {}
        self.history: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        if self.bias is None:
            self.bias = self.a.bias * 2
        if x.shape[1] not in self.seen:
            self.seen[x.shape[1]] = self.a(x)
        self.calls += 1
        self.history.append(x)
        return self.fc(self.seen[x.shape[1]] + self.bias)


def test_a_forward_that_keeps_things_leaves_the_model_as_it_was() -> None:
    model = Caches().eval()
    before = copy.deepcopy(model.state_dict())
    result = trace(model, (vectors(),))
    assert (model.bias, model.seen, model.history) == (None, {}, [])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        expected = fresh(vectors() + 1)
        # The cache of the trace is in the graph, as a computation: another input is not answered from it.
        assert torch.equal(result.module(vectors() + 1), expected)


def test_modes_and_flags_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.ReLU(inplace=True)).train()
    model[0].eval()
    result = trace(model, (vectors(),))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert not any(module.training for module in result.module.modules())
    assert all(type(module.training) is bool for module in result.module.modules())


def test_inputs_that_are_written_to_stay_as_they_are() -> None:
    def writes(net: Any, x: Tensor) -> Any:
        x -= 1
        x[:, 0] = 0.5
        return net.fc(net.a(x.mul_(2)))

    model = net(writes, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    x = vectors()
    before = x.clone()
    result = trace(model, (x,))
    assert torch.equal(x, before)
    assert torch.equal(result.example_inputs[0], before)
    with torch.no_grad():
        assert torch.equal(model(before.clone()), result.module(before.clone()))


def test_a_gradient_is_not_asked_for() -> None:
    seen: list[bool] = []

    def body(net: Any, x: Tensor) -> Any:
        seen.append(torch.is_grad_enabled())
        return net.fc(net.a(x))

    traced(body, vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_the_training_flag_is_recognised_where_it_is_an_argument() -> None:
    def body(net: Any, x: Tensor) -> Any:
        assert not net.training
        y = F.dropout(net.a(x), 0.5, net.training)
        return net.fc(y * 3 if net.training else y)

    result = traced(body, vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    (node,) = (node for node in result.module.graph.nodes if node.target is F.dropout)
    flags = [value for value in (*node.args, *node.kwargs.values()) if is_eval_flag(value)]
    assert len(flags) == 1
    assert not flags[0]
    assert not is_eval_flag(False)
    assert not is_eval_flag(0)
    assert "mul" not in [node.name for node in result.module.graph.nodes]


def test_a_traced_network_copies_and_pickles() -> None:
    result = trace(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5)), (vectors(),))
    for twin in (copy.deepcopy(result.module), pickle.loads(pickle.dumps(result.module))):
        with torch.no_grad():
            assert torch.equal(twin(vectors()), result.module(vectors()))


# What is refused ----------------------------------------------------------------------------------------------------


def branch_on_entries(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    return net.fc(y if y.sum() > 0 else -y)


def reads_an_entry(net: Any, x: Tensor) -> Any:
    return net.fc(net.a(x) * net.a(x)[0, 0].item())


def reads_as_float(net: Any, x: Tensor) -> Any:
    return net.fc(net.a(x) * float(x.max()))


def reads_as_int(net: Any, x: Tensor) -> Any:
    return net.fc(net.a(x)) * int(x.abs().max())


def reads_a_list(net: Any, x: Tensor) -> Any:
    return net.fc(net.a(x) + sum(x.tolist()[0]))


def compares(net: Any, x: Tensor) -> Any:
    return net.fc(net.a(x) if torch.allclose(x, x) else x)


def counts_up_to(net: Any, x: Tensor) -> Any:
    return net.fc(sum(net.a(x) for _ in range(x.abs().argmax() + 1)))


REFUSED = {
    body.__name__: body
    for body in (branch_on_entries, reads_an_entry, reads_as_float, reads_as_int, reads_a_list, compares, counts_up_to)
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_a_forward_that_reads_entries_of_its_input_is_refused_at_its_line(body: Callable[..., Any]) -> None:
    with pytest.raises(ModelError) as caught:
        traced(body, vectors(), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("Net runs but cannot be traced: its forward decides on the entries of a tensor, not on")
    assert "test_trace.py, line " in message


def test_entries_of_a_parameter_may_be_read() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.fc(net.a(x) * (2 if net.scale.sum() > 0 else 3) + net.scale[0].item())

    model = net(body, a=nn.Linear(3, 8), scale=parameter(4), fc=nn.Linear(8, 5))
    assert same_output(model, trace(model, (vectors(),)), vectors())


def test_a_shape_that_the_network_rejects_is_the_inputs_fault() -> None:
    with pytest.raises(InputError) as caught:
        traced(lambda net, x: net.a(x), torch.randn(2, 4, 5, 5), a=nn.Conv2d(3, 8, 1))
    message = str(caught.value)
    assert message.startswith("the network rejects an input of shape 2x4x5x5: ")
    assert message.endswith("; set the shape with --input CxHxW")
    assert "\n" not in message


def test_an_error_of_many_lines_is_told_in_one() -> None:
    def fails(net: Any, x: Tensor) -> Any:
        raise RuntimeError("first line\nsecond line")

    with pytest.raises(InputError, match=r"shape 2x3: first line; set") as caught:
        traced(fails, vectors())
    assert "\n" not in str(caught.value)


def test_an_error_without_a_text_is_told_by_its_kind() -> None:
    def fails(net: Any, x: Tensor) -> Any:
        raise NotImplementedError

    with pytest.raises(InputError, match="NotImplementedError"):
        traced(fails, vectors())


def test_a_missing_input_is_the_inputs_fault() -> None:
    with pytest.raises(InputError, match="missing"):
        trace(TwoSizes(), (vectors(),))


def test_a_forward_that_only_fails_under_tracing_is_the_models_fault() -> None:
    def refuses(net: Any, x: Tensor) -> Any:
        if type(x) is not Tensor:
            raise TypeError("no proxies please")
        return net.a(x)

    with pytest.raises(ModelError, match=r"^Net runs but cannot be traced: no proxies please$") as caught:
        traced(refuses, vectors(), a=nn.Linear(3, 8))
    assert isinstance(caught.value, MdpFxError)
    assert isinstance(caught.value.__cause__, TypeError)


# Faults that were found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dict", "tuple", "list"])
def test_the_batch_of_a_structured_input_is_open(kind: str) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.rand(1, 1, 8))
            self.a, self.fc = nn.Linear(3, 8), nn.Linear(8, 5)

        def forward(self, inputs: Any) -> Any:
            x = inputs["x" if kind == "dict" else 0]
            return self.fc(torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1))

    x = tokens()
    both: Any = {"dict": {"x": x}, "tuple": (x,), "list": [x]}[kind]
    analysis = analyse(Tokens().eval(), (both,))
    slim = rewrite(analysis, {analysis.groups[0].name: [0, 3]}, ())
    assert slim(both).shape == (2, 8, 5)


def test_images_of_other_sizes_are_traced_by_their_shape() -> None:
    model = net(lambda net, x: net.a(x).mean((2, 3)), a=nn.Conv2d(3, 8, 1))
    result = trace(model, (images(side=6),))
    assert next(iter(result.module.graph.nodes)).meta[SHAPE] == (2, 3, 6, 6)
    assert same_output(model, result, images(side=5))


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "imod"])
def test_an_augmented_assignment_changes_the_tensor_under_its_other_names(name: str) -> None:
    def body(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        kept = y
        y = getattr(operator, name)(y, 2)
        return net.fc(kept + y)

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert same_output(model, trace(model, (vectors(),)), vectors())


def test_members_of_a_result_may_be_read_by_name() -> None:
    def body(net: Any, x: Tensor) -> Any:
        ordered = net.a(x).sort(1)
        return net.fc(ordered.values * torch.max(x, 1, keepdim=True).indices)

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert same_output(model, trace(model, (vectors(),)), vectors())


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.where(y > 0, y, 0.0),
        lambda y: torch.clamp(y, min=y.mean(), max=1.0),
        lambda y: torch.float_power(y, 2).to(y.dtype),
        lambda y: torch.xlogy(y.abs(), 2.0),
    ],
    ids=["where", "clamp", "float_power", "xlogy"],
)
def test_tensors_and_numbers_may_be_mixed(function: Callable[[Tensor], Tensor]) -> None:
    model = net(lambda net, x: net.fc(function(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    assert same_output(model, trace(model, (vectors(),)), vectors())


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y * torch.tensor(y),
        lambda y: y * torch.full((8,), y.mean()),
        lambda y: y * y.new_tensor(y),
        lambda y: torch.add(y, y, alpha=y.mean()),
    ],
    ids=["tensor", "full", "new_tensor", "alpha"],
)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_native_code_that_needs_numbers_is_refused_and_does_not_crash(function: Callable[[Tensor], Tensor]) -> None:
    model = net(lambda net, x: net.fc(function(net.a(x))), a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    try:
        assert same_output(model, trace(model, (vectors(),)), vectors())
    except MdpFxError as refusal:
        assert "\n" not in str(refusal)  # noqa: PT017


# The model itself is called -------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A layer with a call of its own."""

    def __call__(self, x: Tensor, factor: Tensor) -> Any:
        return super().__call__(x * factor) + 1


def hooked() -> nn.Module:
    model = net(lambda net, x: net.a(x), a=nn.Linear(3, 8))
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    model.register_forward_hook(lambda _module, _inputs, output: output + 1)
    return model


def with_a_forward_of_its_own() -> nn.Module:
    model = net(lambda net, x: net.a(x), a=nn.Linear(3, 8))
    model.forward = lambda x: model.a(x) * 2  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("make", [hooked, lambda: nn.Linear(3, 8)], ids=["hooks", "a single layer"])
@pytest.mark.parametrize("front_end", ["symbolic", "export"])
def test_what_calling_the_model_does_is_in_the_graph(make: Callable[[], nn.Module], front_end: Any) -> None:
    model = make()
    module = analyse(model, vectors(), front_end=front_end).graph.module
    with torch.no_grad():
        assert torch.allclose(module(vectors() - 1), model(vectors() - 1))


def test_a_forward_of_one_instance_is_traced() -> None:
    model = with_a_forward_of_its_own()
    result = trace(model, (vectors(),))
    assert [node.name for node in result.module.graph.nodes][-2:] == ["mul", "output"]
    assert same_output(model, result, vectors() - 1)


def test_a_class_with_a_call_of_its_own_is_called_by_it() -> None:
    model = Doubled(3, 8)
    result = trace(model, (vectors(), vectors()))
    assert targets(result, "placeholder") == ["x", "factor"]
    assert same_output(model, result, vectors() - 1, vectors())


# Reasons --------------------------------------------------------------------------------------------------------------


def test_a_name_that_python_keeps_for_itself_is_named() -> None:
    model = net(lambda net, x: net.parts["class"](x), parts=nn.ModuleDict({"class": nn.Linear(3, 8)}))
    with pytest.raises(ModelError, match=r"parts.class is named after a word of Python \(class\), .* rename it$"):
        trace(model, (vectors(),))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_a_scripted_network_is_refused_once() -> None:
    with pytest.raises(ModelError, match=r"it is a scripted module, not Python: give .*; torch.export fails too$"):
        analyse(torch.jit.script(nn.Sequential(nn.Linear(3, 8))), vectors())


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_what_a_graph_cannot_hold_is_named() -> None:
    with pytest.raises(ModelError, match=r"gives a ndarray to a call, which a graph cannot hold \(test_trace.py, line"):
        traced(lambda net, x: net.a(x) * vectors(8).numpy()[0], vectors(), a=nn.Linear(3, 8))


def test_tensors_that_are_held_without_being_registered_are_told() -> None:
    model = net(lambda net, x: net.layers[0](x) * net.scale)
    vars(model).update(layers=[nn.Linear(3, 8)], scale=torch.ones(8))
    assert infer_types(trace(model, (vectors(),))).baked_in == (
        "a tensor that is no parameter or buffer (8x3, read by linear)",
        "a tensor that is no parameter or buffer (8, read by linear)",
        "a tensor that is no parameter or buffer (8, read by mul)",
    )


def test_the_reason_why_a_batch_is_fixed_is_kept_with_its_line() -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.fc(net.a(x).reshape(8))

    model = net(body, a=nn.Linear(3, 8), fc=nn.Linear(8, 5))
    graph = analyse(model, (torch.randn(1, 3),)).graph
    assert graph.batch is None
    text = r"^its forward can be traced; its batch cannot be open: shape '\[8\]' is invalid for input of size 16"
    assert re.match(rf"{text} \(test_trace.py, line \d+: return net\.fc\(net\.a\(x\)\.reshape\(8\)\)\)$", graph.why)


def test_an_assertion_of_ours_is_not_taken_for_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {}
    exec(compile("def fails(*_):\n    assert False, 'ours'", tracer.__file__, "exec"), space)
    monkeypatch.setattr(tracer.ValueTracer, "_note", space["fails"])
    with pytest.raises(AssertionError, match="ours"):
        trace(nn.Linear(3, 5), (vectors(),))
