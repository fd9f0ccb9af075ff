"""`mdp-fx targets`."""

from __future__ import annotations

import click

from mdp_fx.cli import options


@click.command("targets")
@options.output_format
def command(as_json: bool, verbose: bool) -> None:
    """List where latency can be measured, what this machine has of it, and what the rest needs."""
    from mdp_fx.cli.console import Reporter, print_json, show

    with Reporter(verbose).running() as reporter:
        reporter.stage("look for targets")
        from mdp_fx.report.targets import target_tables
        from mdp_fx.target_list import targets

        rows = targets()
    if as_json:
        print_json({"targets": [row.to_json() for row in rows]})
        return
    show(*target_tables(rows))
