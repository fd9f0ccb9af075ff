"""The oracle: a pruned network equals the dense one in which everything that was dropped is zero."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from mdp_fx.graph.axis_sizes import kept_size
from mdp_fx.pipeline import analyse, rewrite
from tests.cifar_resnet import resnet56
from tests.pruning import (
    error,
    joined,
    parity_error,
    prune_randomly,
    random_kept,
    random_removed,
    randomise,
    reference,
    tensors,
)
from tests.zoo import ZOO, Specimen, image

FLOAT64_LIMIT = 1e-9
FLOAT32_LIMIT = 1e-4


def _torchvision(name: str) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: _torchvision("resnet18"), 32),
    "resnet50": (lambda: _torchvision("resnet50"), 32),
    "vgg16_bn": (lambda: _torchvision("vgg16_bn"), 32),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), 32),
    "densenet121": (lambda: _torchvision("densenet121"), 32),
    "cifar_resnet56": (resnet56, 32),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_the_zoo_has_the_groups_and_blocks_a_person_finds(specimen: Specimen) -> None:
    analysis = analyse(specimen.make(), specimen.inputs())
    assert tuple(sorted(group.size for group in analysis.groups)) == specimen.groups
    assert tuple(block.name for block in analysis.blocks.removable) == specimen.blocks
    assert analysis.blocks.exclusive == specimen.exclusive


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_zoo_parity(specimen: Specimen, seed: int) -> None:
    torch.manual_seed(seed)
    share = (0.5, 0.5, 0.25, 0.9)[seed]
    assert parity_error(randomise(specimen.make(), seed), specimen.inputs(), seed, share) <= FLOAT64_LIMIT


@pytest.mark.parametrize("name", NETWORKS)
def test_network_parity(name: str) -> None:
    make, side = NETWORKS[name]
    model = randomise(make())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert parity_error(model, (image(side=side),), seed=1) <= FLOAT64_LIMIT

    model.eval()
    part = (image(side=side),)
    analysis, slim, zeroed, _ = prune_randomly(model, part, seed=2)
    with torch.no_grad():
        expected, actual = zeroed.run(*part), slim(*part)
    assert float((expected - actual).norm() / expected.norm()) <= FLOAT32_LIMIT
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(module.training is False for module in model.modules())
    assert sum(p.numel() for p in slim.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    # Every module of the slim network is one of the dense network.
    names = {name for name, _ in model.named_modules()}
    assert {name for name, module in slim.named_modules() if next(module.children(), None) is None} <= names
    assert analysis.graph.batch is not None


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_float32_parity(specimen: Specimen) -> None:
    inputs = specimen.inputs()
    _, slim, zeroed, _ = prune_randomly(randomise(specimen.make()).eval(), inputs, seed=3)
    with torch.no_grad():
        for one, other in zip(tensors(zeroed.run(*inputs)), tensors(slim(*inputs)), strict=True):
            assert float((one - other).norm() / one.norm()) <= FLOAT32_LIMIT


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_all_batch_sizes_give_the_same_rows(specimen: Specimen) -> None:
    inputs = specimen.inputs()
    slim = prune_randomly(randomise(specimen.make()).eval(), inputs, seed=4)[1]
    many = tuple(torch.cat([value, value * 0.5, value + 1])[:5] for value in inputs)
    with torch.no_grad():
        single = joined([slim(*(value[i : i + 1] for value in many)) for i in range(5)])
        assert error(single, slim(*many)) < 1e-5


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_a_batch_of_one_is_traced_open(specimen: Specimen) -> None:
    model = randomise(specimen.make()).eval()
    inputs = specimen.inputs()
    single = tuple(value[:1] for value in inputs)
    analysis = analyse(model, single)
    slim = rewrite(analysis, {}, ())
    with torch.no_grad():
        assert error(model(*inputs), slim(*inputs)) < 1e-5


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_the_dense_network_and_its_inputs_stay_as_they_are(specimen: Specimen) -> None:
    model, inputs = randomise(specimen.make()), specimen.inputs()
    model.train()
    before = copy.deepcopy((model.state_dict(), inputs))
    mode = [module.training for module in model.modules()]
    slots = [set(vars(module)) for module in model.modules()]
    flags = [getattr(module, "inplace", None) for module in model.modules()]
    _, slim, _, _ = prune_randomly(model, inputs, seed=5)
    for parameter in slim.parameters():
        parameter.data.zero_()
    for buffer in slim.buffers():
        buffer.zero_()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before[0].items())
    assert all(torch.equal(old, new) for old, new in zip(before[1], inputs, strict=True))
    assert [module.training for module in model.modules()] == mode
    assert [set(vars(module)) for module in model.modules()] == slots
    assert [getattr(module, "inplace", None) for module in model.modules()] == flags


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_train_mode_learns_and_eval_mode_comes_back(specimen: Specimen) -> None:
    inputs = specimen.inputs()
    slim = prune_randomly(randomise(specimen.make()).eval(), inputs, seed=6)[1]
    with torch.no_grad():
        before = tensors(slim(*inputs))
    slim.train()
    assert all(module.training for module in slim.modules())
    loss = sum((value.square().mean() for value in tensors(slim(*inputs))), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in slim.parameters()]
    assert gradients
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    norms = [module for module in slim.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked > 0 for norm in norms)
    torch.optim.SGD(slim.parameters(), 0.1).step()
    slim.eval()
    with torch.no_grad():
        assert error(before, slim(*inputs)) > 1e-6


def test_functional_dropout_follows_the_mode() -> None:
    specimen = next(s for s in ZOO if s.name == "functional_dropout")
    slim = prune_randomly(specimen.make().eval(), specimen.inputs(), seed=7)[1]
    (x,) = specimen.inputs()
    with torch.no_grad():
        assert torch.equal(slim(x), slim(x))
        slim.train()
        slim.stem.eval()
        assert not torch.equal(slim(x), slim(x))


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_slim_networks_copy_and_pickle(specimen: Specimen) -> None:
    inputs = specimen.inputs()
    slim = prune_randomly(randomise(specimen.make()).eval(), inputs, seed=8)[1]
    with torch.no_grad():
        expected = tensors(slim(*inputs))
        for twin in (copy.deepcopy(slim), pickle.loads(pickle.dumps(slim))):
            assert isinstance(twin, fx.GraphModule)
            assert all(torch.equal(a, b) for a, b in zip(expected, tensors(twin(*inputs)), strict=True))


@pytest.mark.parametrize("name", ["plain_residual", "splits", "vgg", "grouped"])
def test_slim_networks_compile(name: str) -> None:
    specimen = next(s for s in ZOO if s.name == name)
    inputs = specimen.inputs()
    slim = prune_randomly(randomise(specimen.make()).eval(), inputs, seed=9)[1]
    compiled = torch.compile(slim, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert error(slim(*inputs), compiled(*inputs)) < 1e-6


@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_every_node_of_the_slim_network_has_the_shape_of_its_type(specimen: Specimen) -> None:
    inputs = specimen.inputs()
    analysis = analyse(randomise(specimen.make()).eval(), inputs)
    rng = np.random.default_rng(10)
    kept = random_kept(analysis.groups, rng)
    slim = rewrite(analysis, kept, ())
    sizes = {group.dim: len(kept[group.name]) for group in analysis.groups}
    checked = 0

    class Checker(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            nonlocal checked
            value = super().run_node(n)
            types = analysis.graph.types.get(n.name)
            if isinstance(value, Tensor) and isinstance(types, tuple):
                wanted = [kept_size(axis, lambda dim: sizes.get(dim, dim.size)) for axis in types]
                assert list(value.shape) == wanted, n.format_node()
                checked += 1
            return value

    with torch.no_grad():
        Checker(slim).run(*inputs)
    assert checked > 3


@pytest.mark.parametrize("specimen", [s for s in ZOO if s.blocks], ids=str)
def test_each_block_alone_and_all_that_may_go_together(specimen: Specimen) -> None:
    inputs = tuple(value.double() for value in specimen.inputs())
    analysis = analyse(randomise(specimen.make()).double().eval(), inputs)
    names = [block.name for block in analysis.blocks.removable]
    most = random_removed(analysis.blocks, np.random.default_rng(11), share=1.0)
    for removed in [[name] for name in names] + [most]:
        slim = rewrite(analysis, {}, removed)
        with torch.no_grad():
            expected = reference(analysis, {}, removed).run(*inputs)
            assert error(expected, slim(*inputs)) <= 1e-12
            assert error(analysis.graph.module(*inputs), slim(*inputs)) > 1e-9
        gone = {n for b in analysis.blocks.removable if b.name in removed for n in b.nodes}
        assert gone.isdisjoint(node.name for node in slim.graph.nodes)
