"""`mdp-fx apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mdp_fx.cli import loading, options


@click.command("apply")
@options.model_argument()
@click.option("--recipe", type=click.Path(path_type=Path), help="Recipe from `mdp-fx prune --recipe`.")
@click.option("--masks", type=click.Path(path_type=Path), help="Layer masks of HALP or MDP (.pkl).")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Slim network to write.")
@options.force_option
@options.input_options
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    recipe: Path | None,
    masks: Path | None,
    output: Path,
    force: bool,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Apply a recipe, or layer masks, to MODEL, the dense network they were made for.

    With a recipe MODEL is traced on the inputs, and with --front-end auto by the front end, that the recipe was made
    with. Layer masks say which output channels of each layer stay; a block that they close is removed.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    if (recipe is None) == (masks is None):
        raise click.UsageError("Give one of --recipe and --masks.")
    if recipe is not None and shapes:
        raise click.UsageError("--input is for --masks: a recipe has the inputs that it was made with.")
    loading.check_outputs({"--output": output}, force, [path for path in (model, recipe, masks) if path is not None])
    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        from mdp_fx.checkpoint import save_slim
        from mdp_fx.report import tables

        if masks is not None:
            from mdp_fx.layer_masks import apply_masks
            from mdp_fx.mask_file import load_mask_file

            found = load_mask_file(masks)  # a file that holds none is told before the network is loaded
            loaded = loading.load(model, arch, trust_pickle)
            inputs = loading.make_inputs(shapes, batch, loaded)
            result = apply_masks(loaded.module, found, inputs, front_end=front_end, stage=reporter.stage)
            slim, wanted = result.module, result.recipe
            facts = {"model": loaded.name, **result.report.to_json()}
            answer = tables.mask_tables(result.report, str(output), verbose=verbose)
        else:
            assert recipe is not None
            from mdp_fx.api import apply
            from mdp_fx.recipe import Recipe

            wanted = Recipe.load(recipe)
            loaded = loading.load(model, arch, trust_pickle)
            reporter.stage("rewrite")
            slim = apply(loaded.module, wanted, front_end=front_end)
            params = {
                "dense": sum(parameter.numel() for parameter in loaded.module.parameters()),
                "slim": sum(parameter.numel() for parameter in slim.parameters()),
            }
            facts = {"model": loaded.name, "params": params}
            answer = tables.apply_tables(params, str(output))
        reporter.stage("write")
        save_slim(output, slim, wanted, facts)
    if as_json:
        print_json(facts | {"written": {"slim": str(output)}})
        return
    show(*answer)
