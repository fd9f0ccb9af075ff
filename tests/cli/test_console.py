"""Where text goes, and what it looks like there."""

from __future__ import annotations

import contextlib
import json
import logging
import sys

import pytest
from rich.console import Console
from rich.text import Text

from mdp_fx.cli import console
from mdp_fx.report.cells import Notes


def test_json_has_no_undefined_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": (1,)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [1]}


def test_text_in_a_pipe_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    long = Notes((("warning", "x" * 300, "yellow"), ("next", "word " * 60, "")))
    console.show(Text("title   ", style="bold red"), Text(""), long)
    assert capsys.readouterr().out == f"title\n\nwarning  {'x' * 300}\nnext     {('word ' * 60).rstrip()}\n"


@pytest.mark.parametrize(("columns", "width"), [(None, console.PIPE_WIDTH), ("80", 80), ("wide", console.PIPE_WIDTH)])
def test_columns_are_respected_in_a_pipe(columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    lines = console.render(Text("word " * 60)).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == -(-300 // width)


class Terminal(Console):
    """A console that believes to be a terminal."""

    def __init__(self, **settings: object) -> None:
        super().__init__(force_terminal=True, width=80, file=sys.stderr if settings.get("stderr") else None)


def test_colours_on_a_terminal_only_without_no_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "Console", Terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.show(Text("late", style="red"))
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    console.show(Text("late", style="red"))
    assert "\x1b[31m" not in capsys.readouterr().out


def test_reporter_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Reporter(verbose=False).running() as reporter:
        reporter.stage("solve")
        reporter.measured(1, 2, "region")
        logging.getLogger("mdp_fx.test").info("detail")
    assert capsys.readouterr() == ("", "")


def test_verbose_shows_stages_with_times_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Reporter(verbose=True).running() as reporter:
        reporter.stage("solve")
        logging.getLogger("mdp_fx.test").info("detail")
        reporter.stage("rewrite")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(None, 2)[1:] for line in err.splitlines() if line != "detail"] == [
        ["s", "solve"],
        ["s", "rewrite"],
    ]
    assert "detail\n" in err


def test_reporter_leaves_logging_as_it_was() -> None:
    logger = logging.getLogger("mdp_fx")
    before = (logger.level, list(logger.handlers))
    with contextlib.suppress(ZeroDivisionError), console.Reporter(verbose=True).running():
        raise ZeroDivisionError
    assert (logger.level, list(logger.handlers)) == before


def test_bar_on_a_terminal_goes_to_stderr_and_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "Console", Terminal)
    with console.Reporter(verbose=False).running() as reporter:
        reporter.stage("measure cost regions")
        reporter.measured(3, 7, "region")
        reporter.measured(7, 7, "region")
    out, err = capsys.readouterr()
    assert out == ""
    assert "measure cost regions" in err
    assert "7/7" in err


def test_foreign_prints_do_not_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Reporter(verbose=False).running():
        sys.stdout.write("noise\n")
    assert capsys.readouterr() == ("", "noise\n")
