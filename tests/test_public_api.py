"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mdp_fx


def test_every_public_name_is_there() -> None:
    for name in mdp_fx.__all__:
        assert getattr(mdp_fx, name) is not None
    assert set(mdp_fx.__all__) <= set(dir(mdp_fx))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        mdp_fx.prunes  # noqa: B018


def test_import_is_cheap() -> None:
    check = "import sys, mdp_fx; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_modules_are_there_without_an_import_of_their_own() -> None:
    check = "import mdp_fx; mdp_fx.models.ssd300_mobilenet_v2(size=32); mdp_fx.detection.evaluate"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
