"""What `train` and `finetune` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdp_fx.cli.options import F, stack

if TYPE_CHECKING:
    from mdp_fx.train.config import TrainConfig


def training_options(function: F) -> F:
    """How to run a training."""
    return stack(
        click.option(
            "--set",
            "overrides",
            metavar="KEY=VALUE",
            multiple=True,
            help="Key of the config, such as data.batch=64, repeatable; `mdp-fx train --show-config` lists all.",
        ),
        click.option("--folder", metavar="PATH", help="Checkpoint and logs of the run.  [default: <output>-run]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.  [default: auto]"),
        click.option(
            "--precision",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            help="Number format.  [default: that of accelerate launch, else float32]",
        ),
        click.option("--resume", is_flag=True, help="Go on where the run in the folder was stopped."),
        click.option(
            "--force",
            is_flag=True,
            help="Start anew over an existing run and output; with --resume, go on with other rates, epochs, budgets, "
            "distillation or validation data.",
        ),
    )(function)


def run_command(
    config: TrainConfig,
    *,
    prune: bool,
    source: Path | None,
    resume: bool,
    force: bool,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Runs a training and answers; in several processes only the first one does."""
    import os
    import sys

    from mdp_fx.cli.console import Reporter, print_json, show
    from mdp_fx.errors import MdpFxError

    first = os.environ.get("RANK", "0") == "0"
    with Reporter(verbose and first).running() as reporter:
        from mdp_fx.report.training import train_tables
        from mdp_fx.training import run

        try:
            report = run(
                config,
                prune=prune,
                resume=resume,
                force=force,
                sources=[] if source is None else [source],
                trust_pickle=trust_pickle,
                stage=reporter.stage,
                progress=reporter.measured,
            )
        except MdpFxError as error:
            if error.told:
                sys.exit(1)
            raise
    if not first:
        return
    if as_json:
        print_json(report.to_json())
        return
    show(*train_tables(report))


def given(**values: Any) -> dict[str, Any]:
    """Options by dotted key (with two underscores for the dot), those that were not given left out."""
    return {name.replace("__", "."): value for name, value in values.items() if value is not None}
