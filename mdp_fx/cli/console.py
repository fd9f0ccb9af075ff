"""Where text goes: results to stdout, logs and progress to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows stages and measurements on stderr: a live bar on a terminal, plain lines with -v, nothing otherwise."""

    def __init__(self, verbose: bool) -> None:
        self._console = Console(stderr=True)
        self._verbose = verbose
        self._bar: Progress | None = None
        self._task: Any = None
        self._name = ""
        self._since = time.perf_counter()

    def stage(self, name: str) -> None:
        """A stage begins; an empty name ends the last one."""
        now = time.perf_counter()
        if self._verbose and self._name:
            self._console.print(f"{now - self._since:8.2f} s  {self._name}", highlight=False, markup=False)
        self._name, self._since = name, now
        if self._bar is not None:
            self._bar.reset(self._task, total=None, description=name)

    def measured(self, done: int, total: int, text: str) -> None:
        """One measurement of `total` is done."""
        if self._bar is not None and total:
            self._bar.update(self._task, completed=done, total=total)

    @contextlib.contextmanager
    def running(self) -> Iterator[Reporter]:
        """Shows progress while the body runs."""
        if self._verbose:
            logging.basicConfig(level=logging.WARNING, format="%(message)s")
            logging.getLogger("mdp_fx").setLevel(logging.INFO)
        if not self._console.is_terminal or self._verbose:
            yield self
            self.stage("")
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        ) as bar:
            self._bar = bar
            self._task = bar.add_task("load", total=None)
            yield self
            self._bar = None


def stdout() -> Console:
    """The console results are printed to; at least 80 columns where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(100, console.width))


def print_json(data: Any) -> None:
    """Prints exactly one JSON document."""
    click.echo(json.dumps(_finite(data), indent=1, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and data != data or data in (float("inf"), float("-inf")) else data
