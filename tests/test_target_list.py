"""The list of targets: what can be used, and why the others cannot."""

from __future__ import annotations

import pytest

from mdp_fx import target_list
from mdp_fx.errors import TargetError
from mdp_fx.report.facts import TargetRow
from tests.latency.fakes import FormulaTarget


class Missing(FormulaTarget):
    """A target that lacks something."""

    @classmethod
    def missing(cls) -> str | None:
        return "target missing needs luck"


class Broken(FormulaTarget):
    """A target that only finds out when it starts."""

    def __init__(self, threads: int | None = None) -> None:
        raise TargetError("it does not start")


def test_every_target_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"fake": FormulaTarget, "missing": Missing, "broken": Broken}

    def target_class(name: str) -> type[FormulaTarget]:
        if name not in kinds:
            raise TargetError("no package")
        return kinds[name]

    monkeypatch.setattr(target_list, "target_names", lambda: (*kinds, "absent"))
    monkeypatch.setattr(target_list, "target_class", target_class)
    *measured, shipped, any_table = target_list.targets()
    assert (shipped.name, shipped.available, shipped.why_not) == ("titan-v", True, None)
    assert "1,393 convolutions" in str(shipped.fingerprint)
    assert (any_table.name, any_table.available, any_table.fingerprint) == ("table:PATH", True, None)
    assert measured == [
        TargetRow("fake", True, ("float32",), None, "", 8, "fake 1"),
        TargetRow("missing", False, ("float32",), "target missing needs luck"),
        TargetRow("broken", False, ("float32",), "it does not start"),
        TargetRow("absent", False, (), "no package"),
    ]
