"""Runs the command line inside the test's process, in an empty folder, with a latency table of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdp_fx.cli import main
from tests.cli.running import Ran, Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / ".cache"))
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mdp-fx` with some arguments."""

    def call(*args: str) -> Ran:
        capsys.readouterr()
        code = 0
        try:
            main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
