"""`mdp-fx apply`."""

from __future__ import annotations

from pathlib import Path

import click

from mdp_fx.cli import options


@click.command("apply")
@click.argument("model")
@click.option("--recipe", type=click.Path(path_type=Path), required=True, help="Recipe from `mdp-fx prune --recipe`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Slim network to write.")
@options.force_option
@options.model_options
def command(
    model: str, recipe: Path, output: Path, force: bool, arch: str | None, trust_pickle: bool
) -> None:
    """Apply a recipe to MODEL, the dense network it was made for."""
    from mdp_fx.files import check_output

    check_output(output, force)
    from mdp_fx.recipe import Recipe

    wanted = Recipe.load(recipe)
    loaded = options.load(model, arch, trust_pickle)
    from mdp_fx.checkpoint import save_slim
    from mdp_fx.pipeline import apply

    slim = apply(loaded.module, wanted)
    save_slim(output, slim, wanted, {})
    click.echo(f"wrote {output}")
