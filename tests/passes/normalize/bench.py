"""A small network with a given forward, and what is looked at after a normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from mdp_fx.graph.prune_graph import infer_types
from mdp_fx.graph.purity import is_pure, target_name
from mdp_fx.graph.trace import trace
from mdp_fx.graph.tracer import ALIASES, DTYPE, SHAPE
from mdp_fx.passes.normalize import normalize
from mdp_fx.passes.slice_channels import slice_channels
from tests.pruning import error, randomise, tensors
from tests.zoo import image

Body = Callable[["Bench", Tensor], Any]
Step = Callable[[fx.GraphModule], bool]

LIMIT = 1e-12


class Bench(nn.Module):
    """A convolution and what the spellings under test need; the forward is given."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.other = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(inplace=True)
        self.scale = nn.Buffer(torch.full((1, 4, 1, 1), 0.5))
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def traced_as_written(body: Body) -> tuple[fx.GraphModule, Tensor, list[Tensor]]:
    """A traced network before normalisation, an input, and what the network itself gives for it."""
    torch.manual_seed(0)
    net, x = Bench(body).eval(), image(side=4)
    with torch.no_grad():
        expected = tensors(copy.deepcopy(net)(x.clone()))
    return trace(net, (x,)).module, x, expected


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(copy.deepcopy(module)(x.clone()))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def impure(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if node.op not in ("placeholder", "output") and not is_pure(node)]


def name_of(body: Body) -> str:
    return body.__name__


class Recheck(fx.Interpreter):
    """Runs a network and compares what is recorded of every value with the value.

    Memory is compared for nodes that a step made: before it others may copy what they view after it.
    """

    def __init__(self, module: fx.GraphModule, before: set[str]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.before = before

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("placeholder", "output") and isinstance(value, Tensor):
            assert n.meta[SHAPE] == value.shape, n.format_node()
            assert n.meta[DTYPE] == value.dtype, n.format_node()
            memory = value.untyped_storage().data_ptr()
            values = [(source.name, self.env[source]) for source in n.all_input_nodes]
            operands = {name: x.untyped_storage().data_ptr() for name, x in values if isinstance(x, Tensor)}
            shared = {name for name, address in operands.items() if address == memory}
            # Without data a reshape is taken for a view: more memory may be said to be shared, never less.
            assert n.name in self.before or shared <= set(n.meta[ALIASES]), n.format_node()
            assert set(n.meta[ALIASES]) <= {source.name for source in n.all_input_nodes}, n.format_node()
        return value


def fresh(inputs: tuple[Tensor, ...], rows: int | None = None) -> tuple[Tensor, ...]:
    """Other inputs of the same kind, maybe with another number of examples."""
    generator = torch.Generator().manual_seed(7)
    result = []
    for x in inputs:
        shape = (rows or x.shape[0], *x.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        result.append(noise.to(x.dtype) if x.is_floating_point() else noise > 0.8)
    return tuple(result)


def normalized(model: nn.Module, *inputs: Tensor, step: Step = normalize) -> fx.GraphModule:
    """A network after one normalisation that had something to do, does nothing the second time, and keeps the numerics.

    Where types leave the batch open, other numbers of examples are compared as well.
    """
    model = randomise(model).double().eval()
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    traced = trace(model, wide)
    module = traced.module
    before = {node.name for node in module.graph.nodes}
    assert step(module) is True
    module.graph.lint()
    module.recompile()
    code = module.code
    assert step(module) is False
    assert module.code == code
    Recheck(module, before).run(*copy.deepcopy(traced.example_inputs))
    other = fresh(traced.example_inputs)
    with torch.no_grad():
        assert error(model(*copy.deepcopy(other)), module(*copy.deepcopy(other))) <= LIMIT
        normalize(module)
        graph = infer_types(traced)
        for rows in (1, 5) if graph.batch is not None else ():
            more = fresh(traced.example_inputs, rows)
            assert error(model(*copy.deepcopy(more)), slice_channels(graph, {})(*copy.deepcopy(more))) <= LIMIT
    return module


def left_alone(model: nn.Module, *inputs: Tensor, step: Step = normalize) -> fx.GraphModule:
    """A network in which a normalisation finds nothing to do."""
    module = trace(model.eval(), inputs).module
    code = module.code
    assert step(module) is False
    module.recompile()
    assert module.code == code
    return module


def targets(module: fx.GraphModule) -> list[str]:
    """What the nodes of a graph call or read, in order."""
    return [target_name(node.target) for node in module.graph.nodes if node.op not in ("placeholder", "output")]
