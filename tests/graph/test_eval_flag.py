"""The flag is false however it is asked, remembers who asked, and knows where it is passed on."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest

from mdp_fx.graph.eval_flag import EvalFlag, is_eval_flag


@pytest.mark.parametrize(
    ("use", "result"),
    [
        (bool, False),
        (int, 0),
        (float, 0.0),
        (operator.index, 0),
        (operator.not_, True),
        (lambda flag: 3 + flag, 3),
        (lambda flag: flag + 3, 3),
        (lambda flag: 0.5 * flag, 0.0),
        (lambda flag: 1 - flag, 1),
        (lambda flag: -flag, 0),
        (lambda flag: [1, 2][flag], 1),
        (lambda flag: {False: 1, True: 2}[flag], 1),
        (str, "False"),
        (lambda flag: flag | 4, 4),
        (lambda flag: flag & True, 0),
        (lambda flag: 2**flag, 1),
        (lambda flag: flag == False, True),  # noqa: E712
        (lambda flag: flag != 0, False),
        (lambda flag: flag < 1, True),
        (lambda flag: flag in (1, 2), False),
    ],
)
def test_whoever_reads_it_is_remembered(use: Callable[[Any], Any], result: Any) -> None:
    flag = EvalFlag(lambda: "line")
    assert use(flag) == result
    assert set(flag.reads) == {"line"}


def test_looking_at_what_it_is_reads_nothing() -> None:
    flag = EvalFlag(lambda: "line")
    assert is_eval_flag(flag)
    assert not is_eval_flag(0)
    assert not is_eval_flag(False)
    assert repr(flag) == "False"
    assert flag.reads == []


def test_an_argument_knows_the_line_that_gave_it() -> None:
    lines = iter(("first", "second"))
    flag = EvalFlag(lambda: next(lines))
    given = flag.passed()
    assert (flag.line, given.line) == (None, "first")
    assert given.passed() is given
    assert flag.reads == given.reads == []
