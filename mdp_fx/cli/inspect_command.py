"""`mdp-fx inspect`."""

from __future__ import annotations

from typing import Any

import click

from mdp_fx.cli import loading, options


@click.command("inspect")
@options.model_argument()
@options.input_options
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what of MODEL can be pruned: channel groups, residual blocks, and what is frozen with the reason."""
    from mdp_fx.cli.console import Reporter, print_json, show

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        loaded = loading.load(model, arch, trust_pickle)
        from mdp_fx.api import inspect
        from mdp_fx.report.tables import inspect_tables

        reporter.stage("inspect")
        inputs = loading.make_inputs(shapes, batch, loaded)
        found = inspect(loaded.module, inputs, front_end=front_end, name=loaded.name)
    if as_json:
        print_json(found.to_json())
        return
    show(*inspect_tables(found, verbose=verbose))
