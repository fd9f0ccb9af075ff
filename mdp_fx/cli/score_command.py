"""`mdp-fx score`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mdp_fx.cli import loading, options


@click.command("score")
@options.model_argument()
@options.input_options
@options.scoring_options
@click.option(
    "--batches", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Most batches to read."
)
@options.seed_option
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", required=True, help="Scores, as JSON.")
@options.force_option
@options.front_end_option
@options.model_options
@options.output_format
def command(
    model: str,
    shapes: tuple[tuple[int, ...], ...],
    batch: int,
    importance: str | None,
    data: str | None,
    loss: str | None,
    batches: int,
    seed: int,
    output: Path,
    force: bool,
    front_end: Any,
    arch: str | None,
    trust_pickle: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Score what the channels of MODEL are worth, for --scores of mdp-fx prune and frontier.

    Scores belong to one network with its weights: another one refuses them.
    """
    from mdp_fx.cli.console import Reporter, print_json, show

    loading.check_outputs({"--output": output}, force, [model])
    with Reporter(verbose).running() as reporter:
        reporter.stage("load the network")
        found = loading.load_to_score(model, arch, trust_pickle, shapes, batch, data, loss, seed)
        from mdp_fx.report.scores import score_facts, score_tables
        from mdp_fx.scoring import score

        scores = score(
            found.loaded.module,
            found.inputs,
            importance=importance,
            data=found.data,
            loss=found.loss,
            batches=batches,
            front_end=front_end,
            seed=seed,
            stage=reporter.stage,
            progress=reporter.measured,
        )
        reporter.stage("write")
        scores.save(output)
    facts = score_facts(found.loaded.name, scores.importance, scores.batches, scores.layers)
    if as_json:
        print_json(facts | {"written": {"scores": str(output)}})
        return
    show(*score_tables(facts, str(output), verbose=verbose))
