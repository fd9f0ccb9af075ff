"""What `inspect` prints, compared with golden text; `pytest --regen` writes it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision
from torch import Tensor, nn

import mdp_fx
from mdp_fx.cli.console import render
from mdp_fx.report.tables import inspect_tables
from tests.zoo import ZOO, image

GOLDEN = Path(__file__).parent / "golden"


def _resnet18() -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(weights=None)
    return model


def _specimen(name: str) -> Callable[[], nn.Module]:
    return next(s.make for s in ZOO if s.name == name)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "nested_blocks": (_specimen("nested_blocks"), image()),
    "resnet18": (_resnet18, image(side=32, batch=1)),
}


@pytest.mark.parametrize("verbose", [False, True], ids=["short", "verbose"])
@pytest.mark.parametrize("name", NETWORKS)
def test_inspect_prints_the_golden_text(name: str, verbose: bool, regen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    make, inputs = NETWORKS[name]
    found = mdp_fx.inspect(make(), inputs, name=name)
    text = render(*inspect_tables(found, verbose=verbose))
    path = GOLDEN / f"inspect_{name}{'_verbose' if verbose else ''}.txt"
    if regen:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
