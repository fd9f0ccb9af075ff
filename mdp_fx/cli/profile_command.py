"""`mdp-fx profile`."""

from __future__ import annotations

from typing import Any

import click

from mdp_fx.cli import loading, options


@click.command("profile")
@options.model_argument()
@options.target_options
@options.fill_option
@options.input_options
@options.step_option
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    target: str,
    threads: int | None,
    dtype: str,
    fill: Any,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    step: int,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure the latency tables that pruning MODEL needs, and show where its time goes.

    Every measurement is kept as it is made: a run that was stopped goes on where it was.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        from mdp_fx.latency.targets import get_target

        get_target(target, threads, dtype, fill=fill, batch=batch)
        loaded = loading.load(model, arch, trust_pickle)
        from mdp_fx.api import profile
        from mdp_fx.report.tables import profile_tables

        found = profile(
            loaded.module,
            loading.make_inputs(shapes, batch, loaded),
            target=target,
            threads=threads,
            dtype=dtype,
            fill=fill,
            step=step,
            front_end=front_end,
            name=loaded.name,
            stage=reporter.stage,
            progress=reporter.measured,
        )
    if as_json:
        print_json(found.to_json())
        return
    show(*profile_tables(found, verbose=verbose))
