"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mdp_fx.cli.score_options import IMPORTANCE

F = TypeVar("F", bound=Callable[..., Any])

_SHAPE = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*")
DTYPES = click.Choice(["float32", "float16", "bfloat16"])


def _shapes(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Input shapes without the batch: "3x224x224" is (3, 224, 224)."""
    for text in texts:
        if not _SHAPE.fullmatch(text):
            raise click.BadParameter(f"{text!r} is not a shape such as 3x224x224")
    return tuple(tuple(int(part) for part in text.split("x")) for text in texts)


def _share(
    example: str, *, whole: bool = False
) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """A share, as a percentage or a number: "10%" is 0.1. All of it is allowed only where `whole` is."""

    def read(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
        if text is None:
            return None
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a percentage such as {example}") from error
        if not (0 <= share < 1 or (whole and share == 1)):
            hint = "" if text.endswith("%") or not 1 < share <= 100 else f"; write {text}% for that many per cent"
            limit = "at most" if whole else "less than"
            raise click.BadParameter(f"{text!r} is not at least 0% and {limit} 100%{hint}")
        return share

    return read


def _above_zero(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    """A number that is not nan either."""
    if not value > 0:
        raise click.BadParameter(f"{value:g} is not a number of seconds above 0")
    return value


def not_nan(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """A number that is not nan, which click takes to be in every range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number")
    return value


def _named(example: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, str]]:
    """Repeated NAME=VALUE as a dictionary; only the last = parts them."""

    def read(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in texts:
            name, _, value = text.rpartition("=")
            if not name or not value:
                raise click.BadParameter(f"{text!r} is not of the form {example}")
            if name in found:
                raise click.BadParameter(f"{name!r} is given twice")
            found[name] = value
        return found

    return read


def _sizes(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    found = _named("NAME=SIZE, such as conv1=32")(ctx, param, texts)
    for name, text in found.items():
        if not text.isdecimal():
            raise click.BadParameter(f"{text!r} is no size to hold {name!r} at: write a number of units")
    return {name: int(text) for name, text in found.items()}


def _complete_model(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of models are too many to list; files are what a shell can complete."""
    return [CompletionItem(incomplete, type="file")]


def model_argument(name: str = "model", **settings: Any) -> Callable[[F], F]:
    """A network on the command line, with completion of file names."""
    return click.argument(name, shell_complete=_complete_model, **settings)


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
        click.option(
            "--arch",
            metavar="MODEL",
            help="Network of a state dict: torchvision:NAME, timm:NAME, package.module:factory, ssd512-resnet50, ...",
        ),
        click.option("--trust-pickle", is_flag=True, help="Load pickles with foreign classes: they can run any code."),
    )(function)


def input_options(function: F) -> F:
    """What to feed it."""
    return stack(
        click.option(
            "--input",
            "shapes",
            metavar="CxHxW",
            callback=_shapes,
            multiple=True,
            help="Shape of one input, repeatable.  [default: a slim.pt's or a detector's own, else 3x224x224]",
        ),
        click.option(
            "--batch", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Batch size."
        ),
    )(function)


def target_options(function: F) -> F:
    """Where latency counts."""
    return stack(
        click.option(
            "--target", metavar="NAME", default="onnxruntime:cpu", show_default=True, help="Where latency counts."
        ),
        threads_option,
        dtype_option,
    )(function)


def threads_option(function: F) -> F:
    """Processor threads of the target."""
    return click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: one per core]"
    )(function)


def dtype_option(function: F) -> F:
    """Number format of the target."""
    return click.option("--dtype", type=DTYPES, default="float32", show_default=True, help="Number format to run in.")(
        function
    )


def fill_option(function: F) -> F:
    """What to do where a table has no answer."""
    return click.option(
        "--fill",
        type=click.Choice(["analytic"]),
        help="Estimate convolutions that a target's table does not have, instead of an error.",
    )(function)


def method_option(*further: str) -> Callable[[F], F]:
    """How to choose: one of the four methods of one model, or one of `further`."""
    return click.option(
        "--method",
        type=click.Choice(["mdp", "mgp", "mdlm", "halp", *further]),
        default="mdp",
        show_default=True,
        help="How to choose.",
    )


def scoring_options(function: F) -> F:
    """What channels are worth."""
    return stack(
        click.option(
            "--importance",
            type=click.Choice(IMPORTANCE),
            metavar="KIND",
            help=f"What channels are worth: {', '.join(IMPORTANCE)}.  [default: taylor with --data, else l2]",
        ),
        click.option(
            "--data",
            metavar="SPEC",
            help="package.module:make_loader, imagefolder:PATH or voc:PATH, for taylor and all after it.",
        ),
        click.option(
            "--loss", metavar="SPEC", help="package.module:function of (outputs, targets).  [default: cross-entropy]"
        ),
    )(function)


def gap_option(default: str) -> Callable[[F], F]:
    """What the solver has to prove."""
    return click.option(
        "--gap",
        callback=_share("0.1%"),
        metavar="PERCENT",
        default=default,
        show_default=True,
        help="Optimality gap to stop at.",
    )


def time_limit_option(default: float, says: str) -> Callable[[F], F]:
    """When to stop."""
    return click.option(
        "--time-limit",
        type=float,
        callback=_above_zero,
        metavar="SECONDS",
        default=default,
        show_default=True,
        help=says,
    )


def seed_option(function: F) -> F:
    """The seed."""
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        metavar="N",
        default=0,
        show_default=True,
        help="Seed of everything random.",
    )(function)


def limit_option(function: F) -> F:
    """Budgets of costs by name."""
    return click.option(
        "--limit",
        "limits",
        metavar="NAME=BUDGET",
        multiple=True,
        callback=_named("NAME=BUDGET, such as energy=60%"),
        help="Budget of any cost of the search space, repeatable.",
    )(function)


def restrictions(function: F) -> F:
    """What may not be chosen."""
    return stack(
        click.option(
            "--min-keep",
            callback=_share("10%", whole=True),
            metavar="PERCENT",
            help="Share that every dimension keeps.",
        ),
        click.option(
            "--fix",
            "fixed",
            metavar="NAME=SIZE",
            multiple=True,
            callback=_sizes,
            help="Hold a dimension at a size, repeatable.",
        ),
        click.option("--keep-block", "keep_blocks", metavar="NAME", multiple=True, help="Block to keep, repeatable."),
    )(function)


def max_removed_option(function: F) -> F:
    """How many blocks may go."""
    return click.option("--max-removed", type=click.IntRange(min=0), metavar="N", help="Most blocks to remove.")(
        function
    )


def step_option(function: F) -> F:
    """Channel step."""
    return click.option(
        "--step",
        type=click.IntRange(min=1),
        metavar="N",
        default=8,
        show_default=True,
        help="Channels are kept in multiples of N.",
    )(function)


def front_end_option(function: F) -> F:
    """How to make a graph of a network."""
    return click.option(
        "--front-end",
        type=click.Choice(["auto", "symbolic", "export"]),
        default="auto",
        show_default=True,
        help="Symbolic tracing, torch.export, or the first that can follow MODEL.",
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
