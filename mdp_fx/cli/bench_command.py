"""`mdp-fx bench`."""

from __future__ import annotations

import click

from mdp_fx.cli import options


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@options.target_options
@options.input_options
@options.model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def command(
    models: tuple[str, ...],
    target: str,
    threads: int | None,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Time MODELS in turn in the same run: median, 90th percentile, throughput, ratio over the first."""
    from mdp_fx.cli.console import print_json, stdout
    from mdp_fx.latency.targets import get_target

    get_target(target, threads)
    loaded = {spec: options.load(spec, arch, trust_pickle) for spec in models}
    from mdp_fx.pipeline import bench
    from mdp_fx.report.tables import bench_table

    recipe = next((model.recipe for model in loaded.values() if model.recipe is not None), None)
    rows = bench(
        {spec: model.module for spec, model in loaded.items()},
        options.make_inputs(shapes, batch, recipe),
        target=target,
        threads=threads,
    )
    if as_json:
        print_json({"target": target, "batch": batch, "networks": [row.to_json() for row in rows]})
        return
    stdout().print(bench_table(rows, target, batch))
