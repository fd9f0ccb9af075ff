"""`mdp-fx solve`."""

from __future__ import annotations

from pathlib import Path

import click

from mdp_fx.cli import loading, options
from mdp_fx.passes.solvers import SOLVERS


@click.command("solve")
@click.argument("space", type=click.Path())
@click.option(
    "--budget",
    "--latency",
    "latency",
    metavar="BUDGET",
    help="Latency: 30% of the dense network's, or 77768us.  [default: the budget in the file]",
)
@click.option("--params", metavar="BUDGET", help="Parameters: 60%, or 4M.")
@click.option("--macs", metavar="BUDGET", help="Multiply-accumulates: 60%, or 300M.")
@click.option("--memory", metavar="BUDGET", help="Memory: 60%, or 20MiB.")
@options.limit_option
@options.method_option("uniform")
@click.option(
    "--solver",
    type=click.Choice(list(SOLVERS)),
    default="auto",
    show_default=True,
    help="What decides; auto is the fastest that proves the gap.",
)
@options.gap_option("0.01%")
@options.time_limit_option(60, "When to take the best so far.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads of the solver.  [default: it decides]"
)
@options.seed_option
@options.restrictions
@options.max_removed_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the JSON document to a file.")
@options.force_option
@options.output_format
def command(
    space: str,
    latency: str | None,
    params: str | None,
    macs: str | None,
    memory: str | None,
    limits: dict[str, str],
    method: str,
    solver: str,
    gap: float,
    time_limit: float,
    threads: int | None,
    seed: int,
    min_keep: float | None,
    fixed: dict[str, int],
    keep_blocks: tuple[str, ...],
    max_removed: int | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Decide what to keep of SPACE within budgets, and prove how good that is.

    SPACE is a JSON file: a search space from `mdp-fx prune --save-space`, or a MINLP in the form published with MDP.
    Budgets of the file hold where no option takes their place.
    """
    from mdp_fx.cli.console import Reporter, json_text, print_json, show
    from mdp_fx.files import atomic_write

    budgets = {"latency": latency, "params": params, "macs": macs, "memory": memory}
    given = {name: text for name, text in budgets.items() if text is not None}
    if twice := sorted(given.keys() & limits.keys()):
        raise click.BadParameter(f"the budget of {twice[0]!r} is given twice", param_hint="--limit")
    loading.check_outputs({"--output": output}, force, [space])
    with Reporter(verbose).running() as reporter:
        reporter.stage("read the search space")
        from mdp_fx.decision import solve
        from mdp_fx.passes.search_space import SearchSpace

        read = SearchSpace.load(space)
        reporter.stage("solve")
        decision = solve(
            read,
            given | limits,
            method=method,
            solver=solver,
            gap=gap,
            time_limit=time_limit,
            threads=threads,
            seed=seed,
            min_keep=min_keep,
            fixed=fixed,
            keep_blocks=keep_blocks,
            max_removed=max_removed,
        )
    facts = {"space": space, **decision.to_json()}
    if output is not None:
        atomic_write(output, lambda file: file.write(json_text(facts).encode()))
    if as_json:
        print_json(facts)
        return
    from mdp_fx.report.decision import decision_tables

    path = None if output is None else str(output)
    show(*decision_tables(Path(space).name, read, decision.selection, decision.certificate, path, verbose=verbose))
