"""`mdp-fx bench`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mdp_fx.cli import options


@click.command("bench")
@options.model_argument("models", nargs=-1, required=True)
@options.target_options
@options.input_options
@options.model_options
@options.output_format
def command(
    models: tuple[str, ...],
    target: str,
    threads: int | None,
    dtype: str,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Time MODELS in turn in the same run: median, 90th percentile, throughput, ratio over the first."""
    from mdp_fx.cli.console import Reporter, print_json, show

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the networks")
        from mdp_fx.latency.targets import get_target

        get_target(target, threads, dtype)
        loaded = {
            label: options.load(spec, arch, trust_pickle) for label, spec in zip(_labels(models), models, strict=True)
        }
        recipe = next((model.recipe for model in loaded.values() if model.recipe is not None), None)
        inputs = options.make_inputs(shapes, batch, next(iter(loaded.values())), recipe)
        for model in loaded.values():
            options.check_forward(model, inputs)
        from mdp_fx.api import bench
        from mdp_fx.report.tables import bench_tables

        reporter.stage("time them in turn")
        networks = {label: model.module for label, model in loaded.items()}
        rows = bench(networks, inputs, target=target, threads=threads, dtype=dtype)
    if as_json:
        print_json({"target": target, "batch": batch, "networks": [row.to_json() for row in rows]})
        return
    show(*bench_tables(rows, target, batch))


def _labels(models: Sequence[str]) -> list[str]:
    """Names of the rows: a network that is given twice, to see the noise, gets two."""
    return [
        model if model not in models[:i] else f"{model} ({models[: i + 1].count(model)})"
        for i, model in enumerate(models)
    ]
