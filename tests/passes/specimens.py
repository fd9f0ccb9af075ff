"""Networks of the zoo by name."""

from __future__ import annotations

from mdp_fx.passes.choices import Analysis
from mdp_fx.pipeline import analyse
from tests.zoo import ZOO


def analysed(name: str) -> Analysis:
    specimen = next(s for s in ZOO if s.name == name)
    return analyse(specimen.make(), specimen.inputs())
