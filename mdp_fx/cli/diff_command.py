"""`mdp-fx diff`."""

from __future__ import annotations

from typing import Any

import click

from mdp_fx.cli import loading, options


@click.command("diff")
@options.model_argument("a")
@options.model_argument("b")
@options.input_options
@click.option(
    "--target", metavar="NAME", help="Also predict each module's latency on this target (measures what is not known)."
)
@options.threads_option
@options.dtype_option
@options.fill_option
@options.front_end_option
@options.model_options
@options.output_format
def command(
    a: str,
    b: str,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    target: str | None,
    threads: int | None,
    dtype: str,
    fill: Any,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compare networks A and B module by module: shapes, parameters, MACs, latency, removed blocks."""
    from mdp_fx.cli.console import Reporter, print_json, show

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the networks")
        first, second = (loading.load(spec, arch, trust_pickle) for spec in (a, b))
        from mdp_fx.api import diff
        from mdp_fx.report.diff_tables import diff_tables

        inputs = loading.make_inputs(shapes, batch, first, second.recipe)
        reporter.stage("compare")
        found = diff(
            first.module,
            second.module,
            inputs,
            target=target,
            threads=threads,
            dtype=dtype,
            fill=fill,
            front_end=front_end,
            progress=reporter.measured,
        )
    if as_json:
        print_json({"a": a, "b": b} | found.to_json())
        return
    show(*diff_tables(found, a, b, verbose=verbose))
