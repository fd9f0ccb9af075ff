"""Lines are those of the model's code, not of torch or of ours."""

from __future__ import annotations

import pytest
import torch

from mdp_fx.graph import user_code
from mdp_fx.graph.user_code import is_fault_of_ours, raised_at, spelled, user_line


def test_the_line_that_is_running_is_named() -> None:
    line = user_line()
    assert line.startswith("test_user_code.py, line ")
    assert line.endswith(": line = user_line()")


def test_an_error_is_traced_to_the_line_that_led_to_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.functional.linear(torch.ones(2), torch.ones(3, 3))
    assert raised_at(caught.value).startswith(" (test_user_code.py, line ")
    assert raised_at(caught.value).endswith(": torch.nn.functional.linear(torch.ones(2), torch.ones(3, 3)))")
    assert raised_at(RuntimeError("nowhere")) == ""


def test_long_lines_are_shortened() -> None:
    assert spelled("/a/model.py", 3, "x = y " * 40) == f"model.py, line 3: {'x = y ' * 12}x [...]"
    assert spelled("/a/model.py", 3, None) == "model.py, line 3: "


def test_only_our_own_assertions_are_faults_of_ours() -> None:
    def fault(file: str, code: str) -> bool:
        try:
            exec(compile(code, file, "exec"))
        except Exception as error:  # noqa: BLE001 - whatever the code raises
            return is_fault_of_ours(error)
        return False

    assert fault(user_code.__file__, "assert False")
    assert not fault(user_code.__file__, "1 / 0")
    assert not fault("/a/model.py", "assert False")
    assert not is_fault_of_ours(AssertionError())
