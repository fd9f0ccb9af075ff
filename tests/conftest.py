"""Options of the test suite."""

from __future__ import annotations

import os

import pytest

from mdp_fx.passes.base import VERIFY_VARIABLE

# The verifier runs after every pass, in subprocesses too.
os.environ[VERIFY_VARIABLE] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen", action="store_true", help="write the golden files again instead of comparing with them")


@pytest.fixture
def regen(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written again."""
    return bool(request.config.getoption("--regen"))
