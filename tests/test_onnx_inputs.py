"""Inputs made up from the signature of an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from mdp_fx.errors import MdpFxError
from mdp_fx.onnx_inputs import onnx_inputs
from tests.onnx_files import FLOAT, write_onnx

IMAGE = (torch.zeros(4, 3, 32, 48),)


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 8)),
        (("N", 3, 8, 8), (4, 3, 8, 8)),
        (("N", 3, "H", "W"), (4, 3, 32, 48)),
        ((None, 3, None, 8), (4, 3, 32, 8)),
        (("N", "T"), (4, 1)),
        (("N", "N"), (4, 4)),
        ((5, "T", "T"), (5, 1, 1)),
        ((), ()),
    ],
)
def test_open_sizes_come_from_what_it_is_compared_with(
    tmp_path: Path, shape: tuple[int | str | None, ...], made: tuple[int, ...]
) -> None:
    path = write_onnx(tmp_path / "m.onnx", {"x": (FLOAT, shape)})
    (x,) = onnx_inputs(path, IMAGE)
    assert tuple(x.shape) == made


def test_several_inputs_share_their_names(tmp_path: Path) -> None:
    sizes = {"image": (FLOAT, ("N", 3, "S", 48)), "mask": (FLOAT, ("N", "S"))}
    image, mask = onnx_inputs(write_onnx(tmp_path / "m.onnx", sizes), IMAGE)
    assert tuple(image.shape) == (4, 3, 32, 48)
    assert tuple(mask.shape) == (4, 32)
    assert [tuple(each.shape) for each in onnx_inputs(tmp_path / "m.onnx", ())] == [(1, 3, 1, 48), (1, 1)]


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "UINT8", "INT8", "INT16", "INT32", "INT64", "BOOL"])
def test_values_are_of_the_right_type(tmp_path: Path, kind: str) -> None:
    path = write_onnx(tmp_path / "m.onnx", {"x": (TensorProto.DataType.Value(kind), (64, 4))})
    (x,) = onnx_inputs(path, ())
    name = kind.lower()
    assert str(x.dtype).removeprefix("torch.") == {"float": "float32", "double": "float64"}.get(name, name)
    # larger whole numbers may be positions: 0 is one everywhere
    assert len(x.unique()) == 1 if kind in ("INT16", "INT32", "INT64") else len(x.unique()) > 1
    assert torch.equal(x, onnx_inputs(path, ())[0])


def test_stored_weights_are_no_inputs(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, FLOAT, (2,)) for name in ("x", "w", "y")]
    weight = helper.make_tensor("w", FLOAT, (2,), [1.0, 2.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:2], values[2:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert len(onnx_inputs(tmp_path / "m.onnx", ())) == 1


def test_what_cannot_be_made_up_is_refused(tmp_path: Path) -> None:
    for name, value, says in (
        ("text", (TensorProto.STRING, (1,)), "input x of .*text.onnx is of type STRING, for which no values"),
        ("rank", (FLOAT, None), "input x of .*rank.onnx is no tensor of a known rank"),
        ("none", (FLOAT, (2, 0)), "input x of .*none.onnx has no entries: its axis 1 has size 0"),
        ("huge", (FLOAT, (2**40, 2**20)), "no memory for input x of .*huge.onnx, of shape"),
    ):
        path = write_onnx(tmp_path / f"{name}.onnx", {"x": value})
        with pytest.raises(MdpFxError, match=says):
            onnx_inputs(path, ())


def test_a_size_below_nothing_is_open(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "open.onnx", {"x": (FLOAT, (-1, 3))})
    assert [tuple(x.shape) for x in onnx_inputs(path, (torch.zeros(4, 3),))] == [(4, 3)]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello, this is no model")
    (tmp_path / "empty.onnx").touch()
    whole = write_onnx(tmp_path / "m.onnx", {"x": (FLOAT, (1,))}).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "empty", "cut"):
        with pytest.raises(MdpFxError, match=rf"{name}\.onnx is not an ONNX model, or is (empty|damaged)"):
            onnx_inputs(tmp_path / f"{name}.onnx", ())
    with pytest.raises(MdpFxError, match=r"cannot read .*none\.onnx: no such file"):
        onnx_inputs(tmp_path / "none.onnx", ())
    with pytest.raises(MdpFxError, match="is a folder"):
        onnx_inputs(tmp_path, ())
