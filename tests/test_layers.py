"""Dependencies between the layers of the package point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mdp_fx"

BASE = {"errors", "files"}
ALLOWED = {
    "graph": BASE | {"graph"},
    "passes": BASE | {"graph", "passes"},
    "exporters": BASE | {"graph", "passes", "exporters"},
    "latency": BASE | {"graph", "passes", "latency", "exporters"},
    "report": BASE | {"graph", "passes", "report"},
}


def imported(path: Path) -> set[str]:
    """Parts of mdp_fx that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mdp_fx."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mdp_fx."))
    return found


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_layer_imports_only_what_lies_below(layer: str) -> None:
    files = list((PACKAGE / layer).rglob("*.py"))
    assert files
    for path in files:
        above = imported(path) - ALLOWED[layer]
        assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)}"


def test_nothing_imports_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.parts and path.name not in ("__main__.py", "demo.py"):
            assert "cli" not in imported(path), path.name


def test_only_the_command_line_and_the_public_names_know_training() -> None:
    for path in PACKAGE.rglob("*.py"):
        if not {"cli", "train"} & set(path.parts) and not path.name.startswith(("__init__", "training", "demo")):
            assert "train" not in imported(path), path.name
