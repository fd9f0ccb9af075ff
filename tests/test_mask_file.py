"""Mask files: what is read, and what is refused without running it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mdp_fx.errors import MdpFxError
from mdp_fx.mask_file import is_mask_file, named_masks, read_masks

MASK = torch.tensor([1.0, 0.0, 1.0])


class Hostile:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-the-pickle",)


def dump(path: Path, content: object, **options: Any) -> Path:
    with path.open("wb") as file:
        pickle.dump(content, file, **options)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
def test_a_pickled_dictionary_is_read_whatever_its_protocol(tmp_path: Path, protocol: int) -> None:
    path = dump(tmp_path / "m.pkl", {"module.conv": MASK, "fc": MASK.bool()}, protocol=protocol)
    masks = read_masks(path)
    assert list(masks) == ["module.conv", "fc"]
    assert all(mask.dtype == torch.bool and mask.tolist() == [True, False, True] for mask in masks.values())
    assert is_mask_file(path)


def test_group_masks_belong_to_each_of_their_layers(tmp_path: Path) -> None:
    path = dump(tmp_path / "m.pkl", {("module.a", "module.b"): MASK, ("module.c",): MASK})
    assert list(read_masks(path)) == ["module.a", "module.b", "module.c"]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saved_is_read_too_but_bench_takes_it_for_a_network(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "m.pkl"
    torch.save({"conv": MASK}, path, _use_new_zipfile_serialization=not legacy)
    assert read_masks(path)["conv"].tolist() == [True, False, True]
    assert not is_mask_file(path)


def test_other_files_are_no_mask_files(tmp_path: Path) -> None:
    assert not is_mask_file(dump(tmp_path / "m.pt", {"conv": MASK}))
    assert not is_mask_file(tmp_path / "missing.pkl")
    (tmp_path / "folder.pkl").mkdir()
    assert not is_mask_file(tmp_path / "folder.pkl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"conv": Hostile()}, "m.pkl needs posix.mkdir: mask files hold dictionaries, strings and tensors only"),
        ({"conv": torch.nn.ReLU()}, "m.pkl needs torch.nn.modules.activation.ReLU: mask files hold"),
        ([MASK], "m.pkl holds a list, not masks by layer name"),
        ({}, "m.pkl holds an empty dictionary, not masks by layer name"),
        ({3: MASK}, "m.pkl has a int in place of a layer's name"),
        ({("a", "b"): MASK, "b": MASK}, "m.pkl names layer 'b' twice"),
        ({"conv": 0.5 * MASK}, "m.pkl: the mask of layer 'conv' has entries other than 0 and 1"),
        ({"conv": MASK * float("nan")}, "m.pkl: the mask of layer 'conv' has entries other than 0 and 1"),
        ({"conv": torch.ones(3, 2)}, "m.pkl: the mask of layer 'conv' is 3x2, not one entry per output channel"),
        ({"conv": torch.ones(0)}, "m.pkl: the mask of layer 'conv' is 0, not one entry per output channel"),
        ({"conv": torch.ones(1).expand(10**13)}, "m.pkl: the mask of layer 'conv' says more than it holds"),
        ({"conv": torch.ones(3, device="meta")}, "m.pkl needs torch._utils._rebuild_meta_tensor_no_storage"),
        ({"conv": MASK * 1j}, "m.pkl: the mask of layer 'conv' has entries other than 0 and 1"),
        ({"conv": [1, 0]}, "m.pkl: the mask of layer 'conv' is list, not one entry per output channel"),
    ],
)
def test_what_holds_no_masks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    dump(Path("m.pkl"), content)
    with pytest.raises(MdpFxError) as refused:
        read_masks("m.pkl")
    assert str(refused.value).startswith(says)
    assert not Path("made-by-the-pickle").exists()


@pytest.mark.parametrize(
    "mask",
    [
        MASK.to_sparse(),
        torch.quantize_per_tensor(MASK, 1.0, 0, torch.quint8),
        torch.ones(3, device="meta"),
        torch.ones(1).expand(10**13),
    ],
    ids=["sparse", "quantised", "meta", "expanded"],
)
def test_tensors_of_other_kinds_are_no_masks(tmp_path: Path, mask: torch.Tensor) -> None:
    with pytest.raises(MdpFxError, match=r"the mask of layer 'conv'"):
        named_masks({"conv": mask}, "masks")
    torch.save({"conv": mask}, tmp_path / "m.pkl")
    with pytest.raises(MdpFxError):
        read_masks(tmp_path / "m.pkl")


def test_a_class_in_a_torch_save_file_is_refused(tmp_path: Path) -> None:
    torch.save({"conv": torch.nn.ReLU()}, tmp_path / "m.pkl")
    with pytest.raises(MdpFxError, match="holds objects of other classes: mask files hold"):
        read_masks(tmp_path / "m.pkl")


def test_a_storage_that_is_none_is_damage(tmp_path: Path) -> None:
    data = dump(tmp_path / "m.pkl", {"conv": MASK}, protocol=2).read_bytes()
    (tmp_path / "m.pkl").write_bytes(data.replace(b"FloatStorage", b"FloatStorge"))
    with pytest.raises(MdpFxError, match=r"m\.pkl is truncated, damaged or no mask file"):
        read_masks(tmp_path / "m.pkl")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    data = dump(tmp_path / "m.pkl", {"conv": MASK}).read_bytes()
    (tmp_path / "cut.pkl").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.pkl").write_text("hello")
    (tmp_path / "empty.pkl").touch()
    for name in ("cut", "text", "empty"):
        with pytest.raises(MdpFxError, match=rf"{name}\.pkl is truncated, damaged or no mask file"):
            read_masks(tmp_path / f"{name}.pkl")
    with pytest.raises(MdpFxError, match=r"cannot read .*none\.pkl: no such file"):
        read_masks(tmp_path / "none.pkl")
    with pytest.raises(MdpFxError, match="is a folder"):
        read_masks(tmp_path)
