"""Sliced channels: every parameter entry by hand, sizes written again, refusals of recipes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdp_fx.errors import RecipeError
from mdp_fx.graph.axes import Axis, Dim, constant
from mdp_fx.passes.choices import Analysis
from mdp_fx.passes.slice_channels import slice_channels, slice_tensor, unit_masks
from mdp_fx.pipeline import analyse, rewrite
from tests.pruning import error, random_kept, randomise, reference
from tests.zoo import ZOO, Specimen, image


def specimen(name: str) -> Specimen:
    return next(s for s in ZOO if s.name == name)


def analysed(name: str) -> tuple[nn.Module, Analysis]:
    torch.manual_seed(0)
    chosen = specimen(name)
    model = randomise(chosen.make()).eval()
    return model, analyse(model, chosen.inputs())


def test_each_tensor_keeps_exactly_the_kept_units() -> None:
    model, analysis = analysed("vgg")
    kept = {"features.0": [1, 4, 7], "features.3": [0, 5], "classifier.0": [2, 3, 13]}
    slim = slice_channels(analysis.graph, unit_masks(analysis.groups, kept)).state_dict()
    dense = model.state_dict()
    flat = [unit * 9 + place for unit in (0, 5) for place in range(9)]
    expected = {
        "features.0.weight": dense["features.0.weight"][[1, 4, 7]],
        "features.0.bias": dense["features.0.bias"][[1, 4, 7]],
        "features.3.weight": dense["features.3.weight"][[0, 5]][:, [1, 4, 7]],
        "features.3.bias": dense["features.3.bias"][[0, 5]],
        "classifier.0.weight": dense["classifier.0.weight"][[2, 3, 13]][:, flat],
        "classifier.0.bias": dense["classifier.0.bias"][[2, 3, 13]],
        "classifier.3.weight": dense["classifier.3.weight"][:, [2, 3, 13]],
        "classifier.3.bias": dense["classifier.3.bias"],
    }
    assert slim.keys() == expected.keys()
    assert all(torch.equal(slim[name], value) for name, value in expected.items())


def test_norms_are_sliced_with_their_statistics() -> None:
    model, analysis = analysed("plain_residual")
    slim = slice_channels(analysis.graph, unit_masks(analysis.groups, {"one.first.0": [3, 8]}))
    norm, dense = slim.get_submodule("one.first.1"), model.get_submodule("one.first.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 2
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(norm, name), getattr(dense, name)[[3, 8]])
    assert norm.num_batches_tracked == dense.num_batches_tracked


def test_module_sizes_say_what_is_left() -> None:
    _, analysis = analysed("grouped")
    kept = {"stem.0": [0, 3], "stem.0#2": [1], "grouped.0": [0, 2, 4], "point.0": [5, 1]}
    slim = slice_channels(analysis.graph, unit_masks(analysis.groups, kept))
    parts: list[Any] = [slim.get_submodule(name) for name in ("stem.0", "grouped.0", "point.0", "head.fc")]
    stem, grouped, point, head = parts
    assert (stem.in_channels, stem.out_channels, stem.groups) == (3, 2, 1)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (2, 6, 2)
    assert (point.in_channels, point.out_channels, point.groups) == (6, 2, 1)
    assert (head.in_features, head.out_features) == (2, 5)


def test_depthwise_convolutions_stay_depthwise() -> None:
    _, analysis = analysed("depthwise")
    kept = {"stem.0": [0, 2, 3], "multiply.0": [1, 2], "point.0": [4, 5, 6, 9]}
    slim = slice_channels(analysis.graph, unit_masks(analysis.groups, kept))
    parts: list[Any] = [slim.get_submodule("multiply.0"), slim.get_submodule("depth.0")]
    multiply, depth = parts
    assert (multiply.in_channels, multiply.out_channels, multiply.groups) == (3, 6, 3)
    assert (depth.in_channels, depth.out_channels, depth.groups) == (4, 4, 4)


def test_the_order_of_kept_indices_does_not_matter() -> None:
    _, analysis = analysed("plain_residual")
    one, other = (
        slice_channels(analysis.graph, unit_masks(analysis.groups, {"stem.0": units})).state_dict()
        for units in ([1, 7, 12], [12, 1, 7])
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_is_not_named_keeps_all_its_units() -> None:
    model, analysis = analysed("plain_residual")
    slim = slice_channels(analysis.graph, {})
    dense = model.state_dict()
    assert {name: value.shape for name, value in slim.state_dict().items()} == {
        name: value.shape for name, value in dense.items()
    }
    assert all(torch.equal(value, dense[name]) for name, value in slim.state_dict().items())


@pytest.mark.parametrize("name", ["plain_residual", "twice", "tied", "splits"])
def test_slim_and_dense_share_no_memory(name: str) -> None:
    model, analysis = analysed(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    slim = slice_channels(analysis.graph, {})
    for tensor in [*slim.parameters(), *slim.buffers()]:
        tensor.data.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_tied_weight_stays_tied() -> None:
    _, analysis = analysed("tied")
    slim = slice_channels(analysis.graph, unit_masks(analysis.groups, {"up": [0, 1, 2], "left": [4, 5]}))
    parts: list[Any] = [slim.get_submodule("up"), slim.get_submodule("other")]
    up, other = parts
    assert up.weight is other.weight
    assert tuple(up.weight.shape) == (3, 2)


def test_frozen_weights_stay_frozen() -> None:
    torch.manual_seed(0)
    model = specimen("vgg").make().eval()
    model.get_submodule("features.0").requires_grad_(False)
    analysis = analyse(model, specimen("vgg").inputs())
    slim = slice_channels(analysis.graph, unit_masks(analysis.groups, {"features.0": [0, 1]}))
    flags = {name: parameter.requires_grad for name, parameter in slim.named_parameters()}
    assert flags == {name: not name.startswith("features.0.") for name in flags}
    assert all(type(parameter) is nn.Parameter for parameter in slim.parameters())


@pytest.mark.parametrize("chosen", ZOO, ids=str)
def test_a_slim_network_with_everything_kept_is_itself(chosen: Specimen) -> None:
    torch.manual_seed(0)
    inputs = tuple(value.double() for value in chosen.inputs())
    analysis = analyse(randomise(chosen.make()).double().eval(), inputs)
    rng = np.random.default_rng(0)
    kept = random_kept(analysis.groups, rng, share=0.6)
    slim = rewrite(analysis, kept, ())
    with torch.no_grad():
        assert error(reference(analysis, kept, ()).run(*inputs), slim(*inputs)) <= 1e-9
    again = rewrite(analyse(slim, inputs), {}, ())
    assert all(torch.equal(value, slim.state_dict()[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        assert error(slim(*inputs), again(*inputs)) <= 1e-12


def test_masks_are_by_dimension() -> None:
    _, analysis = analysed("vgg")
    first, second, _ = analysis.groups
    masks = unit_masks(analysis.groups, {first.name: [0, 7], second.name: [5]})
    assert set(masks) == {first.dim, second.dim}
    assert masks[first.dim].tolist() == [True, *[False] * 6, True]
    assert masks[second.dim].tolist() == [*[False] * 5, True]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"features.1": [0]}, "the network has no channel group 'features.1': the recipe belongs to another model"),
        ({"features.0": []}, "kept indices of group 'features.0' must be some of 0..7"),
        ({"features.0": [-1]}, "kept indices of group 'features.0' must be some of 0..7"),
        ({"features.0": [3, 8]}, "kept indices of group 'features.0' must be some of 0..7"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(kept: dict[str, list[int]], message: str) -> None:
    _, analysis = analysed("vgg")
    with pytest.raises(RecipeError) as caught:
        unit_masks(analysis.groups, kept)
    assert str(caught.value) == message


def test_what_a_removed_block_takes_along_keeps_nothing_whatever_is_said() -> None:
    _, analysis = analysed("vgg")
    for kept in ({}, {"features.0": []}, {"features.0": [1, 2]}):
        masks = unit_masks(analysis.groups, kept, {"features.0"})
        assert [int(mask.sum()) for mask in masks.values()] == [0]


def test_nothing_kept_is_refused_unless_a_block_goes() -> None:
    model, analysis = analysed("fire_modules")
    slim = rewrite(analysis, {"one.left": []}, ["one.left"])
    fire: Any = slim.get_submodule("two.squeeze")
    assert (fire.in_channels, tuple(fire.weight.shape)) == (12, (5, 12, 1, 1))
    assert torch.equal(fire.weight, model.get_parameter("two.squeeze.weight")[:, 10:])
    with pytest.raises(RecipeError, match=r"^kept indices of group 'one.left' must be some of 0..9$"):
        rewrite(analysis, {"one.left": []}, ["one.right"])


def test_one_tensor_by_hand() -> None:
    heads, width = Dim(2), Dim(3)
    weight = torch.arange(24.0).reshape(6, 4)
    masks = {heads: np.array([False, True]), width: np.array([True, False, True])}
    sliced = slice_tensor(weight, (Axis((heads, width)), constant(4)), masks)
    assert torch.equal(sliced, weight[[3, 5]])
    both = slice_tensor(weight[:, :3], (Axis((heads, width)), Axis((width,))), masks)
    assert torch.equal(both, weight[[3, 5]][:, [0, 2]])


def test_a_whole_tensor_is_copied() -> None:
    weight = torch.rand(4, 2)
    copied = slice_tensor(weight, (constant(4), constant(2)), {})
    assert torch.equal(copied, weight)
    assert copied.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)
            self.out = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.out(self.fc(x).relu())

    analysis = analyse(Small().to(dtype).eval(), (torch.randn(2, 4, dtype=dtype),))
    slim = rewrite(analysis, {"fc": [0, 4]}, ())
    assert {parameter.dtype for parameter in slim.parameters()} == {dtype}
    with torch.no_grad():
        assert slim(torch.randn(3, 4, dtype=dtype)).dtype == dtype


def test_a_vanishing_output_is_not_offered() -> None:
    model, analysis = analysed("plain_residual")
    # The classes are the network's output: no group names them, no slice touches them.
    assert not any(member.tensor == "head.fc.bias" for group in analysis.groups for member in group.members)
    slim = rewrite(analysis, {group.name: [0] for group in analysis.groups}, ())
    with torch.no_grad():
        assert slim(image()).shape == model(image()).shape == (2, 5)
