"""`mdp-fx train`."""

from __future__ import annotations

from pathlib import Path

import click

from mdp_fx.cli import options, training


def _show_config(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from mdp_fx.train.config import TrainConfig
    from mdp_fx.train.config_file import to_yaml

    click.echo(to_yaml(TrainConfig()), nl=False)
    ctx.exit()


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--show-config",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_config,
    help="Print a config file with every key, its meaning and default, and exit.",
)
@click.option("-o", "--output", metavar="PATH", help="Slim network to write.  [default: output of the config]")
@training.training_options
@click.option("--trust-pickle", is_flag=True, help="Load pickles with foreign classes: they can run any code.")
@options.output_format
def command(
    config: Path,
    output: str | None,
    overrides: tuple[str, ...],
    folder: str | None,
    device: str | None,
    precision: str | None,
    resume: bool,
    force: bool,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Train by CONFIG, a YAML file: gather importance, prune once or on a schedule, fine-tune.

    A run keeps its checkpoint and logs in a folder; killed at any moment, it goes on from there with --resume and ends
    with the same weights. On several GPUs or machines start it with `accelerate launch -m mdp_fx train CONFIG`.
    """
    from mdp_fx.train.config_file import read_config

    further = training.given(output=output, folder=folder, device=device, precision=precision)
    read = read_config(config, overrides, further)
    training.run_command(
        read,
        prune=True,
        source=config,
        resume=resume,
        force=force,
        trust_pickle=trust_pickle,
        as_json=as_json,
        verbose=verbose,
    )
