"""The list of targets as printed."""

from __future__ import annotations

from mdp_fx.report.facts import TargetRow
from mdp_fx.report.targets import target_tables
from tests.report.rendering import has_row, lines


def test_devices_and_what_is_missing() -> None:
    dtypes = ("float32", "float16")
    here = TargetRow("torch:cuda", True, dtypes, None, "NVIDIA TITAN V", 8, "torch:cuda NVIDIA TITAN V m1")
    found = lines(target_tables([here, TargetRow("tensorrt", False, ("float32",), "target tensorrt needs [tensorrt]")]))
    assert found[0] == "1 of 2 targets can be used on this machine"
    assert has_row(found, "torch:cuda", "NVIDIA TITAN V", "float32, float16", "8")
    assert has_row(found, "tensorrt", "-", "float32")
    assert "missing  target tensorrt needs [tensorrt]" in found
    assert "measured as  torch:cuda NVIDIA TITAN V m1" in found
