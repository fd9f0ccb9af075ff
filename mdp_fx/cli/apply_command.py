"""`mdp-fx apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mdp_fx.cli import options


@click.command("apply")
@options.model_argument()
@click.option("--recipe", type=click.Path(path_type=Path), required=True, help="Recipe from `mdp-fx prune --recipe`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Slim network to write.")
@options.force_option
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    recipe: Path,
    output: Path,
    force: bool,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Apply a recipe to MODEL, the dense network it was made for.

    With --front-end auto it is followed by the front end that the recipe was made with.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    options.check_outputs({"--output": output}, force, [model, recipe])
    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        from mdp_fx.recipe import Recipe

        wanted = Recipe.load(recipe)
        loaded = options.load(model, arch, trust_pickle)
        from mdp_fx.api import apply
        from mdp_fx.checkpoint import save_slim

        reporter.stage("rewrite")
        slim = apply(loaded.module, wanted, front_end=front_end)
        params = {
            "dense": sum(parameter.numel() for parameter in loaded.module.parameters()),
            "slim": sum(parameter.numel() for parameter in slim.parameters()),
        }
        facts = {"model": loaded.name, "params": params}
        reporter.stage("write")
        save_slim(output, slim, wanted, facts)
    if as_json:
        print_json(facts | {"written": {"slim": str(output)}})
        return
    from mdp_fx.report.tables import apply_tables

    show(*apply_tables(params, str(output)))
