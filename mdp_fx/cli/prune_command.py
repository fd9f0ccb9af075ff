"""`mdp-fx prune`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdp_fx.cli import loading, options
from mdp_fx.cli.pattern_options import pattern_options, patterns
from mdp_fx.cli.score_options import load_scores, scores_option
from mdp_fx.errors import InputError, ModelError, first_line

if TYPE_CHECKING:
    from torch import nn


@click.command("prune")
@options.model_argument()
@click.option("--latency", metavar="BUDGET", help="50% of the dense latency, or 12.5ms.  [default: 50%]")
@click.option("--params", metavar="BUDGET", help="Parameters: 60%, or 4M.")
@click.option("--macs", metavar="BUDGET", help="Multiply-accumulates: 60%, or 300M.")
@options.target_options
@options.fill_option
@options.input_options
@options.scoring_options
@scores_option
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="K",
    default=1,
    show_default=True,
    help="Prune in K steps, with importance gathered anew from --data after each.",
)
@options.method_option("uniform")
@options.step_option
@pattern_options
@options.restrictions
@options.max_removed_option
@options.gap_option("0.1%")
@options.time_limit_option(20, "Limit of each call of the solver.")
@options.seed_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Slim network.  [default: <model>-slim.pt]")
@click.option("--onnx", type=click.Path(path_type=Path), help="Also export it to ONNX.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Also write the recipe as JSON.")
@click.option(
    "--save-space",
    type=click.Path(path_type=Path),
    help="Also write the search space, without restrictions, for mdp-fx solve.",
)
@options.force_option
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    latency: str | None,
    params: str | None,
    macs: str | None,
    target: str,
    threads: int | None,
    dtype: str,
    fill: Any,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    importance: str | None,
    data: str | None,
    loss: str | None,
    scores: Path | None,
    steps: int,
    method: str,
    step: int,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    backbone_only: bool,
    min_keep: float | None,
    fixed: dict[str, int],
    keep_blocks: tuple[str, ...],
    max_removed: int | None,
    gap: float,
    time_limit: float,
    seed: int,
    output: Path | None,
    onnx: Path | None,
    recipe: Path | None,
    save_space: Path | None,
    force: bool,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Make MODEL faster: prune it to a latency budget on a target.

    MODEL is a .pt file (a pickled network, or a state dict with --arch), torchvision:NAME, timm:NAME,
    package.module:factory, or a detector of ours (ssd512-resnet50, ssd300-resnet50, ssd300-mobilenet-v2). The slim
    network is written as <model>-slim.pt; load it with mdp_fx.load.
    """
    from mdp_fx.budgets import parse_budget
    from mdp_fx.cli.console import Reporter, print_json, show

    given = {"latency": latency, "params": params, "macs": macs}
    budgets: dict[str, Any] = {what: parse_budget(text, what) for what, text in given.items() if text is not None}
    slim_path: Path | None = output or Path(f"{_stem(model)}-slim.pt")
    outputs = {"--output": slim_path, "--onnx": onnx, "--recipe": recipe, "--save-space": save_space}
    loading.check_outputs(outputs, force, [model, *([scores] if scores is not None else [])])
    if steps > 1 and (data is None or scores is not None):
        raise InputError("--steps gathers importance anew after each step: give it --data, and no --scores")
    known = load_scores(scores)

    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        from mdp_fx.latency.targets import get_target

        device = get_target(target, threads, dtype, fill=fill, batch=batch)
        found = loading.load_to_score(model, arch, trust_pickle, shapes, batch, data, loss, seed)
        loaded, inputs = found.loaded, found.inputs
        if loaded.recipe is not None:
            click.echo(f"mdp-fx: {model} is a slim network already; it is pruned further", err=True)

        from mdp_fx.api import prune
        from mdp_fx.checkpoint import save_slim
        from mdp_fx.detectors.onnx import export_onnx
        from mdp_fx.example_inputs import random_inputs, recipe_types
        from mdp_fx.files import together
        from mdp_fx.report.tables import prune_tables

        if (refusal := _unsavable(loaded.module, inputs)) is not None:
            if output is not None or recipe is None:
                hint = "without --output and with --recipe the recipe is written, which mdp_fx.apply applies in Python"
                raise ModelError(f"slim.pt cannot hold this detector: {refusal}; {hint}")
            click.echo(f"mdp-fx: slim.pt cannot hold this detector, only its recipe is kept: {refusal}", err=True)
            slim_path = None
        settings: dict[str, Any] = dict(
            **budgets,
            target=target,
            threads=threads,
            dtype=dtype,
            fill=fill,
            method=method,
            importance=importance,
            step=step,
            keep=keep,
            only=patterns(only, backbone_only, loaded.module),
            min_keep=min_keep,
            fixed=fixed,
            keep_blocks=keep_blocks,
            max_removed=max_removed,
            front_end=front_end,
            seed=seed,
            gap=gap,
            time_limit=time_limit,
            name=loaded.name,
            pretrained=loaded.pretrained,
            stage=reporter.stage,
            progress=reporter.measured,
        )
        if steps > 1:
            from mdp_fx.train.steps import prune_in_steps

            assert found.data is not None
            result = prune_in_steps(loaded.module, inputs, found.data, steps=steps, loss=found.loss, **settings)
        else:
            result = prune(loaded.module, inputs, data=found.data, loss=found.loss, scores=known, **settings)
        if not device.can_run:
            inputs = random_inputs(result.recipe.input_shapes, recipe_types(result.recipe))  # few: one may be exported
        reporter.stage("write")
        with together():
            parity = export_onnx(result.module, inputs, onnx, force) if onnx is not None else None
            if slim_path is not None:
                save_slim(slim_path, result.module, result.recipe, result.report.to_json())
            if recipe is not None:
                result.recipe.save(recipe)
            if save_space is not None:
                result.space.save(save_space)
    paths = {"slim": slim_path, "onnx": onnx, "recipe": recipe, "space": save_space}
    written = {kind: str(path) for kind, path in paths.items() if path is not None}
    if as_json:
        facts = result.report.to_json()
        print_json(facts | {"written": written, "onnx_parity": asdict(parity) if parity is not None else None})
        return
    show(*prune_tables(result.report, written, parity, verbose=verbose))


def _unsavable(module: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why no file can hold the slim network, known before it is made: a detector keeps classes of the user's own."""
    from mdp_fx.checkpoint import check_savable
    from mdp_fx.detectors.subject import subject_of

    try:
        check_savable(module)
    except ModelError as error:
        return first_line(error) if subject_of(module, inputs).is_part else None
    return None


def _stem(model: str) -> str:
    """What the slim network is called by default, in the working folder: after the file, or what is after the colon."""
    if ":" not in model or Path(model).exists():
        return Path(model).stem
    return model.rpartition(":")[2].replace("/", "_")
