"""Layer masks applied to networks, held against the dense network masked by hooks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import mdp_fx
from mdp_fx.errors import RecipeError
from mdp_fx.layer_masks import METHOD, apply_masks
from mdp_fx.mask_file import read_masks
from mdp_fx.recipe import Recipe
from tests.pruning import randomise

MASK_FILE = Path(__file__).parent.parent.parent / "shared" / "data" / "masks" / "resnet50_step15_mask.pkl"


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, entry: int, inner: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(entry, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        self.down = None if entry == out else nn.Sequential(nn.Conv2d(entry, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class Small(nn.Module):
    """A stem, two bottlenecks, a depthwise layer, two branches, a product, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = Bottleneck(8, 6, 16), Bottleneck(16, 6, 16)
        self.expand, self.depthwise = nn.Conv2d(16, 10, 1), nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False)
        self.left, self.right = nn.Conv2d(10, 4, 1, bias=False), nn.Conv2d(10, 5, 1, bias=False)
        self.value, self.gate = nn.Conv2d(9, 12, 1, bias=False), nn.Conv2d(9, 12, 1, bias=False)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(torch.relu(self.bn(self.stem(x)))))
        x = torch.relu(self.depthwise(self.expand(x)))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.grouped(self.value(x) * self.gate(x))
        return self.head(x.mean((2, 3)))


# By hand: the norm that follows a layer, and the depthwise layer that follows one.
FOLLOWERS = {f"{block}.conv{i}": f"{block}.bn{i}" for block in ("one", "two") for i in (1, 2, 3)} | {
    "stem": "bn",
    "one.down.0": "one.down.1",
    "expand": "depthwise",
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    small = randomise(Small()).double().eval()
    small.get_submodule("head").weight.data *= 1000
    return small


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def keep(size: int, *units: int) -> Tensor:
    mask = torch.zeros(size)
    mask[list(units)] = 1
    return mask


def masked(network: nn.Module, masks: Mapping[str, Tensor], followers: Mapping[str, str] = FOLLOWERS) -> nn.Module:
    """The dense network with the channels that masks drop zeroed as they are computed."""
    dense = copy.deepcopy(network)
    for name, mask in masks.items():
        for part in filter(None, (name, followers.get(name))):
            wide = mask.double()[:, None, None]
            dense.get_submodule(part).register_forward_hook(lambda _m, _i, out, wide=wide: out * wide)
    return dense


def difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        expected, found = one(inputs), other(inputs)
    assert expected.abs().max() > 1e-3
    return float((expected - found).abs().max())


STAGE = keep(16, 0, 2, 3, 5, 8, 13)
SOME = {
    "stem": keep(8, 1, 4, 5),
    "one.conv1": keep(6, 0, 5),
    "one.conv2": keep(6, 1, 2, 3),
    "one.conv3": STAGE,
    "one.down.0": STAGE,
    "two.conv1": keep(6, 3),
    "two.conv2": keep(6, 2, 4),
    "two.conv3": STAGE,
    "expand": keep(10, 0, 1, 9),
    "left": keep(4, 3),
    "right": keep(5, 0, 2),
    "head": torch.ones(4),
}
NO_TWO = {name: torch.zeros(len(SOME[name])) for name in ("two.conv1", "two.conv2", "two.conv3")}


def test_masked_layers_keep_exactly_their_channels(network: nn.Module, inputs: Tensor) -> None:
    result = apply_masks(network, SOME, inputs)
    for name, mask in SOME.items():
        layer = result.module.get_submodule(name)
        assert layer.weight.shape[0] == int(mask.sum()), name
    assert difference(masked(network, SOME), result.module, inputs) < 1e-12
    assert difference(network, result.module, inputs) > 1e-3
    assert result.report.removed_blocks == ()
    assert result.report.warnings == ()
    assert result.report.layers == 12
    assert result.report.params.slim == sum(p.numel() for p in result.module.parameters()) < result.report.params.dense


def test_layers_without_a_mask_follow_those_they_are_coupled_with(network: nn.Module, inputs: Tensor) -> None:
    result = apply_masks(network, {"module.two.conv3": STAGE.bool()}, inputs)
    assert result.module.get_submodule("one.down.0").out_channels == 6
    assert result.module.get_submodule("stem").out_channels == 8


def test_a_block_without_channels_is_removed_and_its_group_lives_on(network: nn.Module, inputs: Tensor) -> None:
    masks = SOME | NO_TWO
    result = apply_masks(network, masks, inputs)
    assert result.recipe.removed_blocks == ["two"]
    assert not hasattr(result.module, "two")
    assert result.module.get_submodule("one.conv3").out_channels == 6
    assert difference(masked(network, masks), result.module, inputs) < 1e-12
    assert result.report.warnings == ()


def test_a_shortcut_without_channels_is_removed(network: nn.Module, inputs: Tensor) -> None:
    masks = SOME | {"one.down.0": torch.zeros(16)}
    result = apply_masks(network, masks, inputs)
    assert result.recipe.removed_blocks == ["one.down"]
    assert difference(masked(network, masks), result.module, inputs) < 1e-12


def test_a_block_that_one_layer_closes_is_removed_as_halp_does_with_a_warning(
    network: nn.Module, inputs: Tensor
) -> None:
    result = apply_masks(network, SOME | {"two.conv1": torch.zeros(6)}, inputs)
    assert result.recipe.removed_blocks == ["two"]
    (warning,) = result.report.warnings
    assert warning.startswith(
        "block two is removed because nothing passes it; what two.conv2, two.conv3 would still add"
    )
    gone = difference(masked(network, SOME | NO_TWO), result.module, inputs)
    assert gone < 1e-12


def test_a_branch_without_channels_leaves_the_concatenation(network: nn.Module, inputs: Tensor) -> None:
    masks = SOME | {"right": torch.zeros(5)}
    result = apply_masks(network, masks, inputs)
    assert result.recipe.removed_blocks == ["right"]
    assert result.recipe.kept["right"] == []
    assert difference(masked(network, masks), result.module, inputs) < 1e-12


def test_the_recipe_says_where_the_structure_comes_from_and_can_be_repeated(
    network: nn.Module, inputs: Tensor, tmp_path: Path
) -> None:
    result = apply_masks(network, SOME | NO_TWO, inputs)
    recipe = result.recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert (recipe.method, recipe.importance, recipe.target) == (METHOD, "none", "")
    assert recipe.certificate == {"method": METHOD, "layers": 12, "source": "Python"}
    assert not recipe.budgets
    assert not recipe.predicted
    again = mdp_fx.apply(network, recipe)
    assert difference(again, result.module, inputs) == 0
    mdp_fx.save(result, tmp_path / "slim.pt")
    loaded = mdp_fx.load_slim(tmp_path / "slim.pt")
    assert difference(loaded.module, result.module, inputs) == 0
    assert loaded.recipe == recipe
    assert loaded.report["source"] == "Python"


def test_group_masks_from_python_belong_to_each_of_their_layers(network: nn.Module, inputs: Tensor) -> None:
    some = keep(6, 0, 3, 5)
    alone = apply_masks(network, {"one.conv1": some}, inputs)
    grouped = apply_masks(network, {("one.conv1",): some}, inputs)
    assert grouped.recipe.kept == alone.recipe.kept


def test_the_dense_network_stays_as_it_was(network: nn.Module, inputs: Tensor) -> None:
    before = copy.deepcopy(network.state_dict())
    apply_masks(network, SOME | NO_TWO, inputs)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({"module.three.conv1": STAGE}, "the network has no layer 'module.three.conv1': the masks belong to another"),
        (
            {"stem": keep(8, 0), "module.stem": keep(8, 0)},
            "the masks name layer 'stem' twice, with and without 'module.'",
        ),
        (
            {"module.two.conv1": keep(64, 0)},
            "the mask of layer 'two.conv1' has 64 entries and the layer 6 output channels: the masks belong to another",
        ),
        ({"head": torch.ones(10)}, "the mask of layer 'head' has 10 entries and the layer 4 output channels"),
        ({"bn": keep(8, 0)}, "'bn' has a mask, and is a BatchNorm2d, which makes no channels of its own"),
        ({"head": keep(4, 0)}, "layer 'head' cannot lose the channels that its mask drops: output of the network"),
        (
            {"one.conv3": STAGE, "two.conv3": keep(16, 0, 2, 3, 5, 8, 14)},
            "the masks of layers 'one.conv3' and 'two.conv3' differ in 2 of 16 channels, but both make channel group "
            "'one.conv3': they must agree",
        ),
        ({"stem": keep(8)}, "the masks leave nothing of channel group 'stem' (layers 'stem'): the rest of the network"),
        (
            {"one.conv3": keep(16), "one.down.0": keep(16), "two.conv3": keep(16)},
            "the masks leave nothing of blocks 'one' and 'one.down': one of them must stay",
        ),
        (
            {"value": keep(12)},
            "the mask of layer 'value' is all zero, but 'gate' of the same channel group 'value' stays and no block",
        ),
        (
            {"grouped": keep(12, 0, 1, 4)},
            "the mask of layer 'grouped' drops 1 of the channels that can only go together, as in the groups",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    network: nn.Module, inputs: Tensor, masks: dict[str, Tensor], says: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        apply_masks(network, masks, inputs)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_a_file_that_says_nothing_of_some_groups_may_be_of_another_network(
    network: nn.Module, inputs: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "masks.pkl"
    path.write_bytes(pickle.dumps(SOME))
    (warning,) = apply_masks(network, path, inputs).report.warnings
    assert warning == (
        "the masks say nothing of 3 of 12 channel groups, such as 'value', which keep all: "
        "were they made for another network?"
    )
    path.write_bytes(pickle.dumps(SOME | {"value": torch.ones(12), "grouped": torch.ones(12)}))
    assert apply_masks(network, path, inputs).report.warnings == ()


def test_whole_groups_of_a_grouped_convolution_may_go(network: nn.Module, inputs: Tensor) -> None:
    masks = {name: keep(12, 0, 1, 8, 9) for name in ("value", "gate", "grouped")}
    result = apply_masks(network, masks, inputs)
    assert result.module.get_submodule("grouped").groups == 2
    assert difference(masked(network, masks), result.module, inputs) < 1e-12


@pytest.mark.skipif(not MASK_FILE.exists(), reason="the mask file published with MDP is not here")
def test_the_masks_of_mdp_on_another_network() -> None:
    says = "the network has no layer 'module.layer1.2.conv1': the masks belong to another network"
    with pytest.raises(RecipeError, match=says):
        apply_masks(torchvision.models.resnet18(weights=None).eval(), MASK_FILE, torch.randn(1, 3, 32, 32))


@pytest.mark.skipif(not MASK_FILE.exists(), reason="the mask file published with MDP is not here")
def test_the_masks_of_mdp_on_resnet50() -> None:
    torch.manual_seed(0)
    dense = randomise(torchvision.models.resnet50(weights=None)).double().eval()
    image = torch.randn(1, 3, 64, 64).double()
    masks = {name.removeprefix("module."): mask for name, mask in read_masks(MASK_FILE).items()}
    result = apply_masks(dense, MASK_FILE, image)
    assert result.report.layers == len(masks) == 53
    for name, mask in masks.items():
        assert result.module.get_submodule(name).out_channels == int(mask.sum()), name
    followers = {
        name: f"{name[:-1]}1" if name.endswith("downsample.0") else name.replace("conv", "bn") for name in masks
    }
    assert difference(masked(dense, masks, followers), result.module, image) < 1e-12
    assert result.recipe.certificate["source"] == MASK_FILE.name
    assert len(result.recipe.certificate["sha256"]) == 64
