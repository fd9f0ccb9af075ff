"""What an export to TensorRT shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from mdp_fx.exporters.tensorrt_engine import EngineLayer, EngineReport
from mdp_fx.report.engine import engine_tables
from tests.report.rendering import has_row, lines


@pytest.fixture
def facts() -> dict[str, Any]:
    layers = tuple(EngineLayer(f"layer{i}[0]", "CaskConvolution", "Half NHWC8", f"kernel{i}") for i in range(20))
    return asdict(EngineReport("10.3.0", "NVIDIA TITAN V", "float16", 8, True, 1e-3, 2e-4, layers))


def test_layers_and_what_the_engine_is_for(facts: dict[str, Any]) -> None:
    text = "\n".join(lines(engine_tables("slim.engine", facts, verbose=False)))
    assert "20 layers" in text
    assert has_row(text.splitlines(), "layer0[0]", "CaskConvolution", "Half NHWC8")
    assert "... and 4 more (-v shows all)" in text
    assert "kernel0" not in text
    assert "for      NVIDIA TITAN V, TensorRT 10.3.0, float16, batch 1 to 8" in text
    assert "checked  max abs error 1.0e-03, relative 2.0e-04" in text


def test_verbose_shows_every_kernel(facts: dict[str, Any]) -> None:
    text = "\n".join(lines(engine_tables("slim.engine", facts | {"dynamic_batch": False}, verbose=True)))
    assert "kernel19" in text
    assert "float16, batch 8" in text
