"""Options that say what channels are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mdp_fx.scores import Scores

F = TypeVar("F", bound=Callable[..., Any])

IMPORTANCE = (
    "l2",
    "l1",
    "bn",
    "random",
    "taylor",
    "taylor-filter",
    "taylor-input",
    "taylor-squared",
    "fisher",
    "activation",
)
"""The kinds of importance: those of `mdp_fx.passes.importance`, which takes long to import."""


def scores_option(function: F) -> F:
    """What channels are worth, from an earlier run."""
    return click.option(
        "--scores",
        type=click.Path(path_type=Path),
        help="Importance that mdp-fx score wrote for MODEL, in place of --importance and --data.",
    )(function)


def load_scores(path: Path | None) -> Scores | None:
    """The scores in a file, None for no file.

    Raises:
        InputError: there is none, or it holds no scores.
    """
    if path is None:
        return None
    from mdp_fx.scores import Scores

    return Scores.load(path)
