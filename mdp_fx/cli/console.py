"""Where text goes: results to stdout, logs and progress to stderr."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mdp_fx.errors import OutputError
from mdp_fx.files import finite, reason

PIPE_WIDTH = 100
"""Columns where stdout is no terminal and COLUMNS does not say otherwise."""

_REFRESH_S = 0.2


class Reporter:
    """Shows stages and measurements on stderr: a live bar on a terminal, plain lines with -v, nothing otherwise.

    The bar is drawn only between measurements, by nobody but the measuring thread: a thread that redraws it would take
    processor time from what is being timed.
    """

    def __init__(self, verbose: bool) -> None:
        self._console = Console(stderr=True)
        self._verbose = verbose
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._name = ""
        self._since = time.perf_counter()
        self._drawn = 0.0
        self._some_measured = False

    def stage(self, name: str) -> None:
        """A stage begins; an empty name ends the last one."""
        now = time.perf_counter()
        if self._verbose and self._name:
            self._console.print(f"{now - self._since:8.2f} s  {self._name}", highlight=False, markup=False)
        self._name, self._since = name, now
        if self._bar is not None and name:
            self._bar.reset(self._task, total=None, description=name)
            self._bar.refresh()

    def measured(self, done: int, total: int, _text: str) -> None:
        """One measurement of `total` is done."""
        self._some_measured |= done > 0
        if self._bar is None or not total:
            return
        self._bar.update(self._task, completed=done, total=total)
        now = time.perf_counter()
        if now - self._drawn > _REFRESH_S or done == total:
            self._drawn = now
            self._bar.refresh()

    @contextlib.contextmanager
    def running(self) -> Iterator[Reporter]:
        """Shows progress while the body runs; what foreign code prints meanwhile goes to stderr."""
        with contextlib.redirect_stdout(sys.stderr), self._logging(), self._progress():
            try:
                yield self
            except KeyboardInterrupt as stop:
                if self._some_measured and not stop.args:
                    raise KeyboardInterrupt("measurements made so far are kept") from stop
                raise
            self.stage("")

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        logger, handler = logging.getLogger("mdp_fx"), logging.StreamHandler(sys.stderr)
        level = logger.level
        logger.setLevel(logging.INFO if self._verbose else logging.WARNING)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[None]:
        if not self._console.is_terminal or self._verbose:
            yield
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
        ) as bar:
            self._bar = bar
            self._task = bar.add_task("load", total=None)
            yield
            self._bar = None


def show(*parts: RenderableType) -> None:
    """Prints results to stdout: styled on a terminal, plain lines without trailing blanks elsewhere."""
    console = Console()
    if not console.is_terminal:
        _write(render(*parts))
        return
    for part in parts:
        console.print(part, highlight=False)


def render(*parts: RenderableType) -> str:
    """Results as plain lines."""
    wanted = os.environ.get("COLUMNS", "")
    console = Console(
        file=io.StringIO(), width=int(wanted) if wanted.isdigit() else PIPE_WIDTH, force_terminal=False, no_color=True
    )
    with console.capture() as captured:
        for part in parts:
            console.print(part, highlight=False, crop=False)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")) + "\n"


def json_text(data: Any) -> str:
    """One JSON document with a line end; infinite and undefined numbers become null."""
    return json.dumps(finite(data), indent=1, allow_nan=False) + "\n"


def print_json(data: Any) -> None:
    """Prints exactly one JSON document."""
    _write(json_text(data))


def _write(text: str) -> None:
    """Writes to stdout.

    Raises:
        OutputError: it cannot be written, such as to a full disk.
    """
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        raise  # Whoever read it has had enough.
    except OSError as error:
        # What is left in its buffer would fail once more at the end of the process.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise OutputError(f"cannot write to stdout: {reason(error)}") from error
