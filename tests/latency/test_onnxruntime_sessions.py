from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import pytest

from mdp_fx.latency.onnxruntime_sessions import RUNTIME_ERRORS, chain_model, session_options


@pytest.mark.parametrize("length", [1, 4])
def test_a_chain_runs_kernel_by_kernel_in_a_profile(length: int, tmp_path: Path) -> None:
    options = session_options(1, tmp_path / "profile")
    session = onnxruntime.InferenceSession(chain_model(length), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x0": np.array([-3.0], np.float32)})
    assert result.item() == (3.0 if length == 1 else -3.0)
    path = Path(session.end_profiling())
    assert path.parent == tmp_path
    assert sum(event["name"].endswith("_kernel_time") for event in json.loads(path.read_bytes())) == length


def test_what_it_raises_is_known_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RUNTIME_ERRORS):
        onnxruntime.InferenceSession(b"no model", session_options(1), providers=["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")
