"""`mdp-fx diff`."""

from __future__ import annotations

import click

from mdp_fx.cli import options


@click.command("diff")
@click.argument("a")
@click.argument("b")
@options.input_options
@click.option("--target", help="Also predict each module's latency on this target (measures what is not known).")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the target.")
@options.model_options
@options.output_format
def command(
    a: str,
    b: str,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    target: str | None,
    threads: int | None,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compare networks A and B module by module: shapes, parameters, MACs, latency, removed blocks."""
    from mdp_fx.cli.console import Reporter, print_json, stdout

    first, second = options.load(a, arch, trust_pickle), options.load(b, arch, trust_pickle)
    from mdp_fx.pipeline import diff
    from mdp_fx.report.tables import diff_tables

    inputs = options.make_inputs(shapes, batch, second.recipe or first.recipe)
    with Reporter(verbose=False).running() as reporter:
        found = diff(
            first.module, second.module, inputs, target=target, threads=threads, progress=reporter.measured
        )
    if as_json:
        print_json(found.to_json())
        return
    console = stdout()
    for part in diff_tables(found, a, b, verbose=verbose):
        console.print(part)
