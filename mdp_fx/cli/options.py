"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mdp_fx.model_source import LoadedModel

F = TypeVar("F", bound=Callable[..., Any])


class Shape(click.ParamType):
    """An input shape without the batch: 3x224x224."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", value):
            self.fail(f"{value!r} is not a shape such as 3x224x224", param, ctx)
        return tuple(int(part) for part in value.split("x"))


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Applies several option decorators, in the order in which they are to be listed."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def model_options(function: F) -> F:
    """How to read MODEL."""
    return stack(
        click.option("--arch", metavar="MODEL", help="Architecture of a state dict: torchvision:NAME, timm:NAME, module:factory."),
        click.option("--trust-pickle", is_flag=True, help="Load a pickle that names foreign classes: it can run any code."),
    )(function)


def input_options(function: F) -> F:
    """What to feed it."""
    return stack(
        click.option(
            "--input", "shapes", type=Shape(), multiple=True, help="Shape of one input, repeatable.  [default: 3x224x224]"
        ),
        click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Batch size."),
    )(function)


def target_options(function: F) -> F:
    """Where latency counts."""
    return stack(
        click.option("--target", default="onnxruntime:cpu", show_default=True, help="Where latency counts."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: one per core]"),
    )(function)


def output_format(function: F) -> F:
    """How to answer."""
    return stack(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables."),
        click.option("-v", "--verbose", is_flag=True, help="Show passes with times, and long lists in full."),
    )(function)


def force_option(function: F) -> F:
    """Whether files may be overwritten."""
    return click.option("--force", is_flag=True, help="Overwrite output files.")(function)


def load(spec: str, arch: str | None, trust_pickle: bool) -> LoadedModel:
    """Loads MODEL, or raises a MdpFxError."""
    from mdp_fx.model_source import check_finite, load_model

    loaded = load_model(spec, arch=arch, trust_pickle=trust_pickle)
    check_finite(loaded.module)
    return loaded


def make_inputs(shapes: tuple[tuple[int, ...], ...], batch: int, recipe: Any = None) -> tuple[Any, ...]:
    """Random example inputs; a slim network's own shapes where none are given."""
    import torch

    if not shapes and recipe is not None and recipe.input_shapes:
        shapes = tuple(tuple(shape[1:]) for shape in recipe.input_shapes)
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes or ((3, 224, 224),))
