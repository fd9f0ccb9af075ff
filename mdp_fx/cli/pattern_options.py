"""Options that say what of a network may be pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mdp_fx.cli.options import stack
from mdp_fx.errors import InputError

if TYPE_CHECKING:
    from torch import nn

F = TypeVar("F", bound=Callable[..., Any])

_BACKBONE = "backbone"
_TRUNKS = ("body", "features")
"""What the detectors of torchvision call the classifier in a backbone, beside which are a pyramid or extra layers."""


def pattern_options(function: F) -> F:
    """The options; `patterns` makes one of `only` and `backbone_only`."""
    return stack(
        click.option("--keep", metavar="PATTERN", multiple=True, help="Modules to leave alone, repeatable."),
        click.option("--only", metavar="PATTERN", multiple=True, help="Modules to prune, repeatable."),
        click.option(
            "--backbone-only",
            is_flag=True,
            help="Prune the classifier inside of a detector: backbone.body or backbone.features, else backbone.",
        ),
    )(function)


def patterns(only: tuple[str, ...], backbone_only: bool, network: nn.Module) -> tuple[str, ...]:
    """What to prune, as patterns of module names.

    Raises:
        InputError: the network has no backbone.
    """
    if not backbone_only:
        return only
    names = {name for name, _ in network.named_modules()}
    if _BACKBONE not in names:
        kind = type(network).__name__
        raise InputError(f"--backbone-only: {kind} has no module {_BACKBONE!r}; name what to prune with --only")
    own = getattr(network.get_submodule(_BACKBONE), "trunk", _TRUNKS)  # those of `mdp_fx.models` say it themselves
    found = [name for name in (f"{_BACKBONE}.{part}" for part in own) if name in names]
    return (*only, *(found or [_BACKBONE]))
