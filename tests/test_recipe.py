from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mdp_fx.api import apply
from mdp_fx.errors import RecipeError
from mdp_fx.recipe import Recipe, fingerprint
from tests.zoo import FireModules, image


def make_recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "kept": {"conv1": [0, 2, 5], "conv2": []},
        "removed_blocks": ["layer1.0"],
        "group_sizes": {"conv1": 6, "conv2": 4, "conv3": 8},
        "method": "mdp",
        "target": "onnxruntime:cpu",
        "budgets": {"latency": 0.5},
        "predicted": {"latency": 0.49},
        "certificate": {"gap": 0.0, "status": "optimal"},
        "importance": "l2",
        "step": 8,
        "input_shapes": [[1, 3, 32, 32]],
        "input_dtypes": ["float32"],
        "fingerprint": "ab" * 32,
        "versions": {"torch": "2"},
    }
    return Recipe(**{**values, **changes})


def test_a_recipe_survives_a_file(tmp_path: Path) -> None:
    recipe = make_recipe()
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert json.loads((tmp_path / "recipe.json").read_text())["format"] == "mdp-fx recipe"


def test_unbounded_gaps_become_null() -> None:
    data = make_recipe(certificate={"gap": float("inf"), "rounds": [float("nan"), 1.0]}).to_json()
    assert data["certificate"] == {"gap": None, "rounds": [None, 1.0]}
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "other", "not an mdp-fx recipe"),
        ("version", 2, "format version 2"),
        ("kept", {"conv1": [0, 0]}, "not ascending"),
        ("kept", {"conv1": [-1]}, "not ascending"),
        ("kept", {"conv1": [6]}, "below 6"),
        ("kept", {"other": [1]}, "no size"),
        ("kept", {"conv1": [1.5]}, "'kept' has an unusable value"),
        ("kept", {"conv1": [True]}, "'kept' has an unusable value"),
        ("step", 0, "'step'"),
        ("removed_blocks", "layer1", "'removed_blocks'"),
        ("budgets", {"latency": "1"}, "'budgets'"),
        ("input_shapes", [3, 32], "'input_shapes'"),
        ("input_dtypes", ["nn"], "'input_dtypes'"),
        ("front_end", "auto", "'front_end'"),
    ],
)
def test_damaged_recipes_are_refused(field: str, value: object, message: str) -> None:
    data = {**make_recipe().to_json(), field: value}
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(data)


def test_a_missing_field_is_named() -> None:
    data = make_recipe().to_json()
    del data["kept"]
    with pytest.raises(RecipeError, match="'kept' is missing"):
        Recipe.from_json(data)


def test_a_recipe_from_before_there_was_a_choice_was_traced() -> None:
    data = make_recipe(front_end="export").to_json()
    assert Recipe.from_json(data).front_end == "export"
    del data["front_end"]
    assert Recipe.from_json(data).front_end == "symbolic"


def test_a_recipe_without_a_branch_is_applied_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FireModules().eval()
    recipe = make_recipe(
        kept={"one.left": [], "one.right": [0, 3]},
        removed_blocks=["one.left"],
        group_sizes={"one.left": 10, "one.right": 12},
        input_shapes=[[2, 3, 8, 8]],
        fingerprint=fingerprint(model),
    )
    recipe.save(tmp_path / "recipe.json")
    slim = apply(model, Recipe.load(tmp_path / "recipe.json"))
    assert slim.get_parameter("two.squeeze.weight").shape == (5, 2, 1, 1)
    assert "one.left" not in dict(slim.named_modules())
    assert slim(image()).shape == (2, 5)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    with pytest.raises(RecipeError, match=r"cannot read recipe .*no such file"):
        Recipe.load(path)
    for content in (b"{", b"\xff\xfe", b"[" * 100000, b"[]"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="not a") as caught:
            Recipe.load(path)
        assert "\n" not in str(caught.value)


def test_fingerprint_depends_on_names_types_and_values_only() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    print_of_net = fingerprint(net)
    assert fingerprint(net.to(memory_format=torch.channels_last)) == print_of_net
    named = nn.ModuleDict({"a": net[0], "b": net[1]})
    assert fingerprint(named) != print_of_net
    assert fingerprint(nn.Sequential(net[0], net[1]).bfloat16()) != print_of_net
    net.float()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1
    assert fingerprint(net) != print_of_net
