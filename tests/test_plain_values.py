from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mdp_fx.errors import ModelError
from mdp_fx.plain_values import decode, encode

VALUES: list[Any] = [
    None,
    True,
    -3,
    2.5,
    float("inf"),
    "text; with 'quotes'",
    1 + 2j,
    ...,
    slice(None, -1, 2),
    range(1, 9, 2),
    torch.float16,
    torch.channels_last,
    torch.strided,
    torch.device("cuda:1"),
    torch.Size([1, 2]),
    (1, [2, {"a": (3,), 4: None}], {5, 6}, frozenset({7})),
]


def nothing(_: object) -> None:
    return None


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_survive(value: Any) -> None:
    data = encode(value, nothing)
    back = decode(json.loads(json.dumps(data)), {})
    assert back == value
    assert type(back) is type(value)


def test_subclasses_of_numbers_and_strings_become_plain() -> None:
    class Flag(int):
        pass

    assert type(encode(Flag(1), nothing)) is int
    assert type(encode(torch.__version__, nothing)) is str


def test_special_values_come_first() -> None:
    class Node:
        name = "conv"

    def special(value: object) -> list[Any] | None:
        return ["node", value.name] if isinstance(value, Node) else None

    node = Node()
    assert decode(encode([node, 1], special), {"node": {"conv": node}.__getitem__}) == [node, 1]


def test_objects_are_refused() -> None:
    with pytest.raises(ModelError, match="type object"):
        encode([object()], nothing)


@pytest.mark.parametrize(
    "data",
    [
        ["eval", "1"],
        ["dtype", "load"],
        ["dtype", "nn"],
        ["memory_format", "float32"],
        ["device", "nowhere"],
        ["dict", [1]],
        ["list"],
        [["list", []], []],
        {"a": 1},
        b"bytes",
        ["complex", ["x", 1, 2]],
        ["dict", [[["list", []], 1]]],
    ],
    ids=repr,
)
def test_other_data_is_refused(data: Any) -> None:
    with pytest.raises(ModelError, match="unreadable value"):
        decode(data, {})
